package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/placement"
	"warmboot/internal/telemetry/span"
)

// BuildSnapshot starts to build a snapshot of an image and returns its id at once. While a build of that image runs, its id is
// returned: asking twice builds once.
func (s *Service) BuildSnapshot(ctx context.Context, image warmboot.ID) (warmboot.ID, error) {
	return s.startBuild(ctx, Rebuild{Image: image}) // a person asks: Attempt is 0
}

// placeBuild chooses the host that builds a snapshot.
func (s *Service) placeBuild(ctx context.Context, img *warmboot.Image, platform string) (host *warmboot.Host, err error) {
	err = s.choose(ctx, func(all []placement.Host) (err error) {
		host, err = placement.Build(all, img, platform)
		return err
	})
	return host, err
}

// startBuild stores a snapshot that is to be built and queues its build.
func (s *Service) startBuild(ctx context.Context, r Rebuild) (warmboot.ID, error) {
	const op = "build snapshot"
	img, err := s.store.Image(ctx, r.Image)
	if err != nil {
		return "", err
	}
	host, err := s.placeBuild(ctx, img, r.Platform)
	if err != nil {
		return "", err
	}
	snap := &warmboot.RuntimeSnapshot{
		ID: cmp.Or(r.Snapshot, warmboot.NewID()), RuntimeImageID: img.ID, HostID: host.ID, Platform: host.Inventory.Platform, State: warmboot.SnapshotCreating,
		FCVersion: host.Inventory.VMM, CreatedAt: time.Now().UTC(), Attempt: r.Attempt,
	}
	for {
		if id, err := s.building(ctx, img.ID, snap.Platform); err != nil || id != "" {
			return id, err
		}
		err := s.storeNewSnapshot(ctx, snap)
		if err == nil {
			break
		}
		var repeated *warmboot.Repeated
		if warmboot.CodeOf(err) != warmboot.Conflict || errors.Is(err, ErrNoRoom) || errors.As(err, &repeated) { // else another manager was faster, and its build is the one, unless it has ended
			return "", err
		}
	}
	s.Step("build: stored")
	// If this fails, or this manager dies first, the row is found by takeOver.
	if err := s.Queue.Build(ctx, snap.ID); err != nil {
		s.log.Warn("A build could not be queued; it is tried again", "snapshot_id", snap.ID, "op", op, "err", err)
	}
	return snap.ID, nil
}

// ErrNoRoom is the cause of a Conflict when there are as many snapshots as there may be, and none of them may go.
var ErrNoRoom = errors.New("there is no room for one more snapshot")

// storeNewSnapshot stores a snapshot. Where one more would be too many it deletes the least recently used, or reports a Conflict if too few may go.
func (s *Service) storeNewSnapshot(ctx context.Context, snap *warmboot.RuntimeSnapshot) error {
	for {
		var others []*warmboot.RuntimeSnapshot
		err := s.store.CreateSnapshot(ctx, snap, func(all []*warmboot.RuntimeSnapshot) error {
			if others = s.besides(snap, all); len(others) < s.MaxSnapshots {
				return nil
			}
			return warmboot.Errorf(warmboot.Conflict, "build snapshot", "%w: there are %d already, MANAGER_MAX_RUNTIME_SNAPSHOTS is %d, and each is being built or has containers that stand on it; delete such containers, or raise the limit", ErrNoRoom, len(others), s.MaxSnapshots)
		})
		if !errors.Is(err, ErrNoRoom) {
			return err
		}
		if enough, evictErr := s.evictSnapshots(ctx, others, len(others)-s.MaxSnapshots+1); evictErr != nil || !enough {
			return cmp.Or(evictErr, err)
		}
	}
}

// besides are the snapshots that exist and that the new one will not replace.
func (s *Service) besides(snap *warmboot.RuntimeSnapshot, all []*warmboot.RuntimeSnapshot) (others []*warmboot.RuntimeSnapshot) {
	replaced := append(s.outdated(all), snap.Platform)
	for _, other := range all {
		if other.State != warmboot.SnapshotDeleted && (other.RuntimeImageID != snap.RuntimeImageID || !slices.Contains(replaced, other.Platform)) {
			others = append(others, other)
		}
	}
	return others
}

// building is the snapshot of an image and platform that is being built, "" if none is.
func (s *Service) building(ctx context.Context, image warmboot.ID, platform string) (warmboot.ID, error) {
	all, err := s.store.Snapshots(ctx, warmboot.SnapshotFilter{RuntimeImageID: image, States: []warmboot.SnapshotState{warmboot.SnapshotCreating}})
	if err != nil {
		return "", err
	}
	for _, snap := range all {
		if snap.Platform == platform {
			return snap.ID, nil
		}
	}
	return "", nil
}

// Snapshots lists the runtime snapshots, newest first.
func (s *Service) Snapshots(ctx context.Context, f warmboot.SnapshotFilter) ([]*warmboot.RuntimeSnapshot, error) {
	return s.store.Snapshots(ctx, f)
}

// Snapshot returns one snapshot.
func (s *Service) Snapshot(ctx context.Context, id warmboot.ID) (*warmboot.RuntimeSnapshot, error) {
	return s.store.Snapshot(ctx, id)
}

// WaitSnapshot returns the snapshot as soon as it is not being built any more, or once the build has taken a step: its step is then another
// than the one given.
func (s *Service) WaitSnapshot(ctx context.Context, id warmboot.ID, step string) (*warmboot.RuntimeSnapshot, error) {
	for {
		changed := s.changes.of(id)
		snap, err := s.store.Snapshot(ctx, id)
		if err != nil {
			return nil, err
		}
		if snap.State != warmboot.SnapshotCreating || snap.Metadata.Step != step {
			return snap, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// DeleteSnapshot marks a snapshot deleted, ending its build if one runs, if the conditions hold. Its files go as soon as no machine needs them.
func (s *Service) DeleteSnapshot(ctx context.Context, id warmboot.ID, conditions ...func(*warmboot.RuntimeSnapshot) error) error {
	if _, err := s.store.UpdateSnapshot(ctx, id, func(snap *warmboot.RuntimeSnapshot) error {
		if err := holds(snap, conditions); err != nil {
			return err
		}
		snap.State = warmboot.SnapshotDeleted
		return nil
	}); err != nil {
		return err
	}
	s.Step("delete snapshot: stored")
	s.builds.cancel(id) // another manager's build is ended by the event
	s.collectSoon()
	return nil
}

// RebuildSnapshot builds a new snapshot of the same image. The old one serves until the new one takes its place. It returns the
// new one's id.
func (s *Service) RebuildSnapshot(ctx context.Context, id warmboot.ID) (warmboot.ID, error) {
	snap, err := s.store.Snapshot(ctx, id)
	if err != nil {
		return "", err
	}
	if snap.State == warmboot.SnapshotDeleted {
		return "", warmboot.Errorf(warmboot.Conflict, "rebuild snapshot", "snapshot %s is deleted; build one with `warmboot snapshot create`", id)
	}
	r := Rebuild{Image: snap.RuntimeImageID}
	if s.platforms()[snap.Platform] {
		r.Platform = snap.Platform
	}
	return s.startBuild(ctx, r)
}

// usableSnapshot finds the snapshot that a container starts from on a host, waiting for one that is being built. Without one, it says why,
// in the words of the founding document.
func (s *Service) usableSnapshot(ctx context.Context, image, host warmboot.ID) (_ *warmboot.RuntimeSnapshot, reason string, err error) {
	ctx, sp := span.Start(ctx, "find snapshot", "image_id", image)
	defer func() { sp.Set("reason", reason); sp.End(err) }()
	deadline := time.NewTimer(s.SnapshotWait)
	defer deadline.Stop()
	for {
		all, err := insist(ctx, func() ([]*warmboot.RuntimeSnapshot, error) {
			return s.store.Snapshots(ctx, warmboot.SnapshotFilter{RuntimeImageID: image})
		})
		if err != nil {
			return nil, "", err
		}
		best := bestSnapshot(all, image, host, s.platformOf(host))
		if best == nil {
			s.Observer.Fallback(FallbackNone)
			s.snapshotsForPlatform(ctx, s.platformOf(host))
			return nil, "No runtime snapshot available", nil
		}
		changed := s.changes.of(best.ID)
		now, err := insist(ctx, func() (*warmboot.RuntimeSnapshot, error) { return s.store.Snapshot(ctx, best.ID) })
		if err != nil {
			return nil, "", err
		}
		switch now.State {
		case warmboot.SnapshotReady:
			return now, "", nil
		case warmboot.SnapshotUnhealthy:
			s.Observer.Fallback(FallbackUnhealthy)
			return nil, fmt.Sprintf("Runtime snapshot %s is unhealthy", now.ID.Short()), nil
		case warmboot.SnapshotDeleted:
			continue // the next newest, if any
		}
		select {
		case <-changed:
		case <-deadline.C:
			s.Observer.Fallback(FallbackCreating)
			return nil, fmt.Sprintf("Runtime snapshot %s was still being built after %s", now.ID.Short(), s.SnapshotWait), nil
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
}

// bestSnapshot prefers a ready snapshot to one that is being built, and that to an unhealthy one. Those of the host's own platform come first;
// then one that the host made itself before it changed: the host tells what has changed.
func bestSnapshot(all []*warmboot.RuntimeSnapshot, image, host warmboot.ID, platform string) *warmboot.RuntimeSnapshot {
	fits := func(s *warmboot.RuntimeSnapshot) bool { return s.Platform == platform }
	made := func(s *warmboot.RuntimeSnapshot) bool { return s.HostID == host || s.Platform == "" }
	for _, want := range []struct {
		state warmboot.SnapshotState
		of    func(*warmboot.RuntimeSnapshot) bool
	}{
		{warmboot.SnapshotReady, fits}, {warmboot.SnapshotReady, made}, {warmboot.SnapshotCreating, fits}, {warmboot.SnapshotUnhealthy, fits}, {warmboot.SnapshotUnhealthy, made},
	} {
		for _, snap := range all {
			if snap.RuntimeImageID == image && snap.State == want.state && want.of(snap) {
				return snap
			}
		}
	}
	return nil
}

// uses counts the successful restores of each snapshot until the store is told of them: at most one transaction at a time, however many
// containers start. The zero value is ready.
type uses struct {
	mu      sync.Mutex
	pending map[warmboot.ID]int
	telling bool
}

func (u *uses) success(s *Service, id warmboot.ID) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pending == nil {
		u.pending = map[warmboot.ID]int{}
	}
	u.pending[id]++
	if !u.telling {
		u.telling = s.work.start(func() { u.tell(s) }) == nil
	}
}

func (u *uses) tell(s *Service) {
	ctx, cancel := s.lastWords()
	defer cancel()
	for {
		u.mu.Lock()
		pending := u.pending
		u.pending = nil
		if len(pending) == 0 {
			u.telling = false
			u.mu.Unlock()
			return
		}
		u.mu.Unlock()
		for id, n := range pending {
			_, err := insist(ctx, func() (struct{}, error) { return struct{}{}, s.store.RecordSuccesses(ctx, id, time.Now().UTC(), n) })
			if err != nil && warmboot.CodeOf(err) != warmboot.NotFound {
				s.log.Error("The use of a snapshot could not be counted", "snapshot_id", id, "err", err)
			}
		}
	}
}
