package qemu

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"warmboot"
	"warmboot/internal/vmm"
)

func testSpec() vmm.Spec {
	return vmm.Spec{
		ID: "vm-1", Dir: "/run/vm", VCPUs: 2, MemoryMiB: 512, Kernel: "/k", Initrd: "/i", KernelArgs: []string{"warmboot.debug=1"},
		RootDisk: vmm.Disk{Path: "/r,oot", Format: vmm.Raw}, DataDisk: vmm.Disk{Path: "/data", Format: vmm.QCOW2}, MemoryFile: "/m,em",
		Network: vmm.Network{Subnet: netip.MustParsePrefix("100.64.3.0/24"), Forwards: []vmm.Forward{
			{Protocol: warmboot.TCP, HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 8080, GuestPort: 80},
			{Protocol: warmboot.UDP, HostIP: netip.MustParseAddr("::ffff:0.0.0.0"), HostPort: 53, GuestPort: 53},
		}},
	}
}

var testCaps = vmm.Capabilities{Version: "7.2.22", Accelerator: "tcg", MachineType: "pc-q35-7.2+qboot"}

// TestRestoredMachineIsTheSameMachine: QEMU loads a state only into a machine with the same devices at the same places.
func TestRestoredMachineIsTheSameMachine(t *testing.T) {
	t.Parallel()
	fds := inherited{3, 4, 5, 0}
	for name, c := range map[string]struct {
		version, created, restored string
	}{
		"7.2": {"7.2.22", "memory-backend-file,id=ram,size=512M,share=on,mem-path=/m,,em", "memory-backend-file,id=ram,size=512M,share=off,mem-path=/m,,em"},
		"8.2": {"8.2.0", "memory-backend-file,id=ram,size=512M,share=on,mem-path=/m,,em", "memory-backend-file,id=ram,size=512M,share=off,mem-path=/m,,em,readonly=on,rom=off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			caps := testCaps
			caps.Version = c.version
			created, restored := arguments(caps, testSpec(), false, fds), arguments(caps, testSpec(), true, fds)
			i := slices.Index(created, c.created)
			if i < 0 {
				t.Fatalf("no %s in %q", c.created, created)
			}
			created[i] = c.restored
			if want := append(created, "-S", "-incoming", "defer"); !slices.Equal(restored, want) {
				t.Errorf("a restored machine has\n%q\nwant\n%q", restored, want)
			}
		})
	}
}

// TestADiskMoreMovesNothing: devices keep their places whatever else a machine has.
func TestADiskMoreMovesNothing(t *testing.T) {
	t.Parallel()
	places := func(spec vmm.Spec) (all []string) {
		for _, a := range arguments(testCaps, spec, false, inherited{}) {
			if strings.Contains(a, "addr=") && !strings.Contains(a, "virtio-blk") {
				all = append(all, a)
			}
		}
		return all
	}
	without := testSpec()
	without.DataDisk, without.RootDisk = vmm.Disk{}, vmm.Disk{}
	if a, b := places(testSpec()), places(without); len(a) != 3 || !slices.Equal(a, b) {
		t.Errorf("with disks %q, without %q", a, b)
	}
}

// TestKernelCommandLine: a guest that is not ours finds its root disk, and its udev leaves eth0 its name.
func TestKernelCommandLine(t *testing.T) {
	t.Parallel()
	diskless := testSpec()
	diskless.RootDisk = vmm.Disk{}
	for want, spec := range map[string]vmm.Spec{
		"console=ttyS0 quiet panic=-1 net.ifnames=0 root=/dev/vda ro warmboot.debug=1": testSpec(),
		"console=ttyS0 quiet panic=-1 net.ifnames=0 warmboot.debug=1":                  diskless,
	} {
		if got := kernelCommandLine(spec); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestNetdev(t *testing.T) {
	t.Parallel()
	want := "user,id=net,ipv6=off,net=100.64.3.0/24,host=100.64.3.2,dns=100.64.3.3,dhcpstart=100.64.3.15," +
		"hostfwd=tcp:127.0.0.1:8080-100.64.3.15:80,hostfwd=udp:0.0.0.0:53-100.64.3.15:53"
	if got := netdev(testSpec().Network, 0); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	withTAP := testSpec().Network
	withTAP.TAP = "tap0"
	if got := netdev(withTAP, 6); got != "tap,id=net,fd=6" {
		t.Errorf("with a TAP: %s", got)
	}
}

func TestBlockdevQuotesPaths(t *testing.T) {
	t.Parallel()
	got := blockdev("root", vmm.Disk{Path: `/a"b,c`}, true)
	want := `{"discard":"unmap","driver":"raw","file":{"discard":"unmap","driver":"file","filename":"/a\"b,c","read-only":true},"node-name":"root","read-only":true}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestAtLeast(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"7.2.22": false, "8.1.9": false, "8.2.0": true, "8.10.1": true, "10.0.2": true, "": false} {
		if atLeast(version, 8, 2) != want {
			t.Errorf("%q counts as at least 8.2: %v", version, !want)
		}
	}
}

// TestAnEmulatedTimerIsNotTested: it is late when the host is busy, and the kernel would panic.
func TestAnEmulatedTimerIsNotTested(t *testing.T) {
	t.Parallel()
	for accelerator, want := range map[string]bool{"tcg": true, "kvm": false} {
		caps := testCaps
		caps.Accelerator = accelerator
		args := arguments(caps, testSpec(), false, inherited{})
		line := args[slices.Index(args, "-append")+1]
		if got := slices.Contains(strings.Fields(line), "no_timer_check"); got != want || !strings.HasSuffix(line, " warmboot.debug=1") {
			t.Errorf("%s: the kernel's command line is %q", accelerator, line)
		}
	}
}

// TestEmulatedCPUsThatPatchCode: QEMU before 8.1 may run what one CPU has changed while another read it.
func TestEmulatedCPUsThatPatchCode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		version string
		vcpus   int
		want    string
	}{
		{"7.2.22", 1, "multi"}, {"7.2.22", 2, "single"}, {"8.0.5", 2, "single"}, {"8.1.0", 2, "multi"}, {"10.0.2", 4, "multi"},
	} {
		caps, spec := testCaps, testSpec()
		caps.Version, spec.VCPUs = c.version, c.vcpus
		args := arguments(caps, spec, false, inherited{})
		if got := args[slices.Index(args, "-accel")+1]; got != "tcg,thread="+c.want+",tb-size=512" {
			t.Errorf("QEMU %s with %d CPUs: -accel %s, want thread=%s", c.version, c.vcpus, got, c.want)
		}
	}
}
