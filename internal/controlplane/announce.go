package controlplane

import (
	"context"
	"hash/fnv"
	"sync"
	"time"

	"warmboot"
)

// announced is a Store that tells each change of a state once it is stored. All that the control plane changes goes through it, so no
// change can be forgotten.
type announced struct {
	warmboot.Store
	tell func(Event)
	// order keeps the changes of one entity, and so its events, one after the other.
	order [64]sync.Mutex
}

func (a *announced) lock(id warmboot.ID) (unlock func()) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails
	mu := &a.order[h.Sum32()%uint32(len(a.order))]
	mu.Lock()
	return mu.Unlock
}

func (a *announced) tellContainer(c *warmboot.Container) {
	a.tell(Event{Type: EventContainer, Entity: c.ID, Name: c.Name, State: string(c.State), BootMethod: c.BootMethod})
}

func (a *announced) tellSnapshot(id warmboot.ID, state warmboot.SnapshotState) {
	a.tell(Event{Type: EventSnapshot, Entity: id, State: string(state)})
}

func (a *announced) CreateContainer(ctx context.Context, c *warmboot.Container) error {
	defer a.lock(c.ID)()
	err := a.Store.CreateContainer(ctx, c)
	if err == nil {
		a.tellContainer(c)
	}
	return err
}

func (a *announced) UpdateContainer(ctx context.Context, id warmboot.ID, change func(*warmboot.Container) error) (*warmboot.Container, error) {
	defer a.lock(id)()
	var state warmboot.ContainerState
	var method warmboot.BootMethod
	var name string
	after, err := a.Store.UpdateContainer(ctx, id, func(c *warmboot.Container) error {
		state, method, name = c.State, c.BootMethod, c.Name
		return change(c)
	})
	if err == nil && (after.State != state || after.BootMethod != method || after.Name != name) {
		a.tellContainer(after)
	}
	return after, err
}

func (a *announced) DeleteContainer(ctx context.Context, id warmboot.ID) error {
	defer a.lock(id)()
	before, readErr := a.Container(ctx, id)
	err := a.Store.DeleteContainer(ctx, id)
	if err == nil && readErr == nil {
		a.tell(Event{Type: EventContainer, Entity: id, Name: before.Name, State: "deleted"})
	}
	return err
}

func (a *announced) CreateSnapshot(ctx context.Context, s *warmboot.RuntimeSnapshot, conditions ...func([]*warmboot.RuntimeSnapshot) error) error {
	defer a.lock(s.ID)()
	err := a.Store.CreateSnapshot(ctx, s, conditions...)
	if err == nil {
		a.tellSnapshot(s.ID, s.State)
	}
	return err
}

func (a *announced) UpdateSnapshot(ctx context.Context, id warmboot.ID, change func(*warmboot.RuntimeSnapshot) error) (*warmboot.RuntimeSnapshot, error) {
	defer a.lock(id)()
	var state warmboot.SnapshotState
	var step string
	after, err := a.Store.UpdateSnapshot(ctx, id, func(s *warmboot.RuntimeSnapshot) error {
		state, step = s.State, s.Metadata.Step
		return change(s)
	})
	switch {
	case err != nil:
	case after.State != state:
		a.tellSnapshot(id, after.State)
	case after.Metadata.Step != step:
		a.tell(Event{Type: eventStep, Entity: id})
	}
	return after, err
}

func (a *announced) FinishSnapshot(ctx context.Context, s *warmboot.RuntimeSnapshot, outdated []string) ([]warmboot.ID, error) {
	defer a.lock(s.ID)()
	replaced, err := a.Store.FinishSnapshot(ctx, s, outdated)
	if err != nil {
		return nil, err
	}
	a.tellSnapshot(s.ID, warmboot.SnapshotReady)
	for _, id := range replaced {
		a.tellSnapshot(id, warmboot.SnapshotDeleted)
	}
	return replaced, nil
}

func (a *announced) FailSnapshot(ctx context.Context, id warmboot.ID, reason string) error {
	defer a.lock(id)()
	return a.whenChanged(ctx, id, func() error { return a.Store.FailSnapshot(ctx, id, reason) })
}

func (a *announced) DeleteSnapshot(ctx context.Context, id warmboot.ID) error {
	defer a.lock(id)()
	return a.whenChanged(ctx, id, func() error { return a.Store.DeleteSnapshot(ctx, id) })
}

// whenChanged tells a snapshot's state if change has changed it.
func (a *announced) whenChanged(ctx context.Context, id warmboot.ID, change func() error) error {
	before, beforeErr := a.Snapshot(ctx, id)
	if err := change(); err != nil {
		return err
	}
	after, afterErr := a.Snapshot(ctx, id)
	if beforeErr == nil && afterErr == nil && before.State != after.State {
		a.tellSnapshot(id, after.State)
	}
	return nil
}

func (a *announced) RecordFailure(ctx context.Context, id warmboot.ID, at time.Time, reason string) (*warmboot.RuntimeSnapshot, error) {
	defer a.lock(id)()
	after, err := a.Store.RecordFailure(ctx, id, at, reason)
	if err == nil && after.State == warmboot.SnapshotUnhealthy && after.FailureStreak == warmboot.UnhealthyAfter {
		a.tellSnapshot(id, after.State)
	}
	return after, err
}

func (a *announced) CreateHost(ctx context.Context, h *warmboot.Host) error {
	defer a.lock(h.ID)()
	err := a.Store.CreateHost(ctx, h)
	if err == nil {
		a.tell(Event{Type: EventHost, Entity: h.ID, Name: h.Name, State: string(h.State)})
	}
	return err
}

func (a *announced) UpdateHost(ctx context.Context, id warmboot.ID, change func(*warmboot.Host) error) (*warmboot.Host, error) {
	defer a.lock(id)()
	var state warmboot.HostState
	var cordoned bool
	after, err := a.Store.UpdateHost(ctx, id, func(h *warmboot.Host) error {
		state, cordoned = h.State, h.Cordoned
		return change(h)
	})
	if err == nil && (after.State != state || after.Cordoned != cordoned) {
		a.tell(Event{Type: EventHost, Entity: id, Name: after.Name, State: string(after.State)})
	}
	return after, err
}

func (a *announced) DeleteHost(ctx context.Context, id warmboot.ID, conditions ...func(*warmboot.Host) error) error {
	defer a.lock(id)()
	before, readErr := a.Host(ctx, id)
	err := a.Store.DeleteHost(ctx, id, conditions...)
	if err == nil && readErr == nil {
		a.tell(Event{Type: EventHost, Entity: id, Name: before.Name, State: "deleted"})
	}
	return err
}
