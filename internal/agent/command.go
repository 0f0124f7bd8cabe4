package agent

import (
	"context"
	"sync"

	"warmboot"
	"warmboot/internal/controlplane"
)

// commands sees to it that one thing is done to a container at a time, and that a manager that has lost a container's lease, and may not
// know it, is not obeyed any more. The zero value is ready.
type commands struct {
	mu      sync.Mutex
	running map[warmboot.ID]*command
	// latest is the newest generation that was obeyed, of containers that this process has seen. Those of containers that are gone are
	// remembered for a while, in order of their removal.
	latest map[warmboot.ID]int64
	gone   []warmboot.ID
}

type command struct {
	generation int64
	cancel     context.CancelFunc
	done       chan struct{}
}

// goneKept is of how many removed containers it is remembered who removed them.
const goneKept = 4096

// command begins something that the control plane asks of a container; done must be called when it is over. What is still being done for
// an older lease is ended first, what is done for the same one is waited for. A command of an older lease than one that was obeyed is a
// Conflict.
func (a *Agent) command(ctx context.Context, ref controlplane.ContainerRef) (cctx context.Context, done func(), err error) {
	const op = "obey control plane"
	q := &a.commands
	for {
		q.mu.Lock()
		if ref.Generation == 0 {
			break
		}
		if newest := max(q.latest[ref.ID], a.generation(ref.ID)); ref.Generation < newest {
			q.mu.Unlock()
			return nil, nil, warmboot.Errorf(warmboot.Conflict, op, "container %s is under the command of another manager (lease %d, this one has %d)", ref.ID.Short(), newest, ref.Generation)
		}
		q.set(ref)
		other := q.running[ref.ID]
		if other == nil {
			break
		}
		if other.generation < ref.Generation {
			other.cancel()
		}
		q.mu.Unlock()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	defer q.mu.Unlock()
	cctx, cancel := context.WithCancel(ctx)
	mine := &command{generation: ref.Generation, cancel: cancel, done: make(chan struct{})}
	if q.running == nil {
		q.running = map[warmboot.ID]*command{}
	}
	q.running[ref.ID] = mine
	return cctx, func() {
		cancel()
		q.mu.Lock()
		if q.running[ref.ID] == mine {
			delete(q.running, ref.ID)
		}
		if _, err := a.find(ref.ID); err != nil {
			q.forget(ref.ID)
		}
		q.mu.Unlock()
		close(mine.done)
	}, nil
}

// generation is what a container's record says.
func (a *Agent) generation(id warmboot.ID) int64 {
	c, err := a.find(id)
	if err != nil {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Generation
}

func (q *commands) set(ref controlplane.ContainerRef) {
	if q.latest == nil {
		q.latest = map[warmboot.ID]int64{}
	}
	q.latest[ref.ID] = ref.Generation
}

// forget notes that a container is gone, and drops what is known of the one that went first of too many.
func (q *commands) forget(id warmboot.ID) {
	if _, known := q.latest[id]; !known {
		return
	}
	q.gone = append(q.gone, id)
	if len(q.gone) > goneKept {
		delete(q.latest, q.gone[0])
		q.gone = q.gone[1:]
	}
}
