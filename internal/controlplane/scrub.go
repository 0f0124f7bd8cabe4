package controlplane

import (
	"context"
	"fmt"
	"slices"

	"warmboot"
)

// Scrub reads the files of every ready snapshot again, on each host that has them. Damaged ones are removed where another host has good
// ones; else the snapshot becomes unhealthy, and a new one is built.
func (s *Service) Scrub(ctx context.Context) error {
	all, err := s.store.Snapshots(ctx, warmboot.SnapshotFilter{States: []warmboot.SnapshotState{warmboot.SnapshotReady}})
	if err != nil {
		return err
	}
	for _, snap := range all {
		if err := s.scrub(ctx, snap); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) scrub(ctx context.Context, snap *warmboot.RuntimeSnapshot) error {
	var damage error
	var good, bad []warmboot.ID // hosts
	for _, h := range s.hosts.all() {
		if snap.HostID != "" && snap.HostID != h.ID && !slices.Contains(h.Inventory.Snapshots, snap.ID) {
			continue
		}
		host, err := s.reach(h.ID)
		if err == nil {
			err = host.ScrubSnapshot(ctx, *snap)
		}
		switch code := warmboot.CodeOf(err); {
		case err == nil:
			good = append(good, h.ID)
		case ctx.Err() != nil:
			return ctx.Err()
		case code == warmboot.Corrupt || code == warmboot.NotFound:
			damage, bad = err, append(bad, h.ID)
		default:
			s.log.Warn("A snapshot could not be scrubbed", "snapshot_id", snap.ID, "host_id", h.ID, "err", err)
		}
	}
	switch {
	case len(bad) == 0:
		return nil
	case len(good) > 0:
		return s.dropCopies(ctx, snap, bad, good[0])
	}
	return s.damaged(ctx, snap, damage)
}

// dropCopies removes damaged files where another host has good ones, and makes that one the snapshot's own if it has to be.
func (s *Service) dropCopies(ctx context.Context, snap *warmboot.RuntimeSnapshot, bad []warmboot.ID, good warmboot.ID) error {
	if slices.Contains(bad, snap.HostID) {
		after, err := s.store.UpdateSnapshot(ctx, snap.ID, func(now *warmboot.RuntimeSnapshot) error { now.HostID = good; return nil })
		if err != nil {
			return err
		}
		snap = after
	}
	for _, id := range bad {
		s.log.Error(fmt.Sprintf("The files of snapshot %s on host %s are damaged; they are removed, others have good ones", snap.ID.Short(), s.HostName(id)), "snapshot_id", snap.ID, "host_id", id)
		host, err := s.reach(id)
		if err == nil {
			err = host.RemoveSnapshot(ctx, *snap)
		}
		if err != nil {
			s.log.Warn("They could not be removed", "snapshot_id", snap.ID, "host_id", id, "err", err)
		}
	}
	return nil
}

// damaged makes a snapshot unhealthy whose files are good nowhere.
func (s *Service) damaged(ctx context.Context, snap *warmboot.RuntimeSnapshot, damage error) error {
	after, err := s.store.UpdateSnapshot(ctx, snap.ID, func(now *warmboot.RuntimeSnapshot) error {
		if now.State == warmboot.SnapshotReady { // else it was deleted while it was read
			now.State, now.Metadata.Error = warmboot.SnapshotUnhealthy, damage.Error()
		}
		return nil
	})
	if err != nil || after.State != warmboot.SnapshotUnhealthy {
		return ignoreConflict(err)
	}
	s.log.Error(fmt.Sprintf("Snapshot %s is damaged: %v; a new one is built", snap.ID.Short(), damage), "snapshot_id", snap.ID)
	s.rebuildSoon(after, after.Platform)
	return nil
}
