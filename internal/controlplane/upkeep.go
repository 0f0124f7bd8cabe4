package controlplane

import (
	"context"
	"fmt"
	"time"

	"warmboot"
)

// When the daily work is done. The first time comes soon after the start, because a machine that is off every night would never
// reach the second.
const (
	upkeepFirst = 10 * time.Minute
	upkeepEvery = 24 * time.Hour
)

// upkeep does the daily work until the Service closes.
func (s *Service) upkeep() {
	timer := time.NewTimer(upkeepFirst)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-s.ctx.Done():
			return
		}
		timer.Reset(upkeepEvery)
		if _, err := s.CollectGarbage(s.ctx, false); err != nil {
			s.log.Warn("Garbage collection failed; it is tried again tomorrow", "err", err)
		}
		if err := s.Scrub(s.ctx); err != nil {
			s.log.Warn("Scrubbing failed; it is tried again tomorrow", "err", err)
		}
	}
}

// Scrub reads the files of every ready snapshot again. One that is damaged becomes unhealthy, and a new one is built.
func (s *Service) Scrub(ctx context.Context) error {
	all, err := s.store.Snapshots(ctx)
	if err != nil {
		return err
	}
	for _, snap := range all {
		if snap.State != warmboot.SnapshotReady {
			continue
		}
		err := s.host.ScrubSnapshot(ctx, *snap)
		switch {
		case err == nil:
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		}
		if code := warmboot.CodeOf(err); code != warmboot.Corrupt && code != warmboot.NotFound {
			s.log.Warn("A snapshot could not be scrubbed", "snapshot_id", snap.ID, "err", err)
			continue
		}
		now, readErr := s.store.Snapshot(ctx, snap.ID)
		if readErr != nil {
			return readErr
		}
		if now.State != warmboot.SnapshotReady { // deleted while it was read
			continue
		}
		s.log.Error(fmt.Sprintf("Snapshot %s is damaged: %v; a new one is built", snap.ID.Short(), err), "snapshot_id", snap.ID)
		if err := s.store.FailSnapshot(ctx, snap.ID, err.Error()); err != nil {
			return err
		}
		s.changes.notify(snap.ID)
		s.rebuildSoon(snap.RuntimeImageID, snap.ID)
	}
	return nil
}
