package controlplane

import (
	"context"
	"time"

	"warmboot"
)

// Start takes up what an earlier process left: containers whose microVM still runs are watched again, what was half made is
// released and reported, and what the host has but nobody knows is removed.
func (s *Service) Start(ctx context.Context) error {
	onHost, err := s.host.Containers(ctx)
	if err != nil {
		return err
	}
	have := map[warmboot.ID]HostContainer{}
	for _, h := range onHost {
		have[h.ID] = h
	}
	if err := s.recoverSnapshots(ctx); err != nil {
		return err
	}
	all, err := s.store.Containers(ctx, warmboot.ContainerFilter{})
	if err != nil {
		return err
	}
	for _, c := range all {
		if err := s.recoverContainer(ctx, c, have[c.ID]); err != nil {
			return err
		}
		delete(have, c.ID)
	}
	for id := range have {
		s.log.Warn("The host has a container that nobody knows; it is removed", "container_id", id)
		if err := s.host.RemoveContainer(ctx, id); err != nil {
			s.log.Error("It could not be removed", "container_id", id, "err", err)
		}
	}
	s.collect(ctx)
	if err := s.resumeRebuilds(ctx); err != nil {
		return err
	}
	return s.work.start(s.upkeep)
}

// recoverSnapshots ends the builds that died with the process that ran them.
func (s *Service) recoverSnapshots(ctx context.Context) error {
	snaps, err := s.store.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, snap := range snaps {
		if snap.State != warmboot.SnapshotCreating {
			continue
		}
		// The files may be whole, and the row not told.
		if err := s.host.RemoveSnapshot(ctx, *snap); err != nil {
			s.log.Error("What a build that was cut short has left could not be removed", "snapshot_id", snap.ID, "err", err)
		}
		if err := s.store.FailSnapshot(ctx, snap.ID, "warmboot ended while the snapshot was being built; rebuild it"); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) recoverContainer(ctx context.Context, c *warmboot.Container, h HostContainer) error {
	id := c.ID
	switch c.State {
	case warmboot.ContainerRunning, warmboot.ContainerStopping:
		if h.Running && c.State == warmboot.ContainerRunning {
			s.log.Info("Container "+id.Short()+" is still running", "container_id", id)
			s.watch(id)
			return nil
		}
		text := ""
		if c.State == warmboot.ContainerRunning {
			text = "its microVM ended while warmboot was not running"
		}
		code, err := s.host.StopContainer(ctx, id, 0)
		if err != nil {
			s.log.Error("A container that has ended could not be released", "container_id", id, "err", err)
		}
		s.recordEnd(ctx, id, code, text)
	case warmboot.ContainerCreating, warmboot.ContainerStarting:
		s.provisionFailed(ctx, *c, context.Canceled)
	case warmboot.ContainerStopped, warmboot.ContainerFailed:
		if h.Running { // its release failed, or was cut short
			if _, err := s.host.StopContainer(ctx, id, 0); err != nil {
				s.log.Error("The microVM of a container that has ended could not be released", "container_id", id, "err", err)
			}
		}
	case warmboot.ContainerDeleting:
		rctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := s.host.RemoveContainer(rctx, id); err != nil {
			s.log.Error("A container could not be deleted", "container_id", id, "err", err)
			return nil
		}
		return s.store.DeleteContainer(ctx, id)
	}
	return nil
}
