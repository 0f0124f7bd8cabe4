package controlplane_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/store"
)

// quick are rebuild delays for which a test can wait.
var quick = []time.Duration{0, time.Millisecond, time.Millisecond}

func TestAnOutdatedSnapshotIsMigrated(t *testing.T) {
	var old warmboot.ID
	goOn := make(chan struct{}, 1)
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		heldBuilds(goOn)(h, c)
		h.OnWarm = func(_ context.Context, _ controlplane.MachineSpec, snap warmboot.RuntimeSnapshot) error {
			if snap.ID == old {
				return warmboot.Errorf(warmboot.Incompatible, "use snapshot", "VMM version: snapshot has 7.2, this machine needs 8.0")
			}
			return nil
		}
	})
	goOn <- struct{}{}
	old = p.snapshot()
	for range 2 { // the second joins the build that the first began
		if c := p.create(controlplane.CreateContainer{}); c.BootMethod != warmboot.BootCold {
			t.Fatalf("%+v", c)
		}
	}
	p.log.want(t, `WARN Snapshot `+old.Short()+` does not fit any more .*VMM version.*: version migration, a new one is built`)
	if snap := p.waitState(old, warmboot.SnapshotReady); snap.FailureCount != 0 {
		t.Fatalf("it was counted: %+v", snap)
	}
	goOn <- struct{}{}
	p.waitState(old, warmboot.SnapshotDeleted)
	if c := p.create(controlplane.CreateContainer{}); c.BootMethod != warmboot.BootWarm {
		t.Fatalf("%+v", c)
	}
	if _, _, builds := p.host.Counts(); builds != 2 {
		t.Fatalf("%d builds", builds)
	}
}

func TestAutomaticBuildsThatFailAreGivenUp(t *testing.T) {
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		c.AutoSnapshot, c.RebuildDelays = true, quick
		h.OnBuild = func(context.Context, warmboot.RuntimeSnapshot) error {
			return warmboot.Errorf(warmboot.Exhausted, "build snapshot", "the disk is full")
		}
	})
	p.log.want(t, `ERROR The snapshot of runtime image `+p.img.ID.Short()+` was built 3 times without .*`)
	if _, _, builds := p.host.Counts(); builds != len(quick) {
		t.Fatalf("%d builds", builds)
	}
}

func TestSnapshotsThatNeverWorkAreNotBuiltForEver(t *testing.T) {
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		c.RebuildDelays = quick
		h.OnWarm = func(context.Context, controlplane.MachineSpec, warmboot.RuntimeSnapshot) error {
			return warmboot.Errorf(warmboot.Incompatible, "use snapshot", "the host changes all the time")
		}
	})
	p.snapshot()
	eventually(t, "it is given up", func() (struct{}, bool) {
		p.create(controlplane.CreateContainer{})
		return struct{}{}, slices.ContainsFunc(p.log.all(), func(line string) bool {
			return strings.HasPrefix(line, "ERROR The snapshot of runtime image "+p.img.ID.Short()+" was built 3 times without")
		})
	})
	if _, _, builds := p.host.Counts(); builds != 1+len(quick) {
		t.Fatalf("%d builds", builds)
	}
}

func TestAnImageGetsItsSnapshotByItself(t *testing.T) {
	p := newPlane(t, func(_ *hosttest.Host, c *controlplane.Config) { c.AutoSnapshot = true })
	snap := eventually(t, "there is a snapshot", func() (*warmboot.RuntimeSnapshot, bool) {
		all, err := p.svc.Snapshots(t.Context(), warmboot.SnapshotFilter{})
		p.must(err)
		if len(all) == 0 {
			return nil, false
		}
		return all[0], all[0].State == warmboot.SnapshotReady
	})
	if c := p.create(controlplane.CreateContainer{}); c.SnapshotID != snap.ID || snap.RuntimeImageID != p.img.ID {
		t.Fatalf("%+v", c)
	}
}

// A manager that dies after it has registered an image, and before it asks for the image's snapshot, leaves that to the next.
func TestALostFirstBuildIsMadeUpFor(t *testing.T) {
	p := newPlane(t, nil)
	shape := p.shape
	p.shape = func(c *controlplane.Config) { shape(c); c.AutoSnapshot = true }
	lost, old := runtimeImage("lost"), runtimeImage("old")
	for img, age := range map[*warmboot.Image]time.Duration{&lost: time.Minute, &old: 25 * time.Hour} {
		img.ID, img.Digest, img.CreatedAt = warmboot.NewID(), img.Name, time.Now().UTC().Add(-age)
	}
	p.stop()
	p.offline(func(st *store.Store) {
		p.must(st.CreateImage(t.Context(), &lost))
		p.must(st.CreateImage(t.Context(), &old))
	})
	p.start()
	eventually(t, "the image that lost its build has a snapshot", func() (bool, bool) {
		all, err := p.svc.Snapshots(t.Context(), warmboot.SnapshotFilter{})
		p.must(err)
		ready := false
		for _, snap := range all {
			if snap.RuntimeImageID == old.ID {
				t.Fatal("what somebody may have deleted a snapshot of was built again")
			}
			ready = ready || snap.RuntimeImageID == lost.ID && snap.State == warmboot.SnapshotReady
		}
		return ready, ready
	})
}

func TestARebuildIsTakenUpAfterARestart(t *testing.T) {
	p := newPlane(t, nil)
	old := p.snapshot()
	p.stop()
	p.offline(func(st *store.Store) { p.must(st.FailSnapshot(t.Context(), old, "its files are damaged")) })
	p.start()
	p.waitState(old, warmboot.SnapshotDeleted)
}
