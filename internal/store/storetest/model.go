package storetest

import (
	"testing"

	"pgregory.net/rapid"

	"warmboot"
)

// testSnapshotModel does random things to a few snapshots of one image and compares them with a model after each.
func testSnapshotModel(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	rapid.Check(t, func(r *rapid.T) {
		img := newImage(t, s, warmboot.NewID().Short())
		model := map[warmboot.ID]*warmboot.RuntimeSnapshot{}
		var ids []warmboot.ID
		pick := func(r *rapid.T) *warmboot.RuntimeSnapshot {
			if len(ids) == 0 {
				r.Skip("no snapshot yet")
			}
			return model[rapid.SampledFrom(ids).Draw(r, "snapshot")]
		}
		// expect checks the outcome of a move; it reports whether it was made.
		expect := func(r *rapid.T, err error, ok bool) bool {
			if ok && err != nil || !ok && warmboot.CodeOf(err) != warmboot.Conflict {
				r.Fatalf("error %v, where the move should succeed: %t", err, ok)
			}
			return ok
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				if len(ids) == 4 {
					r.Skip("enough")
				}
				snap := newSnapshot(t, s, img)
				model[snap.ID], ids = snap, append(ids, snap.ID)
			},
			"finish": func(r *rapid.T) {
				snap := pick(r)
				if !expect(r, s.FinishSnapshot(ctx, snap), snap.State == warmboot.SnapshotCreating) {
					return
				}
				for _, other := range model {
					if other.State == warmboot.SnapshotReady || other.State == warmboot.SnapshotUnhealthy {
						other.State = warmboot.SnapshotDeleted
					}
				}
				snap.State = warmboot.SnapshotReady
			},
			"fail": func(r *rapid.T) {
				snap := pick(r)
				expect(r, s.FailSnapshot(ctx, snap.ID, "broken"), true)
				if snap.State != warmboot.SnapshotDeleted {
					snap.State, snap.Metadata.Error = warmboot.SnapshotUnhealthy, "broken"
				}
			},
			"delete": func(r *rapid.T) {
				snap := pick(r)
				expect(r, s.DeleteSnapshot(ctx, snap.ID), true)
				snap.State = warmboot.SnapshotDeleted
			},
			"restore": func(r *rapid.T) {
				snap := pick(r)
				failure := rapid.SampledFrom([]string{"", "mute", "mute"}).Draw(r, "failure")
				used := now()
				_, err := s.RecordRestore(ctx, snap.ID, used, failure)
				expect(r, err, true)
				snap.LastUsedAt = &used
				if failure == "" {
					snap.SuccessCount, snap.FailureStreak = snap.SuccessCount+1, 0
					return
				}
				snap.FailureCount, snap.FailureStreak = snap.FailureCount+1, snap.FailureStreak+1
				if snap.State == warmboot.SnapshotReady && snap.FailureStreak >= warmboot.UnhealthyAfter {
					snap.State, snap.Metadata.Error = warmboot.SnapshotUnhealthy, failure
				}
			},
			"": func(*rapid.T) {
				ready := 0
				for _, want := range model {
					got, err := s.Snapshot(ctx, want.ID)
					must(t, err)
					wantEqual(t, got, want)
					if got.State == warmboot.SnapshotReady {
						ready++
					}
				}
				if ready > 1 {
					t.Fatalf("%d snapshots of one image are ready", ready)
				}
			},
		})
	})
}
