package controlplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"warmboot"
)

// builds holds the snapshot builds that this manager has run. The zero value is ready.
type builds struct {
	mu      sync.Mutex
	running map[warmboot.ID]context.CancelFunc // by snapshot
}

func (b *builds) begin(ctx context.Context, id warmboot.ID) (bctx context.Context, end func(), ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.running[id] != nil {
		return nil, nil, false
	}
	if b.running == nil {
		b.running = map[warmboot.ID]context.CancelFunc{}
	}
	bctx, cancel := context.WithCancel(ctx)
	b.running[id] = cancel
	return bctx, func() {
		cancel()
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.running, id)
	}, true
}

func (b *builds) cancel(id warmboot.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if cancel := b.running[id]; cancel != nil {
		cancel()
	}
}

// RunBuild is the queue's: it builds a snapshot that is in state creating, and returns when that is over. What another manager is building
// is left to it. An error says that the manager ends, or the store is gone: the build is to be run again.
func (s *Service) RunBuild(ctx context.Context, id warmboot.ID) error {
	done, err := s.work.enter()
	if err != nil {
		return err
	}
	defer done()
	ctx, end, ok := s.builds.begin(ctx, id)
	if !ok {
		return nil
	}
	defer end()
	stop := context.AfterFunc(s.ctx, func() { s.builds.cancel(id) })
	defer stop()
	snap, err := s.store.UpdateSnapshot(ctx, id, func(snap *warmboot.RuntimeSnapshot) error {
		if snap.State != warmboot.SnapshotCreating || snap.Lease.HeldByOther(s.me) {
			return errNotOurs
		}
		snap.Lease = snap.Lease.Take(s.me)
		return nil
	})
	switch {
	case errors.Is(err, errNotOurs) || warmboot.CodeOf(err) == warmboot.NotFound:
		return nil
	case err != nil:
		return err
	}
	s.Step("build: taken")
	b := &build{s: s, snap: *snap}
	start := time.Now()
	err = b.run(ctx)
	if s.ctx.Err() != nil && err != nil {
		// It is undone on the host, and built by another manager or at the next start.
		b.update(func(snap *warmboot.RuntimeSnapshot) { snap.Lease, snap.Metadata.Step = snap.Lease.Release(), "" })
		return errClosing
	}
	b.finish(start, err)
	return nil
}

// errNotOurs says that nothing is to be built, or somebody else builds it.
var errNotOurs = errors.New("not ours to build")

// build is one run of a snapshot's build, under its lease.
type build struct {
	s    *Service
	snap warmboot.RuntimeSnapshot
}

// run has the host build the snapshot and makes it ready.
func (b *build) run(ctx context.Context) error {
	s, snap := b.s, &b.snap
	img, err := s.store.Image(ctx, snap.RuntimeImageID)
	if err != nil {
		return err
	}
	if _, err := s.reach(snap.HostID); err != nil { // it has gone down since it was chosen
		host, placeErr := s.placeBuild(ctx, img, snap.Platform)
		if placeErr != nil {
			return err
		}
		snap.HostID, snap.FCVersion = host.ID, host.Inventory.VMM
		b.update(func(now *warmboot.RuntimeSnapshot) { now.HostID, now.FCVersion = snap.HostID, snap.FCVersion })
	}
	host, err := s.reach(snap.HostID)
	if err != nil {
		return err
	}
	if err := s.fetchImage(ctx, host, snap.HostID, img); err != nil {
		return err
	}
	start := time.Now()
	built, err := host.BuildSnapshot(ctx, *snap, *img, func(step string) {
		s.log.Info(fmt.Sprintf("Snapshot %s: %s", snap.ID.Short(), step), "snapshot_id", snap.ID, "image_id", img.ID)
		b.update(func(now *warmboot.RuntimeSnapshot) { now.Metadata.Step = step })
		s.Step("build: " + step)
	})
	if err != nil {
		return err
	}
	s.Step("build: built")
	snap.SnapshotPath, snap.FCVersion, snap.Metadata = built.Path, built.FCVersion, built.Metadata
	snap.Metadata.BuildSeconds = time.Since(start).Seconds()
	if err := b.ready(); err != nil {
		// Deleted while it was being built, or taken over: nobody will ever use these files.
		rctx, cancel := s.lastWords()
		defer cancel()
		if rmErr := host.RemoveSnapshot(rctx, *snap); rmErr != nil {
			s.log.Error("The files of a snapshot that nobody wants could not be removed", "snapshot_id", snap.ID, "err", rmErr)
		}
		return err
	}
	s.Step("build: ready")
	return nil
}

// ready makes the snapshot ready and marks those that it replaces deleted.
func (b *build) ready() error {
	ctx, cancel := b.s.lastWords()
	defer cancel()
	all, err := insist(ctx, func() ([]*warmboot.RuntimeSnapshot, error) { return b.s.store.Snapshots(ctx) })
	if err != nil {
		return err
	}
	again := false
	_, err = insist(ctx, func() (struct{}, error) {
		_, err := b.s.store.FinishSnapshot(ctx, &b.snap, b.s.outdated(all))
		if again && warmboot.CodeOf(err) == warmboot.Conflict { // the attempt before may have gone through, and only its answer was lost
			if now, readErr := b.s.store.Snapshot(ctx, b.snap.ID); readErr == nil && now.State == warmboot.SnapshotReady && now.SnapshotPath == b.snap.SnapshotPath {
				err = nil
			}
		}
		again = true
		return struct{}{}, err
	})
	return err
}

// update changes the snapshot's row as long as its lease is ours. What cannot be told is told by the next step.
func (b *build) update(change func(*warmboot.RuntimeSnapshot)) {
	ctx, cancel := b.s.lastWords()
	defer cancel()
	_, err := b.s.store.UpdateSnapshot(ctx, b.snap.ID, func(now *warmboot.RuntimeSnapshot) error {
		if now.State != warmboot.SnapshotCreating || !now.Lease.Is(b.snap.Lease) {
			return errNotOurs
		}
		change(now)
		return nil
	})
	if err != nil && !errors.Is(err, errNotOurs) && warmboot.CodeOf(err) != warmboot.NotFound {
		b.s.log.Warn("How far a build is could not be recorded", "snapshot_id", b.snap.ID, "err", err)
	}
}

// finish records how a build ended. A build that was automatic and failed is repeated later.
func (b *build) finish(start time.Time, err error) {
	s, snap := b.s, &b.snap
	log, took := s.log.With("snapshot_id", snap.ID, "image_id", snap.RuntimeImageID), time.Since(start)
	if err == nil {
		log.Info(fmt.Sprintf("Snapshot %s ready in %.2fs", snap.ID.Short(), took.Seconds()), "path", snap.SnapshotPath)
		s.Observer.Build(took, nil)
		s.collectSoon()
		return
	}
	ctx, cancel := s.lastWords()
	defer cancel()
	after, failErr := insist(ctx, func() (*warmboot.RuntimeSnapshot, error) {
		return s.store.UpdateSnapshot(ctx, snap.ID, func(now *warmboot.RuntimeSnapshot) error {
			if now.State != warmboot.SnapshotCreating || !now.Lease.Is(snap.Lease) {
				return errNotOurs
			}
			now.State, now.Metadata.Error, now.Metadata.Step, now.Lease = warmboot.SnapshotUnhealthy, err.Error(), "", now.Lease.Release()
			return nil
		})
	})
	if errors.Is(failErr, errNotOurs) || warmboot.CodeOf(failErr) == warmboot.NotFound {
		log.Info(fmt.Sprintf("Snapshot %s was deleted while it was being built", snap.ID.Short()))
		s.Observer.Build(took, context.Canceled)
		return
	}
	s.Observer.Build(took, err)
	log.Error(fmt.Sprintf("Snapshot %s could not be built", snap.ID.Short()), "err", err)
	if failErr != nil {
		log.Error("The failed build could not be recorded", "err", failErr)
		return
	}
	if after.Attempt > 0 {
		s.rebuildSoon(after, after.Platform)
	}
}

// takeOverBuilds queues again what is to be built and nobody builds; what is queued already stays so. After a death it also queues what an
// unhealthy snapshot still waits for.
func (s *Service) takeOverBuilds(ctx context.Context, death bool) error {
	all, err := s.store.Snapshots(ctx)
	if err != nil {
		return err
	}
	type of struct {
		image    warmboot.ID
		platform string
	}
	served := map[of]bool{}
	for _, snap := range all {
		if snap.State == warmboot.SnapshotReady || snap.State == warmboot.SnapshotCreating {
			served[of{snap.RuntimeImageID, snap.Platform}] = true
		}
	}
	for _, snap := range all {
		switch {
		case snap.State == warmboot.SnapshotCreating && !snap.Lease.HeldByOther(s.me):
			if err := s.Queue.Build(ctx, snap.ID); err != nil {
				return err
			}
		case death && snap.State == warmboot.SnapshotUnhealthy && (snap.SnapshotPath != "" || snap.Attempt > 0) && !served[of{snap.RuntimeImageID, snap.Platform}]:
			served[of{snap.RuntimeImageID, snap.Platform}] = true // the newest of several
			s.rebuildSoon(snap, snap.Platform)
		}
	}
	return nil
}
