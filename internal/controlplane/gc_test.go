package controlplane_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
)

// collect runs a garbage collection and returns "action kind id-or-path" of what it did.
func (p *plane) collect(dryRun bool) []string {
	p.t.Helper()
	done, err := p.svc.CollectGarbage(p.t.Context(), dryRun)
	p.must(err)
	var all []string
	for _, c := range done {
		what := string(c.ID)
		if what == "" {
			what = c.Path
		}
		if c.Error != "" {
			p.t.Errorf("%+v", c)
		}
		all = append(all, fmt.Sprintf("%s %s %s", c.Action, c.Kind, what))
	}
	return all
}

func (p *plane) wantCollected(got []string, want ...string) {
	p.t.Helper()
	if !slices.Equal(got, want) {
		p.t.Fatalf("collected %q, want %q", got, want)
	}
}

// lastUsed sets when a snapshot was last restored from.
func (p *plane) lastUsed(id warmboot.ID, at time.Time) {
	p.t.Helper()
	p.must(p.store.RecordSuccesses(p.t.Context(), id, at, 1))
}

func TestASnapshotThatNobodyUsesGoesWithItsFilesThenItsRow(t *testing.T) {
	p := newPlane(t, nil)
	id := p.snapshot()
	p.lastUsed(id, time.Now().Add(-29*24*time.Hour))
	p.wantCollected(p.collect(false))
	p.lastUsed(id, time.Now().Add(-31*24*time.Hour))
	p.wantCollected(p.collect(true), "delete snapshot "+string(id))
	if p.waitState(id, warmboot.SnapshotReady); !p.host.HasSnapshot(id) {
		t.Fatal("a dry run removed something")
	}
	p.wantCollected(p.collect(false), "delete snapshot "+string(id))
	if p.waitState(id, warmboot.SnapshotDeleted); p.host.HasSnapshot(id) {
		t.Fatal("its files are left")
	}
	p.wantCollected(p.collect(false), "forget snapshot "+string(id))
	_, err := p.svc.Snapshot(t.Context(), id)
	p.wantCode(err, warmboot.NotFound)
	p.wantCollected(p.collect(false))
}

func TestASnapshotThatAContainerStandsOnStays(t *testing.T) {
	p := newPlane(t, nil)
	id := p.snapshot()
	p.create(controlplane.CreateContainer{Name: "web"})
	p.lastUsed(id, time.Now().Add(-31*24*time.Hour))
	p.wantCollected(p.collect(false))
	p.must(p.svc.DeleteSnapshot(t.Context(), id))
	p.wantCollected(p.collect(false))
	if !p.host.HasSnapshot(id) {
		t.Fatal("the files of a machine that runs were removed")
	}
}

func TestLeftoversGo(t *testing.T) {
	old, fresh := time.Now().Add(-8*24*time.Hour), time.Now()
	p := newPlane(t, nil)
	p.create(controlplane.CreateContainer{})
	lost := warmboot.NewID()
	_, err := p.host.ColdBoot(t.Context(), controlplane.MachineSpec{Container: controlplane.ContainerRef{ID: lost}})
	p.must(err)
	orphan := warmboot.NewID()
	_, err = p.host.BuildSnapshot(t.Context(), warmboot.RuntimeSnapshot{ID: orphan}, *p.img, func(string) {})
	p.must(err)
	image := func(path string, at time.Time) controlplane.Garbage {
		return controlplane.Garbage{Kind: controlplane.GarbageImage, Path: path, Modified: at}
	}
	p.host.Litter(controlplane.Garbage{Kind: controlplane.GarbageTemporary, Path: "/draft"},
		image(p.img.KernelPath, old), image("/fresh", fresh), image("/old", old))
	got := p.collect(false)
	slices.Sort(got)
	p.wantCollected(got, "remove container "+string(lost), "remove image /old", "remove snapshot "+string(orphan), "remove temporary /draft")
	p.wantCollected(p.collect(false))
}

func TestTheLeastRecentlyUsedSnapshotMakesRoom(t *testing.T) {
	p := newPlane(t, func(_ *hosttest.Host, c *controlplane.Config) { c.MaxSnapshots = 2 })
	var snaps []warmboot.ID
	build := func(name string) (warmboot.ID, error) {
		img, err := p.svc.RegisterImage(t.Context(), warmboot.Image{Name: name, KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"})
		p.must(err)
		return p.svc.BuildSnapshot(t.Context(), img.ID)
	}
	for i, age := range []time.Duration{time.Hour, 2 * time.Hour} {
		id, err := build(fmt.Sprint("image", i))
		p.must(err)
		p.waitState(id, warmboot.SnapshotReady)
		p.lastUsed(id, time.Now().Add(-age))
		snaps = append(snaps, id)
	}
	third, err := build("image2")
	p.must(err)
	p.waitState(third, warmboot.SnapshotReady)
	p.waitState(snaps[1], warmboot.SnapshotDeleted)
	p.waitState(snaps[0], warmboot.SnapshotReady)
	if p.host.HasSnapshot(snaps[1]) {
		t.Fatal("its files are left")
	}
	// Once containers stand on both, none can go.
	for _, ref := range []string{"image0", "image2"} {
		img, err := p.svc.Image(t.Context(), ref)
		p.must(err)
		p.create(controlplane.CreateContainer{RuntimeImageID: img.ID})
	}
	_, err = build("image3")
	p.wantCode(err, warmboot.Conflict, "MANAGER_MAX_RUNTIME_SNAPSHOTS is 2", "containers that stand on it")
	// A limit that is lower than it was is kept from the next build on. What goes, goes only if that makes room.
	all, err := p.svc.Containers(t.Context(), warmboot.ContainerFilter{})
	p.must(err)
	p.svc.MaxSnapshots = 1
	for _, c := range all {
		p.must(p.svc.DeleteContainer(t.Context(), string(c.ID), true))
		if c.ID == all[0].ID {
			_, err := build("too early")
			p.wantCode(err, warmboot.Conflict, "there are 2 already, MANAGER_MAX_RUNTIME_SNAPSHOTS is 1")
			p.waitState(snaps[0], warmboot.SnapshotReady)
			p.waitState(third, warmboot.SnapshotReady)
		}
	}
	fourth, err := build("image4")
	p.must(err)
	p.waitState(fourth, warmboot.SnapshotReady)
	p.waitState(snaps[0], warmboot.SnapshotDeleted)
	p.waitState(third, warmboot.SnapshotDeleted)
}

func TestScrubbingFindsDamage(t *testing.T) {
	var damaged warmboot.ID
	var other error
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnScrub = func(_ context.Context, snap warmboot.RuntimeSnapshot) error {
			if snap.ID == damaged {
				return warmboot.Errorf(warmboot.Corrupt, "scrub snapshot", "snapshot.mem is not what was written")
			}
			return other
		}
	})
	id := p.snapshot()
	other = warmboot.Errorf(warmboot.Unavailable, "scrub snapshot", "the disk does not answer")
	p.must(p.svc.Scrub(t.Context()))
	p.waitState(id, warmboot.SnapshotReady)
	damaged = id
	p.must(p.svc.Scrub(t.Context()))
	p.log.want(t, `ERROR Snapshot `+id.Short()+` is damaged: .*snapshot.mem is not what was written; a new one is built`)
	if got := p.waitState(id, warmboot.SnapshotDeleted); got.Metadata.Error == "" || got.FailureCount != 0 {
		t.Fatalf("%+v", got)
	}
}
