package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/store"
)

// heldBuilds makes builds stand still until they are let go on or canceled.
func heldBuilds(goOn <-chan struct{}) func(*hosttest.Host, *controlplane.Config) {
	return func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnBuild = func(ctx context.Context, _ warmboot.RuntimeSnapshot) error {
			select {
			case <-goOn:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func TestTwoBuildsOfOneImageAreOne(t *testing.T) {
	goOn := make(chan struct{})
	p := newPlane(t, heldBuilds(goOn))
	ids := make([]warmboot.ID, 8)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = p.svc.BuildSnapshot(t.Context(), p.img.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	close(goOn)
	for _, id := range ids {
		if id != ids[0] {
			t.Fatalf("several builds: %v", ids)
		}
	}
	p.waitState(ids[0], warmboot.SnapshotReady)
	if _, _, builds := p.host.Counts(); builds != 1 {
		t.Fatalf("%d builds ran", builds)
	}
}

func TestBuildOfAnUnknownImage(t *testing.T) {
	p := newPlane(t, nil)
	id := warmboot.NewID()
	_, err := p.svc.BuildSnapshot(t.Context(), id)
	p.wantCode(err, warmboot.NotFound, string(id))
}

func TestDeleteWhileBuilding(t *testing.T) {
	goOn := make(chan struct{})
	p := newPlane(t, heldBuilds(goOn))
	id, err := p.svc.BuildSnapshot(t.Context(), p.img.ID)
	p.must(err)
	eventually(t, "it is built", func() (struct{}, bool) {
		_, _, builds := p.host.Counts()
		return struct{}{}, builds == 1
	})
	p.must(p.svc.DeleteSnapshot(t.Context(), id))
	p.must(p.svc.DeleteSnapshot(t.Context(), id))
	// A new build does not join the one that comes to nothing.
	next, err := p.svc.BuildSnapshot(t.Context(), p.img.ID)
	p.must(err)
	if next == id {
		t.Fatal("the new build is the deleted one")
	}
	p.log.want(t, `INFO Snapshot `+id.Short()+` was deleted while it was being built`)
	close(goOn)
	p.waitState(next, warmboot.SnapshotReady)
	p.waitState(id, warmboot.SnapshotDeleted)
	if p.host.HasSnapshot(id) {
		t.Error("files of the deleted snapshot are left")
	}
}

// TestDeleteJustAsTheBuildEnds deletes the row while the host, which does not listen to a cancel, finishes its work.
func TestDeleteJustAsTheBuildEnds(t *testing.T) {
	var p *plane
	p = newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnBuild = func(_ context.Context, snap warmboot.RuntimeSnapshot) error {
			return p.store.DeleteSnapshot(context.Background(), snap.ID)
		}
	})
	id, err := p.svc.BuildSnapshot(t.Context(), p.img.ID)
	p.must(err)
	p.log.want(t, `INFO Snapshot `+id.Short()+` was deleted while it was being built`)
	p.waitState(id, warmboot.SnapshotDeleted)
	if p.host.HasSnapshot(id) {
		t.Error("files of the deleted snapshot are left")
	}
}

func TestRebuildReplacesOnceReady(t *testing.T) {
	goOn := make(chan struct{}, 1)
	p := newPlane(t, heldBuilds(goOn))
	goOn <- struct{}{}
	old := p.snapshot()
	next, err := p.svc.RebuildSnapshot(t.Context(), old)
	p.must(err)
	if c := p.create(controlplane.CreateContainer{Name: "meanwhile"}); c.SnapshotID != old {
		t.Fatalf("the old one did not serve: %+v", c)
	}
	goOn <- struct{}{}
	p.waitState(next, warmboot.SnapshotReady)
	p.waitState(old, warmboot.SnapshotDeleted)
	if !p.host.HasSnapshot(old) {
		t.Fatal("the files that a machine needs are gone")
	}
	if c := p.create(controlplane.CreateContainer{}); c.SnapshotID != next {
		t.Fatalf("the new one does not serve: %+v", c)
	}
	p.must(p.svc.DeleteContainer(t.Context(), "meanwhile", true))
	eventually(t, "the files of the old snapshot go", func() (struct{}, bool) { return struct{}{}, !p.host.HasSnapshot(old) })
	_, err = p.svc.RebuildSnapshot(t.Context(), old)
	p.wantCode(err, warmboot.Conflict, "deleted")
}

// TestLimitOfSnapshots is about rebuilds; TestTheLeastRecentlyUsedSnapshotMakesRoom about what goes at the limit.
func TestLimitOfSnapshots(t *testing.T) {
	p := newPlane(t, func(_ *hosttest.Host, c *controlplane.Config) { c.MaxSnapshots = 2 })
	var images []*warmboot.Image
	for i := range 2 {
		img, err := p.svc.RegisterImage(t.Context(), warmboot.Image{Name: fmt.Sprintf("image%d", i), KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"})
		p.must(err)
		images = append(images, img)
	}
	var last warmboot.ID
	for _, img := range images {
		id, err := p.svc.BuildSnapshot(t.Context(), img.ID)
		p.must(err)
		p.waitState(id, warmboot.SnapshotReady)
		last = id
	}
	eventually(t, "a rebuild is not counted twice", func() (struct{}, bool) {
		next, err := p.svc.RebuildSnapshot(t.Context(), last)
		p.must(err)
		return struct{}{}, next != last
	})
}

// An automatic build waits for room, and is not wanted any more once somebody has asked for one.
func TestAnAutomaticBuildAtTheLimit(t *testing.T) {
	p := newPlane(t, func(_ *hosttest.Host, c *controlplane.Config) { c.MaxSnapshots = 1 })
	p.snapshot()
	stands := p.create(controlplane.CreateContainer{}) // so that the snapshot has to stay
	img, err := p.svc.RegisterImage(t.Context(), runtimeImage("another"))
	p.must(err)
	wanted := controlplane.Rebuild{Image: img.ID, Platform: p.host.Platform, Attempt: 1, Snapshot: warmboot.NewID()}
	if err := p.svc.RunRebuild(t.Context(), wanted); !errors.Is(err, controlplane.ErrNoRoom) {
		t.Fatalf("at the limit: %v", err)
	}
	p.log.want(t, `WARN An automatic build of the snapshot of runtime image `+img.ID.Short()+` has to wait: .*MANAGER_MAX_RUNTIME_SNAPSHOTS is 1.*`)
	p.must(p.svc.DeleteContainer(t.Context(), stands.Name, true))
	p.must(p.svc.RunRebuild(t.Context(), wanted))
	p.waitState(wanted.Snapshot, warmboot.SnapshotReady)
	again := wanted
	again.Snapshot = warmboot.NewID()
	p.must(p.svc.RunRebuild(t.Context(), again))
	if _, err := p.svc.Snapshot(t.Context(), again.Snapshot); warmboot.CodeOf(err) != warmboot.NotFound {
		t.Errorf("a second one is built: %v", err)
	}
}

func TestABuildThatCloseUndoesIsTakenUp(t *testing.T) {
	goOn := make(chan struct{})
	p := newPlane(t, heldBuilds(goOn))
	id, err := p.svc.BuildSnapshot(t.Context(), p.img.ID)
	p.must(err)
	eventually(t, "it is built", func() (struct{}, bool) {
		_, _, builds := p.host.Counts()
		return struct{}{}, builds == 1
	})
	p.stop()
	var snap *warmboot.RuntimeSnapshot
	p.offline(func(st *store.Store) { snap, err = st.Snapshot(t.Context(), id) })
	p.must(err)
	if snap.State != warmboot.SnapshotCreating || snap.Lease.Held || snap.Metadata.Step != "" || p.host.HasSnapshot(id) {
		t.Fatalf("%+v", snap)
	}
	close(goOn)
	p.start()
	p.waitState(id, warmboot.SnapshotReady)
}

// TestARepeatedBuildEnds: of two requests that are one, to two managers, the second may find no build any more that it could join.
func TestARepeatedBuildEnds(t *testing.T) {
	p := newPlane(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	receipt := func() *warmboot.Receipt { return &warmboot.Receipt{Key: "k", Request: "r", CreatedAt: time.Now()} }
	first := receipt()
	id, err := p.svc.BuildSnapshot(warmboot.WithReceipt(ctx, first), p.img.ID)
	p.must(err)
	p.waitState(id, warmboot.SnapshotReady)
	_, err = p.svc.BuildSnapshot(warmboot.WithReceipt(ctx, receipt()), p.img.ID)
	var repeated *warmboot.Repeated
	if !errors.As(err, &repeated) || repeated.Receipt.EntityID != id || first.EntityID != id {
		t.Fatalf("%v", err)
	}
}
