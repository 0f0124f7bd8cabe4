package controlplane

import (
	"context"
	"sync"

	"warmboot"
)

// changes tells those who wait that an entity has changed. The zero value is ready.
type changes struct {
	mu   sync.Mutex
	next map[warmboot.ID]chan struct{}
}

// of returns a channel that is closed at the entity's next change. Ask for it before reading the entity.
func (c *changes) of(id warmboot.ID) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil {
		c.next = map[warmboot.ID]chan struct{}{}
	}
	if c.next[id] == nil {
		c.next[id] = make(chan struct{})
	}
	return c.next[id]
}

func (c *changes) notify(id warmboot.ID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.next[id]; ch != nil {
		close(ch)
		delete(c.next, id)
	}
}

// tasks holds the one thing that is being done to each container. The zero value is ready.
type tasks struct {
	mu      sync.Mutex
	running map[warmboot.ID]*task
}

type task struct {
	verb   string // "created", "stopped": for the text of a Conflict
	cancel context.CancelFunc
	done   chan struct{}
}

// begin registers a task on a container; end must be called when it is over. While another task runs it is a Conflict.
func (t *tasks) begin(parent context.Context, id warmboot.ID, verb string) (ctx context.Context, end func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.running[id]; other != nil {
		return nil, nil, warmboot.Errorf(warmboot.Conflict, "container", "container %s is being %s just now; wait for that to end and try again", id.Short(), other.verb)
	}
	if t.running == nil {
		t.running = map[warmboot.ID]*task{}
	}
	ctx, cancel := context.WithCancel(parent)
	mine := &task{verb: verb, cancel: cancel, done: make(chan struct{})}
	t.running[id] = mine
	return ctx, func() {
		t.mu.Lock()
		delete(t.running, id)
		t.mu.Unlock()
		cancel()
		close(mine.done)
	}, nil
}

// interrupt cancels what runs on the container, waits for its end, and begins a task in its place.
func (t *tasks) interrupt(parent context.Context, id warmboot.ID, verb string) (context.Context, func(), error) {
	for {
		ctx, end, err := t.begin(parent, id, verb)
		if err == nil {
			return ctx, end, nil
		}
		t.mu.Lock()
		other := t.running[id]
		t.mu.Unlock()
		if other == nil {
			continue
		}
		if other.verb == verb {
			return nil, nil, err
		}
		other.cancel()
		select {
		case <-other.done:
		case <-parent.Done():
			return nil, nil, parent.Err()
		}
	}
}
