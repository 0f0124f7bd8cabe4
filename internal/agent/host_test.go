package agent

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"warmboot"
	"warmboot/internal/hostnet"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker"
	"warmboot/internal/vmm/qemu"
)

func TestNoTwoSlotsShareAUser(t *testing.T) {
	t.Parallel()
	a := &Agent{Config: Config{OwnerBase: DefaultOwnerBase}}
	var err error
	if a.net, err = hostnet.Open(t.Context(), hostnet.Config{Mode: hostnet.User, Owner: "00a9e0"}); err != nil {
		t.Fatal(err)
	}
	users := map[uint32]bool{}
	for range hostnet.MaxSlots {
		s, err := a.net.Take(t.Context(), hostnet.Wants{})
		if err != nil {
			t.Fatal(err)
		}
		if o := a.owner(s); os.Geteuid() == 0 && (users[o.UID] || o.UID <= a.OwnerBase || o.UID > a.OwnerBase+hostnet.MaxSlots || o.GID != o.UID || o.Readers != a.OwnerBase) {
			t.Fatalf("slot %d has user %+v", s.Number, o)
		} else {
			users[o.UID] = true
		}
	}
	if used, total := a.Slots(); used != hostnet.MaxSlots || total != hostnet.MaxSlots {
		t.Errorf("%d of %d slots are used", used, total)
	}
}

func TestNetworkOf(t *testing.T) {
	t.Parallel()
	got := networkOf(warmboot.ContainerSpec{
		PortMappings: []warmboot.PortMapping{{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, ContainerPort: 80, Protocol: warmboot.TCP}},
		Egress:       warmboot.Egress{Policy: warmboot.EgressDeny}, Bandwidth: warmboot.Bandwidth{IngressMbit: 7},
	})
	if len(got.Forwards) != 1 || got.Forwards[0].HostPort != 8080 || got.Forwards[0].GuestPort != 80 || got.Egress.Policy != warmboot.EgressDeny || got.Bandwidth.IngressMbit != 7 {
		t.Errorf("got %+v", got)
	}
	if ports := registryPorts([]string{"localhost:5000", "registry.example.com", "[::1]:5001", "bad:port"}); !slices.Equal(ports, []uint16{5000, 5001}) {
		t.Errorf("registries are at ports %v", ports)
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	a := &Agent{}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := netip.MustParseAddrPort(l.Addr().String())
	got, err := a.ReservePorts(t.Context(), []warmboot.PortMapping{{ContainerPort: 80}, {ContainerPort: 53, Protocol: warmboot.UDP}})
	if err != nil || len(got) != 2 || got[0].HostPort == 0 || got[1].HostPort == 0 || got[0].HostIP.String() != "127.0.0.1" || got[0].Protocol != warmboot.TCP {
		t.Errorf("got %+v, %v", got, err)
	}
	for name, tt := range map[string]struct {
		port warmboot.PortMapping
		want warmboot.Code
	}{
		"in use":            {warmboot.PortMapping{HostIP: taken.Addr(), HostPort: taken.Port()}, warmboot.Conflict},
		"IPv6":              {warmboot.PortMapping{HostIP: netip.IPv6Loopback()}, warmboot.Invalid},
		"not our address":   {warmboot.PortMapping{HostIP: netip.MustParseAddr("192.0.2.1"), HostPort: 1}, warmboot.Invalid},
		"free for UDP only": {warmboot.PortMapping{HostIP: taken.Addr(), HostPort: taken.Port(), Protocol: warmboot.UDP}, ""},
	} {
		if _, err := a.ReservePorts(t.Context(), []warmboot.PortMapping{tt.port}); warmboot.CodeOf(err) != tt.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOneAgentForAStorageRoot(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	unlock, err := lockRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockRoot(root); warmboot.CodeOf(err) != warmboot.Conflict {
		t.Errorf("a second agent: %v", err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	again, err := lockRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

func TestAStorageRootThatVMMsCannotReach(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root runs VMMs as other users")
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	a := &Agent{Config: Config{Root: filepath.Join(closed, "root")}}
	if err := a.makeRoot(); warmboot.CodeOf(err) != warmboot.Invalid || !strings.Contains(err.Error(), "chmod o+x") {
		t.Errorf("error is %v", err)
	}
}

func TestLoopbackRegistries(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true, "a.localhost:1": true,
		"docker.io": false, "10.0.0.1:5000": false, "localhost.example.com": false, "registry:5000": false,
	} {
		if got := onLoopback(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
}

func TestIdentitiesFollowFromTheContainer(t *testing.T) {
	t.Parallel()
	id := warmboot.ID("0195f2c4-7a1b-4c3d-9e8f-0123456789ab")
	got := machineIdentity(id, "web", "e")
	if got.MachineId != "0195f2c47a1b4c3d9e8f0123456789ab" || got.Mac != "02:01:95:f2:c4:7a" || got.Hostname != "web" || got.EngineId != "e" {
		t.Errorf("identity is %v", got)
	}
	if mac, err := net.ParseMAC(got.Mac); err != nil || mac[0]&3 != 2 {
		t.Errorf("MAC %s is no locally administered unicast address: %v", got.Mac, err)
	}
	if machineIdentity(id, "", "").Hostname != "0195f2c47a1b" {
		t.Error("a container whose name makes no host name has none")
	}
}

// A VMM that nobody has written down is ended; one of another storage root, and a process of another user, are not ours.
func TestOrphansAreEnded(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can start processes as other users")
	}
	ours, theirs := filepath.Join(t.TempDir(), "with a space"), t.TempDir()
	if err := os.Mkdir(ours, 0o755); err != nil {
		t.Fatal(err)
	}
	a := &Agent{Config: Config{Root: ours, OwnerBase: 1_900_097_000, Log: slog.New(slog.DiscardHandler)}}
	start := func(dir string, uid uint32, args ...string) *exec.Cmd {
		t.Helper()
		cmd := exec.Command("sleep", append(args, "100")...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		cmd.Dir = dir
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}
	for _, dir := range []string{ours, theirs} {
		if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "vm"), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	mine := a.OwnerBase + 1
	orphan, known := start(filepath.Join(ours, "vm"), mine), start(filepath.Join(ours, "vm"), mine)
	other, stranger := start(filepath.Join(theirs, "vm"), mine), start(filepath.Join(ours, "vm"), a.OwnerBase+hostnet.MaxSlots+1)
	// In a jail it works nowhere below our root, and says nothing of it.
	jailed := exec.Command("unshare", "--mount", "sh", "-ec", `mount -t tmpfs "$1" /mnt; cd /; exec setpriv --reuid "$2" --regid "$2" --clear-groups sh -c 'echo in; exec sleep 100'`,
		"sh", filepath.Join(ours, "vm"), fmt.Sprint(mine))
	in, err := jailed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := jailed.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = jailed.Process.Kill(); _ = jailed.Wait() })
	if _, err := io.ReadFull(in, make([]byte, len("in\n"))); err != nil {
		t.Fatal(err)
	}
	if err := a.killOrphans(map[int]bool{known.Process.Pid: true}); err != nil {
		t.Fatal(err)
	}
	if err := orphan.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the orphan ended with %v", err)
	}
	if err := jailed.Wait(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("the orphan in a jail ended with %v", err)
	}
	for name, cmd := range map[string]*exec.Cmd{"known": known, "other root": other, "stranger": stranger} {
		if err := cmd.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("%s was ended: %v", name, err)
		}
	}
}

// A machine is taken charge of by the driver that it was started with, whichever is chosen for new ones by now.
func TestMachinesOfBothVMMsAreRecovered(t *testing.T) {
	t.Parallel()
	q, fc := qemu.New(qemu.Config{}), firecracker.New(firecracker.Config{})
	for _, a := range []*Agent{{Config: Config{Driver: q, Other: fc}}, {Config: Config{Driver: fc, Other: q}}} {
		for _, want := range []vmm.Driver{q, fc} {
			if got, err := a.driverOf(vmm.Handle{Driver: want.Name()}); err != nil || got != want {
				t.Errorf("of %s: %v, %v", want.Name(), got, err)
			}
		}
		if _, err := a.driverOf(vmm.Handle{Driver: "bochs"}); warmboot.CodeOf(err) != warmboot.Invalid || !strings.Contains(err.Error(), "bochs") {
			t.Errorf("of a VMM that is not known: %v", err)
		}
	}
	alone := &Agent{Config: Config{Driver: q}}
	if _, err := alone.driverOf(vmm.Handle{Driver: "firecracker"}); err == nil {
		t.Error("a driver that there is not was found")
	}
}

// The inventory tells what whoever has chosen the VMM says about it, or else what its driver says.
func TestTheInventoryTellsWhyAndWarns(t *testing.T) {
	t.Parallel()
	a := garbageRoot(t)
	a.caps = vmm.Capabilities{Driver: "firecracker", Version: "1.16.1", Accelerator: "kvm", AcceleratorWhy: "the driver's", Warning: "a fault"}
	n, err := hostnet.Open(t.Context(), hostnet.Config{Mode: hostnet.User, Owner: "0a0b0c"})
	if err != nil {
		t.Fatal(err)
	}
	a.net = n
	t.Cleanup(func() { n.Close() })
	tells := func(vmm, why, warning string) {
		t.Helper()
		got, err := a.Inventory(t.Context())
		if err != nil || got.VMM != vmm || got.VMMWhy != why || got.VMMWarning != warning {
			t.Errorf("it tells %q, %q and %q, %v", got.VMM, got.VMMWhy, got.VMMWarning, err)
		}
	}
	tells("v1.16.1", "firecracker with kvm: the driver's", "a fault")
	a.VMMWhy, a.VMMWarning = "nothing better", "a fault, and no jailer"
	tells("v1.16.1", "firecracker with kvm: nothing better", "a fault, and no jailer")
}
