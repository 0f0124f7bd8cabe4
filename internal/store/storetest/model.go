package storetest

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"warmboot"
	"warmboot/internal/expect"
)

// testSnapshotModel does random things to a few snapshots of one image, on two platforms, and compares them with a model after each.
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
		platform := rapid.SampledFrom([]string{"p", "q"})
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				if len(ids) == 6 {
					r.Skip("enough")
				}
				snap := snapshot(img, platform.Draw(r, "platform"))
				for _, other := range model {
					if other.State == warmboot.SnapshotCreating && other.Platform == snap.Platform {
						wantMove(r, s.CreateSnapshot(ctx, snap), false)
						return
					}
				}
				wantMove(r, s.CreateSnapshot(ctx, snap), true)
				model[snap.ID], ids = snap, append(ids, snap.ID)
			},
			"finish": func(r *rapid.T) {
				snap := pick(r)
				var outdated []string
				if rapid.Bool().Draw(r, "the other platform is gone") {
					outdated = []string{"p", "q"}
				}
				_, err := s.FinishSnapshot(ctx, snap, outdated)
				if !wantMove(r, err, snap.State == warmboot.SnapshotCreating) {
					return
				}
				for _, other := range model {
					if (other.State == warmboot.SnapshotReady || other.State == warmboot.SnapshotUnhealthy) && (other.Platform == snap.Platform || outdated != nil) {
						other.State = warmboot.SnapshotDeleted
					}
				}
				snap.State = warmboot.SnapshotReady
			},
			"fail": func(r *rapid.T) {
				snap := pick(r)
				wantMove(r, s.FailSnapshot(ctx, snap.ID, "broken"), true)
				if snap.State != warmboot.SnapshotDeleted {
					snap.State, snap.Metadata.Error = warmboot.SnapshotUnhealthy, "broken"
				}
			},
			"delete": func(r *rapid.T) {
				snap := pick(r)
				wantMove(r, s.DeleteSnapshot(ctx, snap.ID), true)
				snap.State = warmboot.SnapshotDeleted
			},
			"restore": func(r *rapid.T) {
				snap := pick(r)
				used := now()
				if n := rapid.IntRange(-2, 3).Draw(r, "successes"); n > 0 {
					wantMove(r, s.RecordSuccesses(ctx, snap.ID, used, n), true)
					snap.LastUsedAt, snap.SuccessCount, snap.FailureStreak = &used, snap.SuccessCount+int64(n), 0
					return
				}
				const failure = "mute"
				_, err := s.RecordFailure(ctx, snap.ID, used, failure)
				wantMove(r, err, true)
				snap.LastUsedAt = &used
				snap.FailureCount, snap.FailureStreak = snap.FailureCount+1, snap.FailureStreak+1
				if snap.State == warmboot.SnapshotReady && snap.FailureStreak >= warmboot.UnhealthyAfter {
					snap.State, snap.Metadata.Error = warmboot.SnapshotUnhealthy, failure
				}
			},
			"": func(*rapid.T) {
				ready := map[string]int{}
				for _, want := range model {
					got, err := s.Snapshot(ctx, want.ID)
					expect.NoError(t, err)
					wantEqual(t, got, want)
					if got.State == warmboot.SnapshotReady {
						ready[got.Platform]++
					}
				}
				if ready["p"] > 1 || ready["q"] > 1 {
					t.Fatalf("of one image and platform, more than one snapshot is ready: %v", ready)
				}
			},
		})
	})
}

// testContainerModel does random things to a few containers that want the same name, port and lease.
func testContainerModel(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	managers := []warmboot.ID{newManager(t, s, "m1").ID, newManager(t, s, "m2").ID, warmboot.NewID()}
	alive := map[warmboot.ID]bool{}
	for _, id := range managers {
		_, err := s.BeatManager(ctx, id)
		alive[id] = err == nil
	}
	states := []warmboot.ContainerState{
		warmboot.ContainerCreating, warmboot.ContainerRunning, warmboot.ContainerStopping, warmboot.ContainerStopped,
		warmboot.ContainerStarting, warmboot.ContainerFailed, warmboot.ContainerDeleting,
	}
	rapid.Check(t, func(r *rapid.T) {
		img := newImage(t, s, warmboot.NewID().Short())
		prefix, web := warmboot.NewID().Short(), port("127.0.0.1", uint16(rapid.IntRange(1024, 65535).Draw(r, "port")), warmboot.TCP)
		host := newHost(t, s, prefix) // so that its ports are of this run alone
		model := map[warmboot.ID]*warmboot.Container{}
		var ids []warmboot.ID
		pick := func(r *rapid.T) *warmboot.Container {
			if len(ids) == 0 {
				r.Skip("no container yet")
			}
			return model[rapid.SampledFrom(ids).Draw(r, "container")]
		}
		holdsPort := func(c *warmboot.Container) bool {
			return c.State != warmboot.ContainerStopped && c.State != warmboot.ContainerFailed
		}
		// released are those that are being deleted, but had given their port back before.
		released := map[warmboot.ID]bool{}
		portTaken := func(except warmboot.ID) bool {
			for _, other := range model {
				if other.ID != except && holdsPort(other) && !released[other.ID] {
					return true
				}
			}
			return false
		}
		r.Repeat(map[string]func(*rapid.T){
			"create": func(r *rapid.T) {
				c := container(img, prefix+rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "name"), web)
				c.HostID = host.ID
				taken := portTaken("")
				for _, other := range model {
					taken = taken || other.Name == c.Name
				}
				if wantMove(r, s.CreateContainer(ctx, c), !taken) {
					model[c.ID], ids = c, append(ids, c.ID)
				}
			},
			"move": func(r *rapid.T) {
				c := pick(r)
				next := rapid.SampledFrom(states).Draw(r, "state")
				ok := next == c.State || c.State.CanBecome(next) && (next != warmboot.ContainerStarting || !portTaken(c.ID))
				_, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.State = next; return nil })
				if wantMove(r, err, ok) && next != c.State {
					released[c.ID] = next == warmboot.ContainerDeleting && !holdsPort(c)
					c.State = next
				}
			},
			"take": func(r *rapid.T) {
				c := pick(r)
				who := rapid.SampledFrom(managers).Draw(r, "manager")
				_, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
					if c.Lease.HeldByOther(who) {
						return warmboot.Errorf(warmboot.Conflict, "", "taken")
					}
					c.Lease = c.Lease.Take(who)
					return nil
				})
				if wantMove(r, err, !c.Lease.HeldByOther(who)) {
					c.Lease = c.Lease.Take(who)
					c.Lease.Held = alive[who]
				}
			},
			"release": func(r *rapid.T) {
				c := pick(r)
				_, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Lease = c.Lease.Release(); return nil })
				wantMove(r, err, true)
				c.Lease = c.Lease.Release()
			},
			"delete": func(r *rapid.T) {
				c := pick(r)
				wantMove(r, s.DeleteContainer(ctx, c.ID), true)
				delete(model, c.ID)
				ids = slices.DeleteFunc(ids, func(id warmboot.ID) bool { return id == c.ID })
			},
			"": func(*rapid.T) {
				for _, want := range model {
					got, err := s.Container(ctx, want.ID)
					expect.NoError(t, err)
					wantEqual(t, got, want)
				}
			},
		})
		for _, id := range ids {
			expect.NoError(t, s.DeleteContainer(ctx, id))
		}
		expect.NoError(t, s.DeleteHost(ctx, host.ID))
	})
}

// wantMove checks the outcome of a move; it reports whether it was made.
func wantMove(r *rapid.T, err error, ok bool) bool {
	if ok && err != nil || !ok && warmboot.CodeOf(err) != warmboot.Conflict {
		r.Fatalf("error %v, where the move should succeed: %t", err, ok)
	}
	return ok
}
