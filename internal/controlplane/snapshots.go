package controlplane

import (
	"context"
	"fmt"
	"sync"
	"time"

	"warmboot"
)

// builds holds the snapshot builds that run, by image: there is one at a time for an image. The zero value is ready.
type builds struct {
	mu      sync.Mutex
	byImage map[warmboot.ID]*build
}

type build struct {
	id     warmboot.ID
	cancel context.CancelFunc
	mu     sync.Mutex
	step   string
}

// BuildSnapshot starts to build a snapshot of an image and returns its id at once. While a build of that image runs, its id is
// returned: asking twice builds once.
func (s *Service) BuildSnapshot(ctx context.Context, image warmboot.ID) (warmboot.ID, error) {
	s.rebuilds.forget(image) // a person has looked at it
	return s.startBuild(ctx, image)
}

// startBuild is BuildSnapshot, for whoever asks.
func (s *Service) startBuild(ctx context.Context, image warmboot.ID) (warmboot.ID, error) {
	img, err := s.store.Image(ctx, image)
	if err != nil {
		return "", err
	}
	info, err := s.host.Info(ctx)
	if err != nil {
		return "", err
	}
	s.builds.mu.Lock()
	defer s.builds.mu.Unlock()
	if running := s.builds.byImage[image]; running != nil {
		now, err := s.store.Snapshot(ctx, running.id)
		if err != nil {
			return "", err
		}
		if now.State == warmboot.SnapshotCreating {
			return running.id, nil
		}
		// It is ready, failed or deleted, and its last steps are being done: nothing to join.
	}
	if err := s.roomForSnapshot(ctx, image); err != nil {
		return "", err
	}
	snap := &warmboot.RuntimeSnapshot{
		ID: warmboot.NewID(), RuntimeImageID: image, State: warmboot.SnapshotCreating,
		FCVersion: info.VMM, CreatedAt: time.Now().UTC(),
	}
	if err := s.store.CreateSnapshot(ctx, snap); err != nil {
		return "", err
	}
	bctx, cancel := context.WithCancel(s.ctx)
	b := &build{id: snap.ID, cancel: cancel}
	if s.builds.byImage == nil {
		s.builds.byImage = map[warmboot.ID]*build{}
	}
	s.builds.byImage[image] = b
	if err := s.work.start(func() {
		defer func() {
			cancel()
			s.builds.mu.Lock()
			if s.builds.byImage[image] == b { // else another runs by now
				delete(s.builds.byImage, image)
			}
			s.builds.mu.Unlock()
			s.changes.notify(snap.ID)
		}()
		s.build(bctx, b, *snap, *img)
	}); err != nil {
		cancel()
		delete(s.builds.byImage, image)
		return "", err
	}
	return snap.ID, nil
}

// roomForSnapshot deletes the least recently used snapshot when one more would be too many, or reports a Conflict if none may go. The one that the new snapshot will replace does
// not count.
func (s *Service) roomForSnapshot(ctx context.Context, image warmboot.ID) error {
	all, err := s.store.Snapshots(ctx)
	if err != nil {
		return err
	}
	n := 0
	var others []*warmboot.RuntimeSnapshot
	for _, other := range all {
		if other.State != warmboot.SnapshotDeleted && other.RuntimeImageID != image {
			n++
			others = append(others, other)
		}
	}
	if n < s.maxSnapshots {
		return nil
	}
	evicted, err := s.evictSnapshot(ctx, others)
	if err != nil || evicted {
		return err
	}
	return warmboot.Errorf(warmboot.Conflict, "build snapshot", "there are %d runtime snapshots already, MANAGER_MAX_RUNTIME_SNAPSHOTS is %d, and each is being built or has containers that stand on it; delete such containers, or raise the limit", n, s.maxSnapshots)
}

// build runs in the background, from the row in state creating to ready or unhealthy.
func (s *Service) build(ctx context.Context, b *build, snap warmboot.RuntimeSnapshot, img warmboot.Image) {
	log := s.log.With("snapshot_id", snap.ID, "image_id", img.ID)
	start := time.Now()
	built, err := s.host.BuildSnapshot(ctx, snap, img, func(step string) {
		b.mu.Lock()
		b.step = step
		b.mu.Unlock()
		log.Info(fmt.Sprintf("Snapshot %s: %s", snap.ID.Short(), step))
		s.changes.notify(snap.ID)
	})
	// The row must be told even when the build was cancelled because the Service closes.
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if err == nil {
		snap.SnapshotPath, snap.FCVersion, snap.Metadata = built.Path, built.FCVersion, built.Metadata
		snap.Metadata.BuildSeconds = time.Since(start).Seconds()
		if err = s.store.FinishSnapshot(sctx, &snap); err == nil {
			log.Info(fmt.Sprintf("Snapshot %s ready in %.2fs", snap.ID.Short(), time.Since(start).Seconds()), "path", snap.SnapshotPath)
			s.observer.Build(time.Since(start), nil)
			s.collect(sctx)
			return
		}
		// Deleted while it was being built, or the store is gone: nobody will ever use these files.
		if rmErr := s.host.RemoveSnapshot(sctx, snap); rmErr != nil {
			log.Error("The files of a snapshot that nobody wants could not be removed", "err", rmErr)
		}
	}
	if now, readErr := s.store.Snapshot(sctx, snap.ID); readErr == nil && now.State == warmboot.SnapshotDeleted {
		log.Info(fmt.Sprintf("Snapshot %s was deleted while it was being built", snap.ID.Short()))
		s.observer.Build(time.Since(start), context.Canceled)
		return
	}
	s.observer.Build(time.Since(start), err)
	log.Error(fmt.Sprintf("Snapshot %s could not be built", snap.ID.Short()), "err", err)
	if failErr := s.store.FailSnapshot(sctx, snap.ID, err.Error()); failErr != nil {
		log.Error("The failed build could not be recorded", "err", failErr)
	}
}

// Snapshots lists the runtime snapshots, newest first.
func (s *Service) Snapshots(ctx context.Context) ([]*warmboot.RuntimeSnapshot, error) {
	return s.store.Snapshots(ctx)
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
		if snap.State != warmboot.SnapshotCreating || s.SnapshotStep(id) != step {
			return snap, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// SnapshotStep is what the build of a snapshot is doing, "" if none runs.
func (s *Service) SnapshotStep(id warmboot.ID) string {
	s.builds.mu.Lock()
	defer s.builds.mu.Unlock()
	for _, b := range s.builds.byImage {
		if b.id == id {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.step
		}
	}
	return ""
}

// DeleteSnapshot marks a snapshot deleted, ending its build if one runs. Its files go as soon as no machine needs them.
func (s *Service) DeleteSnapshot(ctx context.Context, id warmboot.ID) error {
	if err := s.store.DeleteSnapshot(ctx, id); err != nil {
		return err
	}
	s.changes.notify(id)
	s.builds.mu.Lock()
	for _, b := range s.builds.byImage {
		if b.id == id {
			b.cancel()
		}
	}
	s.builds.mu.Unlock()
	_ = s.work.start(func() { s.collect(s.ctx) }) // the next Start collects too
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
	return s.BuildSnapshot(ctx, snap.RuntimeImageID)
}

// collect removes the files of deleted snapshots that no machine or disk is based on any more. What is still in use is left for
// the next time.
func (s *Service) collect(ctx context.Context) {
	all, err := s.store.Snapshots(ctx)
	if err != nil {
		s.log.Warn("Deleted snapshots could not be listed", "err", err)
		return
	}
	for _, snap := range all {
		if snap.State != warmboot.SnapshotDeleted || snap.SnapshotPath == "" {
			continue
		}
		if err := s.host.RemoveSnapshot(ctx, *snap); err != nil && warmboot.CodeOf(err) != warmboot.Conflict {
			s.log.Warn("The files of a deleted snapshot could not be removed", "snapshot_id", snap.ID, "err", err)
		}
	}
}

// usableSnapshot finds the snapshot to start from, waiting for one that is being built. Without one, it says why, in the words of
// the founding document.
func (s *Service) usableSnapshot(ctx context.Context, image warmboot.ID) (*warmboot.RuntimeSnapshot, string, error) {
	deadline := time.NewTimer(s.snapshotWait)
	defer deadline.Stop()
	for {
		newest, err := s.newestSnapshot(ctx, image)
		if err != nil {
			return nil, "", err
		}
		if newest == nil {
			s.observer.Fallback(FallbackNone)
			return nil, "No runtime snapshot available", nil
		}
		changed := s.changes.of(newest.ID)
		now, err := s.store.Snapshot(ctx, newest.ID)
		if err != nil {
			return nil, "", err
		}
		switch now.State {
		case warmboot.SnapshotReady:
			return now, "", nil
		case warmboot.SnapshotUnhealthy:
			s.observer.Fallback(FallbackUnhealthy)
			return nil, fmt.Sprintf("Runtime snapshot %s is unhealthy", now.ID.Short()), nil
		case warmboot.SnapshotDeleted:
			continue // the next newest, if any
		}
		select {
		case <-changed:
		case <-deadline.C:
			s.observer.Fallback(FallbackCreating)
			return nil, fmt.Sprintf("Runtime snapshot %s was still being built after %s", now.ID.Short(), s.snapshotWait), nil
		case <-ctx.Done():
			return nil, "", ctx.Err()
		}
	}
}

// newestSnapshot prefers a ready snapshot to one that is being built, and that to an unhealthy one.
func (s *Service) newestSnapshot(ctx context.Context, image warmboot.ID) (*warmboot.RuntimeSnapshot, error) {
	all, err := s.store.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, state := range []warmboot.SnapshotState{warmboot.SnapshotReady, warmboot.SnapshotCreating, warmboot.SnapshotUnhealthy} {
		for _, snap := range all {
			if snap.RuntimeImageID == image && snap.State == state {
				return snap, nil
			}
		}
	}
	return nil, nil
}
