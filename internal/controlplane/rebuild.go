package controlplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"warmboot"
)

// ErrMachineSize is the cause of an Incompatible error when a snapshot is as this host would make it today, and only the container
// wants a larger machine: a rebuild would not help.
var ErrMachineSize = errors.New("the container asks for a machine of another size than the snapshot's")

// defaultRebuildDelays are the waits before each automatic build of an image's snapshot. The first is done at once; after the last the
// image is left to a person.
var defaultRebuildDelays = []time.Duration{0, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}

// rebuilds counts the automatic builds of each image's snapshot since a container last started warm. Counting to the next warm start,
// and not to the next build that succeeds, keeps an image whose every snapshot is bad from being built for ever. The zero value is
// ready.
type rebuilds struct {
	mu      sync.Mutex
	byImage map[warmboot.ID]*rebuild
}

type rebuild struct {
	attempts int
	pending  bool // one waits or runs
	gaveUp   bool // and that was said
}

// forget makes the next automatic build of an image the first one again.
func (r *rebuilds) forget(image warmboot.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := r.byImage[image]; now != nil {
		now.attempts, now.gaveUp = 0, false
	}
}

// begin tells how long to wait before the next automatic build, and whether there is to be one. more is false when another is pending
// already or the attempts are used up; gaveUp is true the first time they are.
func (r *rebuilds) begin(image warmboot.ID, delays []time.Duration) (wait time.Duration, more, gaveUp bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.byImage[image]
	if now == nil {
		if r.byImage == nil {
			r.byImage = map[warmboot.ID]*rebuild{}
		}
		now = &rebuild{}
		r.byImage[image] = now
	}
	if now.pending {
		return 0, false, false
	}
	if now.attempts >= len(delays) {
		gaveUp, now.gaveUp = !now.gaveUp, true
		return 0, false, gaveUp
	}
	now.attempts++
	now.pending = true
	return delays[now.attempts-1], true, false
}

func (r *rebuilds) end(image warmboot.ID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.byImage[image].pending = false
}

// rebuildSoon builds a new snapshot of an image in the background, again after a longer wait when that fails. old is the snapshot to
// replace, "" for an image that has none; nothing is built once old is gone.
func (s *Service) rebuildSoon(image, old warmboot.ID) {
	wait, more, gaveUp := s.rebuilds.begin(image, s.rebuildDelays)
	if gaveUp {
		s.log.Error(fmt.Sprintf("The snapshot of runtime image %s was built %d times without a container having started from it; it is left alone until somebody runs `warmboot snapshot create %s`", image.Short(), len(s.rebuildDelays), image), "image_id", image)
	}
	if !more {
		return
	}
	if err := s.work.start(func() {
		built := s.rebuildAfter(wait, image, old)
		s.rebuilds.end(image)
		if !built && s.ctx.Err() == nil {
			s.rebuildSoon(image, old)
		}
	}); err != nil { // the next Start takes it up
		s.rebuilds.end(image)
	}
}

// rebuildAfter makes one attempt and reports whether nothing more is to be done.
func (s *Service) rebuildAfter(wait time.Duration, image, old warmboot.ID) bool {
	if wait > 0 {
		s.log.Info(fmt.Sprintf("The snapshot of runtime image %s is built again in %s", image.Short(), wait), "image_id", image)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ctx.Done():
		return true
	}
	if old != "" {
		if now, err := s.store.Snapshot(s.ctx, old); warmboot.CodeOf(err) == warmboot.NotFound || err == nil && now.State == warmboot.SnapshotDeleted {
			return true // replaced or deleted meanwhile
		}
	}
	id, err := s.startBuild(s.ctx, image)
	if err == nil {
		err = s.awaitBuild(s.ctx, id)
	}
	switch warmboot.CodeOf(err) {
	case "", warmboot.NotFound, warmboot.Canceled: // NotFound: the image is gone
		return true
	}
	s.log.Warn(fmt.Sprintf("An automatic build of the snapshot of runtime image %s failed: %v", image.Short(), err), "image_id", image)
	return false
}

// awaitBuild returns once a build has ended; an error tells that it failed. One that somebody deleted is no failure.
func (s *Service) awaitBuild(ctx context.Context, id warmboot.ID) error {
	for {
		changed := s.changes.of(id)
		now, err := s.store.Snapshot(ctx, id)
		if err != nil {
			return err
		}
		switch now.State {
		case warmboot.SnapshotReady, warmboot.SnapshotDeleted:
			return nil
		case warmboot.SnapshotUnhealthy:
			return warmboot.Errorf(warmboot.Unavailable, "build snapshot", "%s", now.Metadata.Error)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// resumeRebuilds takes up the rebuilds that an earlier process owed: of images whose snapshot was ready once, is unhealthy now, and
// has no other in its place. A snapshot whose first build failed was never ready and is left to whoever asked for it.
func (s *Service) resumeRebuilds(ctx context.Context) error {
	all, err := s.store.Snapshots(ctx)
	if err != nil {
		return err
	}
	serves := map[warmboot.ID]bool{}
	for _, snap := range all {
		if snap.State == warmboot.SnapshotReady {
			serves[snap.RuntimeImageID] = true
		}
	}
	for _, snap := range all {
		if snap.State == warmboot.SnapshotUnhealthy && snap.SnapshotPath != "" && !serves[snap.RuntimeImageID] {
			s.rebuildSoon(snap.RuntimeImageID, snap.ID)
		}
	}
	return nil
}
