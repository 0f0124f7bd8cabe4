package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"warmboot"
)

// ErrMachineSize is the cause of an Incompatible error when a snapshot is as this host would make it today, and only the container
// wants a larger machine: a rebuild would not help.
var ErrMachineSize = errors.New("the container asks for a machine of another size than the snapshot's")

// defaultRebuildDelays are the waits before each automatic build of an image's snapshot. The first is done at once; after the last the
// image is left to a person.
var defaultRebuildDelays = []time.Duration{0, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour}

// rebuildSoon queues an automatic build of what is to replace a snapshot. Each such build counts one attempt more than the snapshot that it
// replaces, unless a container has started warm from that: counting to the next warm start, and not to the next build that succeeds, keeps
// an image whose every snapshot is bad from being built for ever.
func (s *Service) rebuildSoon(old *warmboot.RuntimeSnapshot, platform string) {
	attempt := old.Attempt + 1
	if old.SuccessCount > 0 {
		attempt = 1
	}
	if attempt > len(s.RebuildDelays) {
		s.log.Error(fmt.Sprintf("The snapshot of runtime image %s was built %d times without a container having started from it; it is left alone until somebody runs `warmboot snapshot create %s`", old.RuntimeImageID.Short(), len(s.RebuildDelays), old.RuntimeImageID), "image_id", old.RuntimeImageID)
		return
	}
	s.queueRebuild(Rebuild{Image: old.RuntimeImageID, Platform: platform, Old: old.ID, Attempt: attempt})
}

func (s *Service) queueRebuild(r Rebuild) {
	if r.Attempt > len(s.RebuildDelays) {
		return
	}
	r.Snapshot = warmboot.NewID()
	wait := s.RebuildDelays[r.Attempt-1]
	if wait > 0 {
		s.log.Info(fmt.Sprintf("The snapshot of runtime image %s is built again in %s", r.Image.Short(), wait), "image_id", r.Image)
	}
	if err := s.Queue.Rebuild(s.ctx, r, wait); err != nil && s.ctx.Err() == nil { // takeOver finds it
		s.log.Warn("An automatic build could not be queued; it is tried again", "image_id", r.Image, "err", err)
	}
}

// RunRebuild is the queue's: it starts an automatic build, unless what it was to replace is gone. Where there is no room for one more snapshot it is an ErrNoRoom, and
// to be run again later.
func (s *Service) RunRebuild(ctx context.Context, r Rebuild) error {
	if r.Old != "" {
		now, err := s.store.Snapshot(ctx, r.Old)
		switch {
		case warmboot.CodeOf(err) == warmboot.NotFound || err == nil && now.State == warmboot.SnapshotDeleted:
			return nil // replaced or deleted meanwhile
		case err != nil:
			return err
		}
	} else {
		switch has, err := s.hasReadySnapshot(ctx, r.Image, r.Platform); {
		case err != nil:
			return err
		case has:
			return nil // somebody has asked for one meanwhile
		}
	}
	if r.Snapshot != "" {
		if _, err := s.store.Snapshot(ctx, r.Snapshot); warmboot.CodeOf(err) != warmboot.NotFound {
			return err // it is being built, or was
		}
	}
	s.Step("rebuild: begun")
	_, err := s.startBuild(ctx, r)
	switch {
	case warmboot.CodeOf(err) == warmboot.NotFound: // the image is gone
		return nil
	case errors.Is(err, ErrNoRoom):
		s.log.Warn(fmt.Sprintf("An automatic build of the snapshot of runtime image %s has to wait: %v", r.Image.Short(), err), "image_id", r.Image)
	}
	return err
}

// hasReadySnapshot tells whether the hosts of a platform have a snapshot of an image that can be used.
func (s *Service) hasReadySnapshot(ctx context.Context, image warmboot.ID, platform string) (bool, error) {
	ready, err := s.store.Snapshots(ctx, warmboot.SnapshotFilter{RuntimeImageID: image, States: []warmboot.SnapshotState{warmboot.SnapshotReady}})
	return slices.ContainsFunc(ready, func(snap *warmboot.RuntimeSnapshot) bool { return snap.Platform == platform }), err
}

// firstBuildWithin is how long after an image was registered it may still be missing its first build: later there was one, and somebody has deleted
// what came of it.
const firstBuildWithin = 24 * time.Hour

// snapshotsForPlatform builds, where that is wanted, what the hosts of a platform lack: a snapshot of each image that has one elsewhere, or
// had one on these hosts before they changed; and of an image that is new and has none, because the manager that registered it died before it
// could ask for one.
func (s *Service) snapshotsForPlatform(ctx context.Context, platform string) {
	if !s.AutoSnapshot || platform == "" {
		return
	}
	all, err := s.store.Snapshots(ctx, warmboot.SnapshotFilter{})
	images, imagesErr := s.store.Images(ctx, warmboot.Page{})
	if err := errors.Join(err, imagesErr); err != nil {
		s.log.Warn("Which snapshots a host lacks could not be found out", "err", err)
		return
	}
	known, here, elsewhere := map[warmboot.ID]bool{}, map[warmboot.ID]bool{}, map[warmboot.ID]bool{}
	for _, snap := range all {
		known[snap.RuntimeImageID] = true
		switch {
		case snap.State == warmboot.SnapshotDeleted:
		case snap.Platform == platform:
			here[snap.RuntimeImageID] = true
		case snap.State == warmboot.SnapshotReady:
			elsewhere[snap.RuntimeImageID] = true
		}
	}
	for _, img := range images {
		switch {
		case elsewhere[img.ID] && !here[img.ID]:
			s.log.Info(fmt.Sprintf("A snapshot of runtime image %s is built for hosts that cannot use those there are", img.ID.Short()), "image_id", img.ID)
		case !known[img.ID] && time.Since(img.CreatedAt) < firstBuildWithin:
			s.log.Info(fmt.Sprintf("The first snapshot of runtime image %s is built", img.ID.Short()), "image_id", img.ID)
		default:
			continue
		}
		s.queueRebuild(Rebuild{Image: img.ID, Platform: platform, Attempt: 1})
	}
}
