package qemu

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/netns"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/vmmtest"
)

// tapNetwork is a network namespace with a TAP for one machine.
func tapNetwork(t *testing.T) vmm.Network {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	if err := netns.In(ns, func() error { return netns.MakeTAP("tap0", owner.UID) }); err != nil {
		t.Fatal(err)
	}
	return vmm.Network{TAP: "tap0", Namespace: netns.Path(ns), Subnet: netip.MustParsePrefix("100.64.9.0/24")}
}

func ping(t *testing.T, m vmm.Machine) {
	t.Helper()
	conn, err := m.DialGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintln(conn, "ping")
	if answer, err := bufio.NewReader(conn).ReadString('\n'); answer != "pong\n" {
		t.Fatalf("the guest answers %q, %v", answer, err)
	}
}

// A machine with a TAP runs in the TAP's namespace with no more rights than any other, and its clones run in namespaces of theirs.
func TestTAP(t *testing.T) {
	kernel := vmmtest.Kernel(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can make network namespaces")
	}
	dir := shared(t)
	initrd := vmmtest.Initrd(t, dir)
	d := New(Config{Accelerator: "tcg"})
	stop := func(m vmm.Machine) {
		if err := m.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
	}
	spec := machineFor(t, "tap", kernel)
	spec.Initrd, spec.MemoryFile, spec.Network = initrd, filepath.Join(dir, "memory"), tapNetwork(t)
	if err := os.Chown(dir, -1, int(owner.Readers)); err != nil {
		t.Fatal(err)
	}
	spec.Network.Forwards = []vmm.Forward{{Protocol: warmboot.TCP, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 80, GuestPort: 80}} // not ours to publish
	m, err := d.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer stop(m)
	ping(t, m)
	checkConfined(t, m, spec.Network)

	second := machineFor(t, "tap-second", kernel)
	second.Network = spec.Network
	if m, err := d.Create(t.Context(), second); warmboot.CodeOf(err) != warmboot.Conflict {
		t.Errorf("a second machine on one TAP: %v", err)
		if err == nil {
			stop(m)
		}
	}
	second.Network.TAP = "tap1"
	if m, err := d.Create(t.Context(), second); warmboot.CodeOf(err) != warmboot.NotFound {
		t.Errorf("a machine on a TAP that is not there: %v", err)
		if err == nil {
			stop(m)
		}
	}
	second.Network.Namespace = "/no/such/namespace"
	if m, err := d.Create(t.Context(), second); warmboot.CodeOf(err) != warmboot.NotFound {
		t.Errorf("a machine in a namespace that is not there: %v", err)
		if err == nil {
			stop(m)
		}
	}

	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	snap, err := m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	stop(m)
	if err := os.Chmod(snap.MemoryFile, 0o664); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		clone := machineFor(t, fmt.Sprintf("tap-clone-%d", i), kernel)
		n := tapNetwork(t)
		c, err := d.Restore(t.Context(), snap, vmm.RestoreOptions{ID: clone.ID, Dir: clone.Dir, Network: n, Owner: owner})
		if err != nil {
			t.Fatal(err)
		}
		defer stop(c)
		ping(t, c)
		checkConfined(t, c, n)
	}
}

// checkConfined looks at a machine's process: it is in its network's namespace, and has no rights there.
func checkConfined(t *testing.T, m vmm.Machine, n vmm.Network) {
	t.Helper()
	want, err := os.Open(n.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer want.Close()
	is, err := netns.OfProcess(m.Handle().PID)
	if err != nil {
		t.Fatal(err)
	}
	defer is.Close()
	if same, err := netns.Is(is, want); err != nil || !same {
		t.Errorf("the machine's process is in another network namespace (%v)", err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"CapEff:\t0000000000000000\n", "CapPrm:\t0000000000000000\n", fmt.Sprintf("Uid:\t%d\t", owner.UID)} {
		if !strings.Contains(string(status), want) {
			t.Errorf("its status lacks %q", want)
		}
	}
}
