// Package storetest is the one suite that decides whether a warmboot.Store is right. Every database that internal/store
// speaks must pass it.
package storetest

import (
	"context"
	"net/netip"
	"strings"
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

func testCanceledContext(t *testing.T, s warmboot.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Images(ctx, warmboot.Page{})
	expect.Code(t, err, warmboot.Canceled)
	expect.Code(t, s.DeleteSnapshot(ctx, warmboot.NewID()), warmboot.Canceled)
}
