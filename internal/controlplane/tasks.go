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

// notifyAll is for when changes may have been missed.
func (c *changes) notifyAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range c.next {
		close(ch)
	}
	c.next = nil
}

// tasks holds the one thing that this process is doing to each container. Between managers leases do the same. The zero value is ready.
type tasks struct {
	mu      sync.Mutex
	running map[warmboot.ID]*task
}

// task is something that is being done to a container.
type task struct {
	id     warmboot.ID
	verb   string // "created", "stopped": for the text of a Conflict
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	all    *tasks
}

// begin registers a task on a container; its end must be called when it is over. While another task runs it is a Conflict.
func (t *tasks) begin(parent context.Context, id warmboot.ID, verb string) (task, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if other := t.running[id]; other != nil {
		return task{}, busy(id, other)
	}
	if t.running == nil {
		t.running = map[warmboot.ID]*task{}
	}
	ctx, cancel := context.WithCancel(parent)
	mine := task{id: id, verb: verb, ctx: ctx, cancel: cancel, done: make(chan struct{}), all: t}
	t.running[id] = &mine
	return mine, nil
}

func (t task) end() {
	t.all.mu.Lock()
	delete(t.all.running, t.id)
	t.all.mu.Unlock()
	t.cancel()
	close(t.done)
}

// busy reports whether something is being done to a container.
func (t *tasks) busy(id warmboot.ID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.running[id] != nil
}

// after begins a task once what runs on the container has ended. It gives up when ctx ends.
func (t *tasks) after(ctx, parent context.Context, id warmboot.ID, verb string) (task, error) {
	return t.beginOver(ctx, parent, id, verb, func(*task) error { return nil })
}

// interrupt cancels what runs on the container, waits for its end, and begins a task in its place. A task of the same verb
// is not interrupted: that is a Conflict.
func (t *tasks) interrupt(parent context.Context, id warmboot.ID, verb string) (task, error) {
	return t.beginOver(parent, parent, id, verb, func(other *task) error {
		if other.verb == verb {
			return busy(id, other)
		}
		other.cancel()
		return nil
	})
}

// beginOver waits for the task that is in the way, after handing it to meet, which may refuse to wait.
func (t *tasks) beginOver(ctx, parent context.Context, id warmboot.ID, verb string, meet func(*task) error) (task, error) {
	for {
		mine, err := t.begin(parent, id, verb)
		if err == nil {
			return mine, nil
		}
		t.mu.Lock()
		other := t.running[id]
		t.mu.Unlock()
		if other == nil {
			continue
		}
		if err := meet(other); err != nil {
			return task{}, err
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return task{}, ctx.Err()
		}
	}
}

func busy(id warmboot.ID, other *task) error {
	return warmboot.Errorf(warmboot.Conflict, "container", "container %s is being %s just now; wait for that to end and try again", id.Short(), other.verb)
}
