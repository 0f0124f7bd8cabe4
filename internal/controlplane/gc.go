package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// forgetDeletedAfter is how long it is remembered that a container was deleted. A host that was away for longer may bring it back.
const forgetDeletedAfter = 30 * 24 * time.Hour

// CollectGarbage removes what is of no use any more, and reports it; with dryRun it only reports. In order: snapshots unused for
// longer than the TTL are deleted; files of deleted snapshots on which no container is based go; so do files of snapshots and
// containers that nobody knows, what dead builds have left, and old runtime images that nobody has registered. The row of a deleted
// snapshot stays until the first collection that finds it deleted already, so that it can be looked at meanwhile. What is on a host that
// is down waits for it.
func (s *Service) CollectGarbage(ctx context.Context, dryRun bool) ([]Collected, error) {
	s.gc.Lock()
	defer s.gc.Unlock()
	c := &collection{s: s, dryRun: dryRun, artifacts: map[warmboot.ID][]onHost{}, basedOn: map[warmboot.ID]bool{}, away: map[warmboot.ID]bool{}}
	// The hosts first: whatever they have, the store knows already, if anybody does.
	found, err := c.look(ctx)
	if err != nil {
		return nil, err
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
	images, err := s.store.Images(ctx, warmboot.Page{})
	if err != nil {
		return nil, err
	}
	snaps, err := s.store.Snapshots(ctx, warmboot.SnapshotFilter{})
	if err != nil {
		return nil, err
	}
	for _, snap := range snaps {
		known[snap.ID] = true
		c.snapshot(ctx, *snap)
	}
	for _, h := range found {
		used, err := h.host.ImageFiles(ctx, images)
		if err != nil {
			return nil, err
		}
		forgotten, err := s.forgotten(ctx, h.containers, known)
		if err != nil {
			return nil, err
		}
		for _, g := range h.garbage {
			if !forgotten[g.ID] {
				c.rest(ctx, onHost{h.host, g}, known, used)
			}
		}
	}
	if !dryRun {
		if err := s.store.ForgetDeletedContainers(ctx, time.Now().Add(-forgetDeletedAfter)); err != nil {
			return nil, err
		}
	}
	return c.done, ctx.Err()
}

// collection is one run of CollectGarbage.
type collection struct {
	s         *Service
	dryRun    bool
	artifacts map[warmboot.ID][]onHost // by snapshot
	away      map[warmboot.ID]bool     // hosts that could not be asked
	basedOn   map[warmboot.ID]bool     // snapshots that containers stand on
	done      []Collected
}

// onHost is a piece of garbage and where it is.
type onHost struct {
	host Host
	Garbage
}

// lookedAt is a host and what it has.
type lookedAt struct {
	host       Host
	garbage    []Garbage
	containers []HostContainer
}

// look asks every host that is up for what it has.
func (c *collection) look(ctx context.Context) ([]lookedAt, error) {
	var found []lookedAt
	for _, h := range c.s.hosts.all() {
		host, err := c.s.reach(h.ID)
		var garbage []Garbage
		if err == nil {
			garbage, err = host.Garbage(ctx)
		}
		var containers []HostContainer
		if err == nil {
			containers, err = host.Containers(ctx)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			c.away[h.ID] = true
			c.s.log.Warn("Host "+h.Name+" could not be asked for its garbage", "host_id", h.ID, "err", err)
			continue
		}
		found = append(found, lookedAt{host, garbage, containers})
		for _, g := range garbage {
			if g.Kind == GarbageSnapshot {
				c.artifacts[g.ID] = append(c.artifacts[g.ID], onHost{host, g})
			}
		}
	}
	return found, nil
}

// snapshot decides about one snapshot that the store knows.
func (c *collection) snapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) {
	copies := c.artifacts[snap.ID]
	remove := func(o onHost) error { return o.host.RemoveSnapshot(ctx, snap) }
	switch snap.State {
	case warmboot.SnapshotReady, warmboot.SnapshotUnhealthy:
		unused := time.Since(lastUse(&snap))
		if unused <= c.s.SnapshotTTL || c.basedOn[snap.ID] {
			return
		}
		g := Garbage{Kind: GarbageSnapshot, ID: snap.ID, Path: snap.SnapshotPath}
		for _, o := range copies {
			g.Bytes += o.Bytes
		}
		c.do(g, CollectDelete, fmt.Sprintf("unused for %d days", int(unused.Hours()/24)), func() error {
			if err := c.s.store.DeleteSnapshot(ctx, snap.ID); err != nil {
				return err
			}
			for _, o := range copies {
				if err := remove(o); warmboot.CodeOf(err) != warmboot.Conflict && err != nil { // else a container has just started from it
					return err
				}
			}
			return nil
		})
	case warmboot.SnapshotDeleted:
		if c.basedOn[snap.ID] || c.away[snap.HostID] {
			return
		}
		for _, o := range copies {
			if !c.do(o.Garbage, CollectRemove, "the snapshot is deleted", func() error { return remove(o) }) {
				return
			}
		}
		g := Garbage{Kind: GarbageSnapshot, ID: snap.ID, Path: snap.SnapshotPath}
		c.do(g, CollectForget, "the snapshot is deleted and its files are gone", func() error { return c.s.store.ForgetSnapshot(ctx, snap.ID) })
	}
}

// rest decides about what no row of a snapshot stands for.
func (c *collection) rest(ctx context.Context, g onHost, known map[warmboot.ID]bool, used map[string]bool) {
	switch {
	case g.Kind == GarbageTemporary:
		c.do(g.Garbage, CollectRemove, "what a build that ended has left", func() error { return g.host.Discard(ctx, g.Garbage) })
	case g.Kind == GarbageContainer && !known[g.ID]:
		c.do(g.Garbage, CollectRemove, "nobody knows the container", func() error { return g.host.RemoveContainer(ctx, ContainerRef{ID: g.ID}) })
	case g.Kind == GarbageSnapshot && !known[g.ID]:
		orphan := warmboot.RuntimeSnapshot{ID: g.ID, RuntimeImageID: g.ImageID}
		c.do(g.Garbage, CollectRemove, "nobody knows the snapshot", func() error { return g.host.RemoveSnapshot(ctx, orphan) })
	case g.Kind == GarbageImage && !used[g.Path] && time.Since(g.Modified) > imageKeep:
		c.do(g.Garbage, CollectRemove, "no runtime image that is registered needs it", func() error { return g.host.Discard(ctx, g.Garbage) })
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

// evictSnapshots deletes the n snapshots that were least recently used of those that no container stands on. If there are not as many it deletes none, and
// reports that.
func (s *Service) evictSnapshots(ctx context.Context, candidates []*warmboot.RuntimeSnapshot, n int) (enough bool, err error) {
	containers, err := s.store.Containers(ctx, warmboot.ContainerFilter{})
	if err != nil {
		return false, err
	}
	basedOn := map[warmboot.ID]bool{}
	for _, c := range containers {
		basedOn[c.SnapshotID] = true
	}
	var free []*warmboot.RuntimeSnapshot
	for _, snap := range candidates {
		if settled := snap.State == warmboot.SnapshotReady || snap.State == warmboot.SnapshotUnhealthy; settled && !basedOn[snap.ID] {
			free = append(free, snap)
		}
	}
	if len(free) < n {
		return false, nil
	}
	slices.SortFunc(free, func(a, b *warmboot.RuntimeSnapshot) int { return lastUse(a).Compare(lastUse(b)) })
	for _, oldest := range free[:n] {
		if err := s.store.DeleteSnapshot(ctx, oldest.ID); err != nil {
			return false, err
		}
		s.log.Info(fmt.Sprintf("Snapshot %s, the least recently used, makes room for another", oldest.ID.Short()), "snapshot_id", oldest.ID)
		if err := s.removeCopies(ctx, oldest); err != nil {
			return false, err
		}
	}
	return true, nil
}

// removeCopies removes a deleted snapshot's files from the hosts that have them. What is still in use, or on a host that is down, is left
// for the next time.
func (s *Service) removeCopies(ctx context.Context, snap *warmboot.RuntimeSnapshot) error {
	var errs []error
	for _, h := range s.hosts.all() {
		if h.State != warmboot.HostUp || snap.HostID != "" && snap.HostID != h.ID && !slices.Contains(h.Inventory.Snapshots, snap.ID) {
			continue
		}
		host, err := s.reach(h.ID)
		if err == nil {
			err = host.RemoveSnapshot(ctx, *snap)
		}
		if code := warmboot.CodeOf(err); code != warmboot.Conflict && code != warmboot.Unavailable {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// collectSoon removes, in the background, the files of deleted snapshots that no machine or disk is based on any more.
func (s *Service) collectSoon() {
	if !s.collecting.CompareAndSwap(false, true) {
		return // what has just become garbage is seen by the collection that is about to begin, or by the next
	}
	if err := s.work.start(func() {
		s.collecting.Store(false)
		s.collect(s.ctx)
	}); err != nil {
		s.collecting.Store(false)
	}
}

func (s *Service) collect(ctx context.Context) {
	all, err := s.store.Snapshots(ctx, warmboot.SnapshotFilter{States: []warmboot.SnapshotState{warmboot.SnapshotDeleted}})
	if err != nil {
		s.log.Warn("Deleted snapshots could not be listed", "err", err)
		return
	}
	for _, snap := range all {
		if snap.SnapshotPath == "" {
			continue
		}
		if err := s.removeCopies(ctx, snap); err != nil {
			s.log.Warn("The files of a deleted snapshot could not be removed", "snapshot_id", snap.ID, "err", err)
		}
	}
}
