package controlplane

import (
	"context"
	"errors"
	"time"

	"warmboot"
	"warmboot/internal/telemetry/span"
)

// errLost is the cause of a Conflict when another manager holds the lease under which something was to be changed.
var errLost = errors.New("another manager has taken over")

// hold is a container to which this manager is doing something: it has the container's task in this process, and its lease among all.
type hold struct {
	s     *Service
	id    warmboot.ID
	lease warmboot.Lease
	ctx   context.Context // ends with the Service, or when the task is interrupted
	end   func()          // of the task; not of the lease
}

// acquire takes the lease of a container for a task that has begun, and changes the container in the same moment. If it fails the task
// has ended.
func (s *Service) acquire(ctx context.Context, t task, change func(*warmboot.Container) error) (*hold, *warmboot.Container, error) {
	c, err := s.store.UpdateContainer(ctx, t.id, func(c *warmboot.Container) error {
		if c.Lease.HeldByOther(s.me) {
			return warmboot.Errorf(warmboot.Conflict, "container", "another manager is doing something to container %s, which is %s; wait for that to end and try again", c.Name, c.State)
		}
		if err := change(c); err != nil {
			return err
		}
		c.Lease = c.Lease.Take(s.me)
		return nil
	})
	if err != nil {
		t.end()
		return nil, nil, err
	}
	return s.holdOf(ctx, t, c), c, nil
}

// holdOf is a container's hold. What is done under it belongs to the trace of ctx, and ends with the task.
func (s *Service) holdOf(ctx context.Context, t task, c *warmboot.Container) *hold {
	return &hold{s: s, id: c.ID, lease: c.Lease, ctx: span.Carry(t.ctx, ctx), end: t.end}
}

// span begins a span for something that is done under the hold. It returns the hold to do it under.
func (h *hold) span(name string, attributes ...any) (*hold, span.Span) {
	below := *h
	var sp span.Span
	below.ctx, sp = span.Start(h.ctx, name, append(attributes, "container_id", h.id)...)
	return &below, sp
}

// ref is the container as the host must be asked for it.
func (h *hold) ref() ContainerRef { return ContainerRef{ID: h.id, Generation: h.lease.Generation} }

// update changes the container, as long as the lease is still held. While the store does not answer it goes on trying until ctx ends, so
// change must do the same when it is called again.
func (h *hold) update(ctx context.Context, change func(*warmboot.Container) error) (*warmboot.Container, error) {
	again := false
	return insist(ctx, func() (*warmboot.Container, error) {
		c, err := h.s.store.UpdateContainer(ctx, h.id, func(c *warmboot.Container) error {
			if again && c.Lease == h.lease.Release() {
				return nil // the attempt before has gone through, and only its answer was lost
			}
			if !c.Lease.Is(h.lease) {
				return warmboot.Errorf(warmboot.Conflict, "container", "container %s: %w", c.Name, errLost)
			}
			return change(c)
		})
		again = true
		return c, err
	})
}

// release changes the container for the last time and gives its lease back.
func (h *hold) release(change func(*warmboot.Container) error) (*warmboot.Container, error) {
	ctx, cancel := h.lastWords()
	defer cancel()
	return h.update(ctx, func(c *warmboot.Container) error {
		if err := change(c); err != nil {
			return err
		}
		c.Lease = c.Lease.Release()
		return nil
	})
}

// abandon gives the lease back and leaves the container as it is, for whoever takes it up.
func (h *hold) abandon() {
	if _, err := h.release(func(*warmboot.Container) error { return nil }); err != nil && warmboot.CodeOf(err) != warmboot.NotFound && !errors.Is(err, errLost) {
		h.s.log.Error("A lease could not be given back; it ends with this manager", "container_id", h.id, "err", err)
	}
	h.s.members.sweepSoon()
}

// lastWords is a context for what must be said although the task was interrupted: as long as the Service lives, else for a moment.
func (h *hold) lastWords() (context.Context, context.CancelFunc) {
	ctx, cancel := h.s.lastWords()
	return span.Carry(ctx, h.ctx), cancel
}

// lastWordsLimit is how long the end of the Service waits for what must still be said.
const lastWordsLimit = 5 * time.Second

func (s *Service) lastWords() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(s.ctx))
	stop := context.AfterFunc(s.ctx, func() { time.AfterFunc(lastWordsLimit, cancel) })
	return ctx, func() { stop(); cancel() }
}

// insist does something to the store, again and again while the store does not answer.
func insist[T any](ctx context.Context, do func() (T, error)) (T, error) {
	pause := 100 * time.Millisecond
	for {
		v, err := do()
		if warmboot.CodeOf(err) != warmboot.Unavailable {
			return v, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return v, err
		}
		pause = min(2*pause, 2*time.Second)
	}
}
