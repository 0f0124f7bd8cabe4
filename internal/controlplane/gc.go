package controlplane

import (
	"context"
	"fmt"
	"time"

	"warmboot"
)

// Garbage is something on a host that may be of no use any more. Whether it is, only the control plane knows.
type Garbage struct {
	Kind     GarbageKind
	Path     string
	Bytes    int64       // on disk
	ID       warmboot.ID // of a container or snapshot
	ImageID  warmboot.ID // the runtime image of a snapshot
	Modified time.Time   // of a runtime image
}

// GarbageKind is a kind of garbage.
type GarbageKind string

// The kinds of garbage.
const (
	GarbageSnapshot  GarbageKind = "snapshot"  // an artifact
	GarbageContainer GarbageKind = "container" // a container's disk and log
	GarbageTemporary GarbageKind = "temporary" // left by a build that no longer runs
	GarbageImage     GarbageKind = "image"     // a runtime image, or what one was made from
)

// imageKeep is how long a runtime image that nobody has registered stays: somebody may be about to.
const imageKeep = 7 * 24 * time.Hour

// Collected is one thing that garbage collection did, or would do.
type Collected struct {
	Kind   GarbageKind
	Action CollectAction
	ID     warmboot.ID // of a snapshot or container
	Path   string
	Bytes  int64 // of disk space that it frees
	Reason string
	Error  string // why it could not be done
}

// CollectAction is what was done with a piece of garbage.
type CollectAction string

// What garbage collection does.
const (
	CollectDelete CollectAction = "delete" // a snapshot is marked deleted; its files go too
	CollectRemove CollectAction = "remove" // files are removed
	CollectForget CollectAction = "forget" // the row of a deleted snapshot without files
)

// CollectGarbage removes what is of no use any more, and reports it; with dryRun it only reports. In order: snapshots unused for
// longer than the TTL are deleted; files of deleted snapshots on which no container is based go; so do files of snapshots and
// containers that nobody knows, what dead builds have left, and old runtime images that nobody has registered. The row of a deleted
// snapshot stays until the first collection that finds it deleted already, so that it can be looked at meanwhile.
func (s *Service) CollectGarbage(ctx context.Context, dryRun bool) ([]Collected, error) {
	s.gc.Lock()
	defer s.gc.Unlock()
	// The host first: whatever it has, the store knows already, if anybody does.
	found, err := s.host.Garbage(ctx)
	if err != nil {
		return nil, err
	}
	c := &collection{s: s, dryRun: dryRun, artifacts: map[warmboot.ID]Garbage{}, basedOn: map[warmboot.ID]bool{}}
	for _, g := range found {
		if g.Kind == GarbageSnapshot {
			c.artifacts[g.ID] = g
		}
	}
	containers, err := s.store.Containers(ctx, warmboot.ContainerFilter{})
	if err != nil {
		return nil, err
	}
	known := map[warmboot.ID]bool{}
	for _, container := range containers {
		known[container.ID] = true
		c.basedOn[container.SnapshotID] = true
	}
	images, err := s.store.Images(ctx)
	if err != nil {
		return nil, err
	}
	snaps, err := s.store.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for _, snap := range snaps {
		known[snap.ID] = true
		c.snapshot(ctx, *snap)
	}
	used, err := s.host.ImageFiles(ctx, images)
	if err != nil {
		return nil, err
	}
	for _, g := range found {
		switch {
		case g.Kind == GarbageTemporary:
			c.do(g, CollectRemove, "what a build that ended has left", func() error { return s.host.Discard(ctx, g) })
		case g.Kind == GarbageContainer && !known[g.ID]:
			c.do(g, CollectRemove, "nobody knows the container", func() error { return s.host.RemoveContainer(ctx, g.ID) })
		case g.Kind == GarbageSnapshot && !known[g.ID]:
			orphan := warmboot.RuntimeSnapshot{ID: g.ID, RuntimeImageID: g.ImageID}
			c.do(g, CollectRemove, "nobody knows the snapshot", func() error { return s.host.RemoveSnapshot(ctx, orphan) })
		case g.Kind == GarbageImage && !used[g.Path] && time.Since(g.Modified) > imageKeep:
			c.do(g, CollectRemove, "no runtime image that is registered needs it", func() error { return s.host.Discard(ctx, g) })
		}
	}
	return c.done, ctx.Err()
}

// collection is one run of CollectGarbage.
type collection struct {
	s         *Service
	dryRun    bool
	artifacts map[warmboot.ID]Garbage
	basedOn   map[warmboot.ID]bool // snapshots that containers stand on
	done      []Collected
}

// snapshot decides about one snapshot that the store knows.
func (c *collection) snapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) {
	g, onHost := c.artifacts[snap.ID]
	if !onHost {
		g = Garbage{Kind: GarbageSnapshot, ID: snap.ID, Path: snap.SnapshotPath}
	}
	remove := func() error { return c.s.host.RemoveSnapshot(ctx, snap) }
	switch snap.State {
	case warmboot.SnapshotReady, warmboot.SnapshotUnhealthy:
		unused := time.Since(lastUse(&snap))
		if unused <= c.s.snapshotTTL || c.basedOn[snap.ID] {
			return
		}
		c.do(g, CollectDelete, fmt.Sprintf("unused for %d days", int(unused.Hours()/24)), func() error {
			if err := c.s.store.DeleteSnapshot(ctx, snap.ID); err != nil {
				return err
			}
			c.s.changes.notify(snap.ID)
			if err := remove(); warmboot.CodeOf(err) != warmboot.Conflict { // else a container has just started from it
				return err
			}
			return nil
		})
	case warmboot.SnapshotDeleted:
		if c.basedOn[snap.ID] {
			return
		}
		if onHost && !c.do(g, CollectRemove, "the snapshot is deleted", remove) {
			return
		}
		g.Bytes = 0
		c.do(g, CollectForget, "the snapshot is deleted and its files are gone", func() error { return c.s.store.ForgetSnapshot(ctx, snap.ID) })
	}
}

// do does one thing, unless nothing is to be done, and notes it. What a container has come to need meanwhile is left.
func (c *collection) do(g Garbage, action CollectAction, reason string, act func() error) bool {
	entry := Collected{Kind: g.Kind, Action: action, ID: g.ID, Path: g.Path, Bytes: g.Bytes, Reason: reason}
	if !c.dryRun {
		err := act()
		if warmboot.CodeOf(err) == warmboot.Conflict {
			return false
		}
		if err != nil {
			entry.Bytes, entry.Error = 0, err.Error()
			c.s.log.Warn("Garbage could not be collected", "kind", g.Kind, "path", g.Path, "err", err)
		} else {
			c.s.log.Info("Garbage collected: "+reason, "kind", g.Kind, "action", action, "path", g.Path, "bytes", g.Bytes)
		}
	}
	c.done = append(c.done, entry)
	return entry.Error == ""
}

// lastUse is when a snapshot was last restored from, or made.
func lastUse(snap *warmboot.RuntimeSnapshot) time.Time {
	if snap.LastUsedAt != nil {
		return *snap.LastUsedAt
	}
	return snap.CreatedAt
}

// evictSnapshot deletes the snapshot that was least recently used of those that no container stands on. It reports whether
// there was one.
func (s *Service) evictSnapshot(ctx context.Context, candidates []*warmboot.RuntimeSnapshot) (bool, error) {
	containers, err := s.store.Containers(ctx, warmboot.ContainerFilter{})
	if err != nil {
		return false, err
	}
	basedOn := map[warmboot.ID]bool{}
	for _, c := range containers {
		basedOn[c.SnapshotID] = true
	}
	var oldest *warmboot.RuntimeSnapshot
	for _, snap := range candidates {
		settled := snap.State == warmboot.SnapshotReady || snap.State == warmboot.SnapshotUnhealthy
		if settled && !basedOn[snap.ID] && (oldest == nil || lastUse(snap).Before(lastUse(oldest))) {
			oldest = snap
		}
	}
	if oldest == nil {
		return false, nil
	}
	if err := s.store.DeleteSnapshot(ctx, oldest.ID); err != nil {
		return false, err
	}
	s.changes.notify(oldest.ID)
	s.log.Info(fmt.Sprintf("Snapshot %s, the least recently used, makes room for another", oldest.ID.Short()), "snapshot_id", oldest.ID)
	if err := s.host.RemoveSnapshot(ctx, *oldest); err != nil && warmboot.CodeOf(err) != warmboot.Conflict {
		return false, err
	}
	return true, nil
}
