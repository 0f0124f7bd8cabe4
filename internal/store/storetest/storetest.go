// Package storetest is the one suite that decides whether a warmboot.Store is right. Every database that internal/store
// speaks must pass it.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"warmboot"
	"warmboot/internal/expect"
)

// Run runs the suite. open returns a store with nothing in it, which open's test closes.
func Run(t *testing.T, open func(t *testing.T) warmboot.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, warmboot.Store)
	}{
		{"Images", testImages},
		{"UpdateImage", testUpdateImage},
		{"DeleteImage", testDeleteImage},
		{"SnapshotRoundTrip", testSnapshotRoundTrip},
		{"FinishSnapshotReplacesOthers", testFinishSnapshot},
		{"OneBuildAtATime", testOneBuildAtATime},
		{"BuildIsTakenOver", testBuildIsTakenOver},
		{"SnapshotStates", testSnapshotStates},
		{"RecordRestore", testRecordRestore},
		{"SnapshotModel", testSnapshotModel},
		{"ContainerRoundTrip", testContainerRoundTrip},
		{"ContainerNameTaken", testContainerNameTaken},
		{"FindContainer", testFindContainer},
		{"ListContainers", testListContainers},
		{"ContainerFilters", testContainerFilters},
		{"SnapshotFilters", testSnapshotFilters},
		{"Pages", testPages},
		{"Counts", testCounts},
		{"ContainerStates", testContainerStates},
		{"UpdateContainer", testUpdateContainer},
		{"ConcurrentUpdates", testConcurrentUpdates},
		{"Ports", testPorts},
		{"PortsAreFreeOnceStopped", testPortsOfStopped},
		{"ConcurrentPortClaims", testConcurrentPortClaims},
		{"PortsAreOfAHost", testPortsOfHosts},
		{"ClosedHosts", testClosedHosts},
		{"ContainerModel", testContainerModel},
		{"DeletedContainers", testDeletedContainers},
		{"Hosts", testHosts},
		{"DeleteHost", testDeleteHost},
		{"Managers", testManagers},
		{"Authority", testAuthority},
		{"JoinTokens", testJoinTokens},
		{"Leases", testLeases},
		{"Feed", testFeed},
		{"Tokens", testTokens},
		{"TokenUse", testTokenUse},
		{"ConcurrentTokenNames", testConcurrentTokenNames},
		{"Audit", testAudit},
		{"PruneAudit", testPruneAudit},
		{"Receipts", testReceipts},
		{"ReceiptAndEntityAreOne", testReceiptAndEntity},
		{"ConcurrentReceipts", testConcurrentReceipts},
		{"CanceledContext", testCanceledContext},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, open(t))
		})
	}
}

func wantEqual(t *testing.T, got, want any) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("not what was stored (-want +got):\n%s", diff)
	}
}

// now is a time as precise as a store must keep it.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func newImage(t *testing.T, s warmboot.Store, name string) *warmboot.Image {
	t.Helper()
	img := &warmboot.Image{
		ID: warmboot.NewID(), Name: name, KernelPath: "/srv/images/vmlinuz", InitrdPath: "/srv/images/initrd.img", RootfsPath: "/srv/images/rootfs.ext4",
		Digest: strings.Repeat("a", 64), SizeBytes: 400 << 20, Recipe: strings.Repeat("b", 64), CreatedAt: now(),
	}
	expect.NoError(t, s.CreateImage(t.Context(), img))
	return img
}

func newSnapshot(t *testing.T, s warmboot.Store, img *warmboot.Image) *warmboot.RuntimeSnapshot {
	t.Helper()
	snap := snapshot(img, "p")
	expect.NoError(t, s.CreateSnapshot(t.Context(), snap))
	return snap
}

// snapshot is one that is not stored yet.
func snapshot(img *warmboot.Image, platform string) *warmboot.RuntimeSnapshot {
	return &warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: img.ID, Platform: platform, State: warmboot.SnapshotCreating, FCVersion: "qemu-7.2.22", CreatedAt: now()}
}

// finish makes a snapshot ready.
func finish(t *testing.T, s warmboot.Store, snap *warmboot.RuntimeSnapshot, outdated ...string) []warmboot.ID {
	t.Helper()
	replaced, err := s.FinishSnapshot(t.Context(), snap, outdated)
	expect.NoError(t, err)
	return replaced
}

func snapshotState(t *testing.T, s warmboot.Store, id warmboot.ID) warmboot.SnapshotState {
	t.Helper()
	got, err := s.Snapshot(t.Context(), id)
	expect.NoError(t, err)
	return got.State
}

// container is one that is not stored yet.
func container(img *warmboot.Image, name string, ports ...warmboot.PortMapping) *warmboot.Container {
	return &warmboot.Container{
		ID: warmboot.NewID(), Name: name, Image: "debian:trixie", RuntimeImageID: img.ID, State: warmboot.ContainerCreating, CreatedAt: now(),
		Spec: warmboot.ContainerSpec{PortMappings: ports},
	}
}

func newContainer(t *testing.T, s warmboot.Store, img *warmboot.Image, name string, ports ...warmboot.PortMapping) *warmboot.Container {
	t.Helper()
	c := container(img, name, ports...)
	expect.NoError(t, s.CreateContainer(t.Context(), c))
	return c
}

func port(ip string, number uint16, p warmboot.Protocol) warmboot.PortMapping {
	return warmboot.PortMapping{HostIP: netip.MustParseAddr(ip), HostPort: number, ContainerPort: 80, Protocol: p}
}

func become(t *testing.T, s warmboot.Store, id warmboot.ID, states ...warmboot.ContainerState) {
	t.Helper()
	for _, state := range states {
		_, err := s.UpdateContainer(t.Context(), id, func(c *warmboot.Container) error { c.State = state; return nil })
		expect.NoError(t, err)
	}
}

func testImages(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	none, err := s.Images(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, len(none), 0)
	older := newImage(t, s, "older")
	newer := newImage(t, s, "newer")

	got, err := s.Image(ctx, older.ID)
	expect.NoError(t, err)
	wantEqual(t, got, older)
	got, err = s.ImageByName(ctx, "newer")
	expect.NoError(t, err)
	wantEqual(t, got, newer)
	all, err := s.Images(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, all, []*warmboot.Image{newer, older})

	_, err = s.Image(ctx, warmboot.NewID())
	expect.Code(t, err, warmboot.NotFound)
	_, err = s.ImageByName(ctx, "absent")
	expect.Code(t, err, warmboot.NotFound, "absent")
	same := *older
	same.ID = warmboot.NewID()
	expect.Code(t, s.CreateImage(ctx, &same), warmboot.Conflict, "older", string(older.ID))
}

func testUpdateImage(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	newImage(t, s, "other")
	rename := func(name string) (*warmboot.Image, error) {
		return s.UpdateImage(ctx, img.ID, func(img *warmboot.Image) error { img.Name, img.Digest = name, "x"; return nil })
	}
	_, err := rename("base")
	expect.NoError(t, err)
	img.Name = "base" // and nothing else
	got, err := s.ImageByName(ctx, "base")
	expect.NoError(t, err)
	wantEqual(t, got, img)
	_, err = rename("base")
	expect.NoError(t, err)
	_, err = rename("other")
	expect.Code(t, err, warmboot.Conflict, "other")
	_, err = s.UpdateImage(ctx, img.ID, func(*warmboot.Image) error { return warmboot.Errorf(warmboot.Stale, "", "seen another") })
	expect.Code(t, err, warmboot.Stale)
	_, err = s.UpdateImage(ctx, warmboot.NewID(), func(*warmboot.Image) error { return nil })
	expect.Code(t, err, warmboot.NotFound)
	newImage(t, s, "runtime") // the name is free

	refuse := func(*warmboot.Image) error { return warmboot.Errorf(warmboot.Stale, "", "seen another") }
	allow := func(seen *warmboot.Image) error { wantEqual(t, seen, img); return nil }
	expect.Code(t, s.DeleteImage(ctx, img.ID, allow, refuse), warmboot.Stale)
	expect.NoError(t, s.DeleteImage(ctx, img.ID, allow))
}

func testDeleteImage(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	snap := newSnapshot(t, s, img)
	c := newContainer(t, s, img, "web")
	expect.Code(t, s.DeleteImage(ctx, img.ID), warmboot.Conflict, "container web")
	expect.NoError(t, s.DeleteContainer(ctx, c.ID))
	expect.Code(t, s.DeleteImage(ctx, img.ID), warmboot.Conflict, string(snap.ID))
	expect.NoError(t, s.DeleteSnapshot(ctx, snap.ID))
	expect.NoError(t, s.DeleteImage(ctx, img.ID))
	_, err := s.Image(ctx, img.ID)
	expect.Code(t, err, warmboot.NotFound)
	expect.Code(t, s.DeleteImage(ctx, img.ID), warmboot.NotFound)

	all, err := s.Images(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, len(all), 0)
	expect.Code(t, s.CreateContainer(ctx, container(img, "late")), warmboot.NotFound)

	left, err := s.Snapshot(ctx, snap.ID) // its files may still have to be removed, and are found by the image's id
	expect.NoError(t, err)
	wantEqual(t, left.State, warmboot.SnapshotDeleted)
	wantEqual(t, left.RuntimeImageID, img.ID)
	newImage(t, s, "runtime") // the name is free
	expect.NoError(t, s.ForgetSnapshot(ctx, snap.ID))
	expect.NoError(t, s.CreateImage(ctx, &warmboot.Image{ID: img.ID, Name: "again", CreatedAt: now()})) // nothing is left of it
}

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

func testContainerRoundTrip(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	code, started, finished := 3, now(), now()
	c := &warmboot.Container{
		ID: warmboot.NewID(), Name: "web", Image: "registry:5000/team/app:1.2", RuntimeImageID: img.ID, State: warmboot.ContainerStopped,
		Spec: warmboot.ContainerSpec{
			Command: []string{"sh", "-c"}, Args: []string{"echo \"ü\"; exit 3"}, EnvVars: map[string]string{"A": "1"}, CPULimit: 1.5, MemoryLimitMB: 256,
			PortMappings:  []warmboot.PortMapping{port("127.0.0.1", 8080, warmboot.TCP), port("::1", 53, warmboot.UDP)},
			RestartPolicy: warmboot.RestartPolicy{Name: warmboot.RestartOnFailure, MaxRetries: 3},
			Egress:        warmboot.Egress{Policy: warmboot.EgressList, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, DNS: true},
			Bandwidth:     warmboot.Bandwidth{IngressMbit: 7, EgressMbit: 8},
		},
		HostID: newHost(t, s, "a").ID, Lease: warmboot.Lease{Owner: warmboot.NewID(), Generation: 7}, Private: true, StoppedByUser: true, Restarts: 2,
		BootMethod: warmboot.BootWarm, BootReason: "x", VMID: "vm-3f2a9c0d1e4b", SnapshotID: warmboot.NewID(),
		Phases: []warmboot.Phase{{Name: warmboot.PhaseDisk, Duration: 1234567}}, ExitCode: &code, Error: "e",
		CreatedAt: now(), StartedAt: &started, FinishedAt: &finished,
	}
	expect.NoError(t, s.CreateContainer(ctx, c))
	got, err := s.Container(ctx, c.ID)
	expect.NoError(t, err)
	wantEqual(t, got, c)

	bare := newContainer(t, s, img, "bare")
	got, err = s.Container(ctx, bare.ID)
	expect.NoError(t, err)
	wantEqual(t, got, bare)

	expect.NoError(t, s.DeleteContainer(ctx, c.ID))
	_, err = s.Container(ctx, c.ID)
	expect.Code(t, err, warmboot.NotFound)
	expect.Code(t, s.DeleteContainer(ctx, c.ID), warmboot.NotFound, string(c.ID))

	orphan := container(img, "orphan")
	orphan.RuntimeImageID = warmboot.NewID()
	expect.Code(t, s.CreateContainer(ctx, orphan), warmboot.NotFound, string(orphan.RuntimeImageID))
}

func testContainerNameTaken(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	first := newContainer(t, s, img, "web")
	expect.Code(t, s.CreateContainer(ctx, container(img, "web")), warmboot.Conflict, "web", first.ID.Short(), "creating")
	expect.NoError(t, s.DeleteContainer(ctx, first.ID))
	second, other := newContainer(t, s, img, "web"), newContainer(t, s, img, "other")
	rename := func(name string) error {
		_, err := s.UpdateContainer(ctx, second.ID, func(c *warmboot.Container) error { c.Name = name; return nil })
		return err
	}
	expect.Code(t, rename("other"), warmboot.Conflict, "other", other.ID.Short(), "creating")
	expect.NoError(t, rename("www"))
	newContainer(t, s, img, "web")
}

func testFindContainer(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	add := func(id, name string) *warmboot.Container {
		c := container(img, name)
		c.ID = warmboot.ID(id)
		expect.NoError(t, s.CreateContainer(ctx, c))
		return c
	}
	one := add("aaaaaaaa-1111-4000-8000-000000000001", "web")
	two := add("aaaaaaaa-2222-4000-8000-000000000002", "db")
	named := add("bbbbbbbb-0000-4000-8000-000000000003", "aaaaaaaa2222") // a name that looks like the beginning of another's id
	for ref, want := range map[string]*warmboot.Container{
		string(one.ID): one, strings.ToUpper(string(one.ID)): one, "web": one, "aaaaaaaa1": one, one.ID.Short(): one, "aaaaaaaa-1111-4": one, "AAAAAAAA1": one,
		"db": two, "aaaaaaaa22": two, "aaaaaaaa2222": named, "b": named,
	} {
		got, err := s.FindContainer(ctx, ref)
		if err != nil || got.ID != want.ID {
			t.Errorf("FindContainer(%q) = %v, %v, want %s", ref, got, err, want.ID)
		}
	}
	_, err := s.FindContainer(ctx, "aaaaaaaa")
	expect.Code(t, err, warmboot.Conflict, "web", "db")
	for _, ref := range []string{"", "-", "%", "_", "WEB", "c", "aaaaaaaa3", string(warmboot.NewID()), "x'; DROP TABLE containers; --", strings.Repeat("a", 300)} {
		_, err := s.FindContainer(ctx, ref)
		expect.Code(t, err, warmboot.NotFound)
	}
}

func testListContainers(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	a, b, c := newContainer(t, s, img, "a"), newContainer(t, s, img, "b"), newContainer(t, s, img, "c")
	become(t, s, a.ID, warmboot.ContainerRunning)
	become(t, s, b.ID, warmboot.ContainerFailed)
	for _, want := range []struct {
		states []warmboot.ContainerState
		ids    []warmboot.ID
	}{
		{nil, []warmboot.ID{c.ID, b.ID, a.ID}},
		{[]warmboot.ContainerState{warmboot.ContainerRunning}, []warmboot.ID{a.ID}},
		{[]warmboot.ContainerState{warmboot.ContainerRunning, warmboot.ContainerFailed}, []warmboot.ID{b.ID, a.ID}},
		{[]warmboot.ContainerState{warmboot.ContainerStopped}, nil},
	} {
		all, err := s.Containers(ctx, warmboot.ContainerFilter{States: want.states})
		expect.NoError(t, err)
		var ids []warmboot.ID
		for _, c := range all {
			ids = append(ids, c.ID)
		}
		wantEqual(t, ids, want.ids)
	}
}

// testContainerStates tries every move between two states.
func testContainerStates(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	states := []warmboot.ContainerState{
		warmboot.ContainerCreating, warmboot.ContainerRunning, warmboot.ContainerStopping, warmboot.ContainerStopped,
		warmboot.ContainerStarting, warmboot.ContainerFailed, warmboot.ContainerDeleting,
	}
	for _, from := range states {
		for _, to := range states {
			c := container(img, string(from)+"-"+string(to))
			c.State = from
			expect.NoError(t, s.CreateContainer(ctx, c))
			_, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.State, c.Error = to, "changed"; return nil })
			got, readErr := s.Container(ctx, c.ID)
			expect.NoError(t, readErr)
			if from == to || from.CanBecome(to) {
				expect.NoError(t, err)
				wantEqual(t, got.State, to)
				continue
			}
			expect.Code(t, err, warmboot.Conflict, string(from), string(to))
			wantEqual(t, got, c)
		}
	}
}

func testUpdateContainer(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	c := newContainer(t, s, newImage(t, s, "runtime"), "web")
	code, at := 0, now()
	got, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		c.State, c.BootMethod, c.VMID, c.ExitCode, c.StartedAt = warmboot.ContainerRunning, warmboot.BootCold, "vm-1", &code, &at
		c.Phases = append(c.Phases, warmboot.Phase{Name: warmboot.PhaseBoot, Duration: time.Second})
		return nil
	})
	expect.NoError(t, err)
	want := *c
	want.State, want.BootMethod, want.VMID, want.ExitCode, want.StartedAt = warmboot.ContainerRunning, warmboot.BootCold, "vm-1", &code, &at
	want.Phases = []warmboot.Phase{{Name: warmboot.PhaseBoot, Duration: time.Second}}
	wantEqual(t, got, &want)

	refused := errors.New("refused")
	_, err = s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Error = "x"; return refused })
	if !errors.Is(err, refused) {
		t.Fatalf("the error of change was lost: %v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Error = "x"; panic("in change") })
	}()
	got, err = s.Container(ctx, c.ID)
	expect.NoError(t, err)
	wantEqual(t, got, &want)
	_, err = s.UpdateContainer(ctx, warmboot.NewID(), func(*warmboot.Container) error { t.Error("called for nothing"); return nil })
	expect.Code(t, err, warmboot.NotFound)
}

func testConcurrentUpdates(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	c := newContainer(t, s, newImage(t, s, "runtime"), "web")
	const writers, each = 8, 5
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Error += "x"; return nil }); err != nil {
					t.Error(err)
				}
				if _, err := s.Containers(ctx, warmboot.ContainerFilter{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Container(ctx, c.ID)
	expect.NoError(t, err)
	wantEqual(t, len(got.Error), writers*each)
}

func testPorts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	held := map[string]*warmboot.Container{
		"one": newContainer(t, s, img, "one", port("127.0.0.1", 80, warmboot.TCP), port("127.0.0.1", 443, warmboot.TCP)),
		"all": newContainer(t, s, img, "all", port("0.0.0.0", 81, warmboot.TCP)),
		"six": newContainer(t, s, img, "six", port("::", 82, warmboot.TCP)),
	}
	for _, c := range []struct {
		port   warmboot.PortMapping
		holder string // "" where there is no conflict
	}{
		{port("127.0.0.1", 80, warmboot.TCP), "one"},
		{port("127.0.0.1", 443, warmboot.TCP), "one"},
		{port("::ffff:127.0.0.1", 80, warmboot.TCP), "one"}, // the same address, written for IPv6
		{port("0.0.0.0", 80, warmboot.TCP), "one"},
		{port("::", 80, warmboot.TCP), "one"},
		{port("127.0.0.1", 81, warmboot.TCP), "all"},
		{port("::1", 81, warmboot.TCP), "all"},
		{port("127.0.0.1", 82, warmboot.TCP), "six"},
		{port("127.0.0.2", 80, warmboot.TCP), ""},
		{port("127.0.0.1", 80, warmboot.UDP), ""},
		{port("127.0.0.1", 83, warmboot.TCP), ""},
	} {
		again := container(img, warmboot.NewID().Short(), port("127.0.0.1", 9999, warmboot.TCP), c.port)
		err := s.CreateContainer(ctx, again)
		if c.holder == "" {
			expect.NoError(t, err)
			expect.NoError(t, s.DeleteContainer(ctx, again.ID))
			continue
		}
		expect.Code(t, err, warmboot.Conflict, "container "+c.holder, held[c.holder].ID.Short(), fmt.Sprintf("%d/tcp", c.port.HostPort))
		_, err = s.Container(ctx, again.ID)
		expect.Code(t, err, warmboot.NotFound) // and its first port is free again, as the next round shows
	}
	twice := container(img, "twice", port("127.0.0.1", 90, warmboot.TCP), port("0.0.0.0", 90, warmboot.TCP))
	expect.Code(t, s.CreateContainer(ctx, twice), warmboot.Invalid, "90/tcp", "twice")
}

func testPortsOfStopped(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	p := port("127.0.0.1", 8080, warmboot.TCP)
	first := newContainer(t, s, img, "first", p)
	become(t, s, first.ID, warmboot.ContainerRunning, warmboot.ContainerStopping)
	expect.Code(t, s.CreateContainer(ctx, container(img, "early", p)), warmboot.Conflict, "first", "stopping")
	become(t, s, first.ID, warmboot.ContainerStopped)
	second := newContainer(t, s, img, "second", p)
	_, err := s.UpdateContainer(ctx, first.ID, func(c *warmboot.Container) error { c.State = warmboot.ContainerStarting; return nil })
	expect.Code(t, err, warmboot.Conflict, "second")
	got, err := s.Container(ctx, first.ID)
	expect.NoError(t, err)
	wantEqual(t, got.State, warmboot.ContainerStopped)
	wantEqual(t, got.Spec.PortMappings, []warmboot.PortMapping{p})

	become(t, s, second.ID, warmboot.ContainerRunning, warmboot.ContainerDeleting)
	expect.Code(t, s.CreateContainer(ctx, container(img, "early", p)), warmboot.Conflict, "second", "deleting")
	expect.NoError(t, s.DeleteContainer(ctx, second.ID))
	become(t, s, first.ID, warmboot.ContainerStarting, warmboot.ContainerRunning)
	expect.Code(t, s.CreateContainer(ctx, container(img, "late", p)), warmboot.Conflict, "first", "running")
}

func testConcurrentPortClaims(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	addresses := []string{"127.0.0.1", "0.0.0.0", "::", "::1", "127.0.0.1", "0.0.0.0"}
	errs := make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, ip := range addresses {
		wg.Go(func() {
			errs[i] = s.CreateContainer(ctx, container(img, fmt.Sprintf("c%d", i), port(ip, 80, warmboot.TCP)))
		})
	}
	wg.Wait()
	all, err := s.Containers(ctx, warmboot.ContainerFilter{})
	expect.NoError(t, err)
	specific, any := 0, 0
	for _, c := range all {
		if c.Spec.PortMappings[0].HostIP.IsUnspecified() {
			any++
		} else {
			specific++
		}
	}
	if any > 1 || any == 1 && specific > 0 || any+specific == 0 {
		t.Fatalf("%d containers hold port 80 on all addresses and %d on one", any, specific)
	}
	for _, err := range errs {
		if err != nil {
			expect.Code(t, err, warmboot.Conflict)
		}
	}
}

func testCanceledContext(t *testing.T, s warmboot.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Images(ctx, warmboot.Page{})
	expect.Code(t, err, warmboot.Canceled)
	expect.Code(t, s.DeleteSnapshot(ctx, warmboot.NewID()), warmboot.Canceled)
}
