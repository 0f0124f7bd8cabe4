package storetest

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"warmboot"
	"warmboot/internal/expect"
)

func testSnapshotRoundTrip(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	used := now()
	snap := &warmboot.RuntimeSnapshot{
		ID: warmboot.NewID(), RuntimeImageID: img.ID, SnapshotPath: "/srv/fc/runtime-snapshots/x", State: warmboot.SnapshotReady, FCVersion: "v1.15.1",
		HostID: newHost(t, s, "a").ID, Platform: "f00d", Lease: warmboot.Lease{Owner: warmboot.NewID(), Generation: 4}, Attempt: 3,
		CreatedAt: now(), SuccessCount: 42, FailureCount: 7, FailureStreak: 2, LastUsedAt: &used,
		Metadata: warmboot.SnapshotMetadata{SizeBytes: 900_000_000, MemSizeBytes: 512_000_000, CompressedSizeBytes: 1, Compressed: true, DockerVersion: "26.1.5", VCPUs: 2, BuildSeconds: 21.5, ColdBootSeconds: 15.25, PauseSeconds: .25, Error: "no"},
	}
	expect.NoError(t, s.CreateSnapshot(ctx, snap))
	got, err := s.Snapshot(ctx, snap.ID)
	expect.NoError(t, err)
	wantEqual(t, got, snap)
	second := newSnapshot(t, s, img)
	all, err := s.Snapshots(ctx, warmboot.SnapshotFilter{})
	expect.NoError(t, err)
	wantEqual(t, all, []*warmboot.RuntimeSnapshot{second, snap})

	orphan := *second
	orphan.ID, orphan.RuntimeImageID = warmboot.NewID(), warmboot.NewID()
	expect.Code(t, s.CreateSnapshot(ctx, &orphan), warmboot.NotFound, string(orphan.RuntimeImageID))
}

func testFinishSnapshot(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img, other := newImage(t, s, "runtime"), newImage(t, s, "other")
	done := func(img *warmboot.Image, platform string) *warmboot.RuntimeSnapshot {
		snap := snapshot(img, platform)
		expect.NoError(t, s.CreateSnapshot(ctx, snap))
		finish(t, s, snap)
		return snap
	}
	elsewhere, foreign, outdated, ready := done(other, "p"), done(img, "q"), done(img, "old"), done(img, "p")
	sick := newSnapshot(t, s, img)
	expect.NoError(t, s.FailSnapshot(ctx, sick.ID, "no Docker"))
	next := newSnapshot(t, s, img)
	next.SnapshotPath, next.FCVersion, next.Metadata.SizeBytes = "/srv/fc/"+string(next.ID), "qemu-8.0.0", 900
	replaced := finish(t, s, next, "old", "unheard of")

	slices.Sort(replaced)
	want := []warmboot.ID{outdated.ID, ready.ID, sick.ID}
	slices.Sort(want)
	wantEqual(t, replaced, want)
	got, err := s.Snapshot(ctx, next.ID)
	expect.NoError(t, err)
	next.State = warmboot.SnapshotReady
	wantEqual(t, got, next)
	for id, want := range map[warmboot.ID]warmboot.SnapshotState{
		elsewhere.ID: warmboot.SnapshotReady, foreign.ID: warmboot.SnapshotReady, outdated.ID: warmboot.SnapshotDeleted, ready.ID: warmboot.SnapshotDeleted, sick.ID: warmboot.SnapshotDeleted,
	} {
		wantEqual(t, snapshotState(t, s, id), want)
	}

	building := newSnapshot(t, s, img)
	expect.NoError(t, s.DeleteSnapshot(ctx, building.ID))
	_, err = s.FinishSnapshot(ctx, building, nil)
	expect.Code(t, err, warmboot.Conflict, "deleted")
	wantEqual(t, snapshotState(t, s, next.ID), warmboot.SnapshotReady) // a finish that was refused has not marked anything
	building.ID = warmboot.NewID()
	_, err = s.FinishSnapshot(ctx, building, nil)
	expect.Code(t, err, warmboot.NotFound)
}

func testOneBuildAtATime(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	const builders = 8
	errs := make([]error, builders)
	var wg sync.WaitGroup
	for i := range builders {
		wg.Go(func() { errs[i] = s.CreateSnapshot(ctx, snapshot(img, "p")) })
	}
	wg.Wait()
	began := 0
	for _, err := range errs {
		if err == nil {
			began++
			continue
		}
		expect.Code(t, err, warmboot.Conflict, "being built")
	}
	wantEqual(t, began, 1)
	expect.NoError(t, s.CreateSnapshot(ctx, snapshot(img, "q")))
	all, err := s.Snapshots(ctx, warmboot.SnapshotFilter{})
	expect.NoError(t, err)
	refused := errors.New("refused")
	if err := s.CreateSnapshot(ctx, snapshot(img, "r"), func(others []*warmboot.RuntimeSnapshot) error {
		wantEqual(t, len(others), len(all))
		return refused
	}); !errors.Is(err, refused) {
		t.Errorf("a condition that does not hold: %v", err)
	}
	all, err = s.Snapshots(ctx, warmboot.SnapshotFilter{})
	expect.NoError(t, err)
	expect.NoError(t, s.DeleteSnapshot(ctx, all[1].ID))
	expect.NoError(t, s.CreateSnapshot(ctx, snapshot(img, "p")))
}

// testBuildIsTakenOver lets a builder that has lost its lease come back.
func testBuildIsTakenOver(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	first, second := newManager(t, s, "first"), newManager(t, s, "second")
	snap := newSnapshot(t, s, newImage(t, s, "runtime"))
	take := func(m *warmboot.Manager) *warmboot.RuntimeSnapshot {
		got, err := s.UpdateSnapshot(ctx, snap.ID, func(snap *warmboot.RuntimeSnapshot) error {
			snap.Lease = snap.Lease.Take(m.ID)
			return nil
		})
		expect.NoError(t, err)
		return got
	}
	late, now := take(first), take(second)
	_, err := s.FinishSnapshot(ctx, late, nil)
	expect.Code(t, err, warmboot.Conflict, "taken over")
	finish(t, s, now)
	got, err := s.Snapshot(ctx, snap.ID)
	expect.NoError(t, err)
	wantEqual(t, got.Lease, warmboot.Lease{Generation: 2})
	_, err = s.UpdateSnapshot(ctx, snap.ID, func(snap *warmboot.RuntimeSnapshot) error { snap.State = warmboot.SnapshotCreating; return nil })
	expect.Code(t, err, warmboot.Conflict, "ready", "creating")
}

func testSnapshotStates(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	snap := newSnapshot(t, s, newImage(t, s, "runtime"))
	expect.Code(t, s.ForgetSnapshot(ctx, snap.ID), warmboot.Conflict, "creating")
	expect.NoError(t, s.FailSnapshot(ctx, snap.ID, "disk full"))
	got, err := s.Snapshot(ctx, snap.ID)
	expect.NoError(t, err)
	wantEqual(t, got.State, warmboot.SnapshotUnhealthy)
	wantEqual(t, got.Metadata.Error, "disk full")

	expect.NoError(t, s.DeleteSnapshot(ctx, snap.ID))
	expect.NoError(t, s.DeleteSnapshot(ctx, snap.ID))
	expect.NoError(t, s.FailSnapshot(ctx, snap.ID, "late"))
	got, err = s.Snapshot(ctx, snap.ID)
	expect.NoError(t, err)
	wantEqual(t, got.State, warmboot.SnapshotDeleted)
	expect.NoError(t, s.ForgetSnapshot(ctx, snap.ID))
	for _, err := range []error{s.ForgetSnapshot(ctx, snap.ID), s.DeleteSnapshot(ctx, snap.ID), s.FailSnapshot(ctx, snap.ID, "")} {
		expect.Code(t, err, warmboot.NotFound, string(snap.ID))
	}
	expect.Code(t, s.RecordSuccesses(ctx, snap.ID, now(), 1), warmboot.NotFound)
	_, err = s.RecordFailure(ctx, snap.ID, now(), "")
	expect.Code(t, err, warmboot.NotFound)
}

func testRecordRestore(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	snap := newSnapshot(t, s, newImage(t, s, "runtime"))
	finish(t, s, snap)
	at := now()
	for i, use := range []struct {
		failure string
		want    warmboot.RuntimeSnapshot
	}{
		{"", warmboot.RuntimeSnapshot{State: warmboot.SnapshotReady, SuccessCount: 1}},
		{"mute", warmboot.RuntimeSnapshot{State: warmboot.SnapshotReady, SuccessCount: 1, FailureCount: 1, FailureStreak: 1}},
		{"mute", warmboot.RuntimeSnapshot{State: warmboot.SnapshotReady, SuccessCount: 1, FailureCount: 2, FailureStreak: 2}},
		{"", warmboot.RuntimeSnapshot{State: warmboot.SnapshotReady, SuccessCount: 2, FailureCount: 2}},
		{"mute", warmboot.RuntimeSnapshot{State: warmboot.SnapshotReady, SuccessCount: 2, FailureCount: 3, FailureStreak: 1}},
		{"mute", warmboot.RuntimeSnapshot{State: warmboot.SnapshotReady, SuccessCount: 2, FailureCount: 4, FailureStreak: 2}},
		{"Docker dead", warmboot.RuntimeSnapshot{State: warmboot.SnapshotUnhealthy, SuccessCount: 2, FailureCount: 5, FailureStreak: 3, Metadata: warmboot.SnapshotMetadata{Error: "Docker dead"}}},
	} {
		at = at.Add(time.Minute)
		var got *warmboot.RuntimeSnapshot
		var err error
		if use.failure == "" {
			expect.NoError(t, s.RecordSuccesses(ctx, snap.ID, at, 1))
			got, err = s.Snapshot(ctx, snap.ID)
		} else {
			got, err = s.RecordFailure(ctx, snap.ID, at, use.failure)
		}
		expect.NoError(t, err)
		use.want.ID, use.want.RuntimeImageID, use.want.Platform, use.want.FCVersion, use.want.CreatedAt, use.want.LastUsedAt = snap.ID, snap.RuntimeImageID, snap.Platform, snap.FCVersion, snap.CreatedAt, &at
		wantEqual(t, got, &use.want)
		stored, err := s.Snapshot(ctx, snap.ID)
		expect.NoError(t, err)
		if diff := cmp.Diff(got, stored); diff != "" {
			t.Fatalf("use %d: what was returned is not what was stored:\n%s", i, diff)
		}
	}
}
