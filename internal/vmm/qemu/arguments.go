package qemu

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strings"

	"warmboot/internal/vmm"
)

// guestPort is the name under which the guest finds its end of the guest channel.
const guestPort = "org.warmboot.agent.0"

// guestMAC is the same for all that are not given another: every machine is alone in its network, and a clone has no chance to tell its
// neighbour.
const guestMAC = "52:54:00:77:62:01"

// The places of the devices on the PCI bus. They are part of what a snapshot and its clones must have in common, so they
// are stated and never left to the order of the arguments. A device that a machine does not have leaves its place free.
const (
	addrRoot = iota + 2
	addrData
	addrRandom
	addrSerial
	addrNetwork
)

// inherited are the numbers of the file descriptors that QEMU starts with.
type inherited struct {
	qmp, guest, console int
	tap                 int // 0 in user mode
}

// arguments is QEMU's command line for a machine. A machine that is created and one that is restored from its snapshot differ
// in how memory is mapped, and in -S and -incoming, and in nothing else.
func arguments(caps vmm.Capabilities, spec vmm.Spec, restored bool, fds inherited) []string {
	// What a Linux guest with virtio devices has no use for costs time at every start and restore.
	machine := "memory-backend=ram,smbus=off,sata=off,i8042=off,graphics=off,usb=off,vmport=off,hpet=off,dump-guest-core=off,mem-merge=off"
	machineType, firmware, _ := strings.Cut(caps.MachineType, "+")
	accel, cpu := "kvm", "host"
	if caps.Accelerator == "tcg" {
		// The translated code is kept small: a host runs many machines. Five-level page tables make every page walk of the
		// emulated MMU longer.
		accel, cpu = "tcg,thread="+tcgThreads(caps, spec)+",tb-size=512", "max,la57=off"
		// On a busy host the emulated timer may be so late that a kernel takes it for broken, and panics.
		spec.KernelArgs = append([]string{"no_timer_check"}, spec.KernelArgs...)
	}
	args := []string{
		"-name", "warmboot-" + spec.ID,
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-machine", machineType + "," + machine, "-accel", accel, "-cpu", cpu,
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%[1]d,threads=1", spec.VCPUs),
		"-m", fmt.Sprintf("%dM", spec.MemoryMiB),
		"-object", memory(caps, spec, restored),
		"-kernel", spec.Kernel, "-append", kernelCommandLine(spec),
	}
	if firmware != "" {
		args = append(args, "-bios", firmware+".rom")
	}
	if spec.Initrd != "" {
		args = append(args, "-initrd", spec.Initrd)
	}
	args = append(args,
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", fds.qmp), "-mon", "chardev=qmp,mode=control",
		"-chardev", fmt.Sprintf("socket,id=console,fd=%d", fds.console), "-serial", "chardev:console",
		"-chardev", fmt.Sprintf("socket,id=guest,fd=%d,server=on,wait=off", fds.guest),
	)
	device := func(addr int, driver string, properties ...string) {
		args = append(args, "-device", strings.Join(append([]string{
			driver, "bus=pcie.0", fmt.Sprintf("addr=0x%x", addr), "disable-legacy=on"}, properties...), ","))
	}
	if spec.RootDisk.Path != "" {
		args = append(args, "-blockdev", blockdev("root", spec.RootDisk, true))
		device(addrRoot, "virtio-blk-pci", "drive=root", "num-queues=1")
	}
	if spec.DataDisk.Path != "" {
		args = append(args, "-blockdev", blockdev("data", spec.DataDisk, false))
		device(addrData, "virtio-blk-pci", "drive=data", "num-queues=1")
	}
	args = append(args, "-object", "rng-builtin,id=random")
	device(addrRandom, "virtio-rng-pci", "rng=random")
	device(addrSerial, "virtio-serial-pci", "id=serial", "max_ports=2")
	args = append(args, "-device", "virtserialport,bus=serial.0,nr=1,chardev=guest,name="+guestPort)
	args = append(args, "-netdev", netdev(spec.Network, fds.tap))
	device(addrNetwork, "virtio-net-pci", "netdev=net", "mac="+cmp.Or(spec.Network.MAC, guestMAC), "romfile=")
	if restored {
		args = append(args, "-S", "-incoming", "defer")
	}
	return args
}

// tcgThreads says whether emulated CPUs are threads. Before 8.1, QEMU reads the code it translates before it watches that code for changes
// (its commit deba78709a): what another CPU writes in between is missed for good. Linux patches itself with all its CPUs running, and dies of
// it ("Oops: int3"), so there such CPUs take turns.
func tcgThreads(caps vmm.Capabilities, spec vmm.Spec) string {
	if spec.VCPUs > 1 && !atLeast(caps.Version, 8, 1) {
		return "single"
	}
	return "multi"
}

func memory(caps vmm.Capabilities, spec vmm.Spec, restored bool) string {
	size := fmt.Sprintf("id=ram,size=%dM", spec.MemoryMiB)
	switch {
	case spec.MemoryFile == "":
		return "memory-backend-ram," + size
	case !restored:
		return "memory-backend-file," + size + ",share=on,mem-path=" + escape(spec.MemoryFile)
	}
	private := "memory-backend-file," + size + ",share=off,mem-path=" + escape(spec.MemoryFile)
	if atLeast(caps.Version, 8, 2) {
		// The file is opened for reading only, yet the guest may write to its private copy. Before 8.2 there was no such
		// thing: the VMM's user must be allowed to write to the file, although nothing does.
		private += ",readonly=on,rom=off"
	}
	return private
}

// kernelCommandLine: a kernel that panics reboots, and a machine that reboots ends (-no-reboot).
func kernelCommandLine(spec vmm.Spec) string {
	return strings.Join(append([]string{"console=ttyS0", "quiet", "panic=-1"}, spec.GuestArgs()...), " ")
}

func blockdev(node string, d vmm.Disk, readOnly bool) string {
	format := d.Format
	if format == "" {
		format = vmm.Raw
	}
	text, err := json.Marshal(map[string]any{
		"node-name": node, "driver": format, "read-only": readOnly, "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": d.Path, "read-only": readOnly, "discard": "unmap"},
	})
	if err != nil {
		panic(err) // strings and booleans only
	}
	return string(text)
}

// netdev is the host's end of the interface. A TAP is inherited open, so that QEMU needs no right to open one.
func netdev(n vmm.Network, tap int) string {
	if n.TAP != "" {
		return fmt.Sprintf("tap,id=net,fd=%d", tap)
	}
	s := fmt.Sprintf("user,id=net,ipv6=off,net=%s,host=%s,dns=%s,dhcpstart=%s", n.Subnet.Masked(), n.Gateway(), n.DNS(), n.Guest().Addr())
	for _, f := range n.Forwards {
		s += fmt.Sprintf(",hostfwd=%s:%s:%d-%s:%d", f.Protocol, f.HostIP.Unmap(), f.HostPort, n.Guest().Addr(), f.GuestPort)
	}
	return s
}

// escape makes a path safe inside an argument that commas divide.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// atLeast compares a version such as "7.2.22".
func atLeast(version string, major, minor int) bool {
	var a, b int
	_, _ = fmt.Sscanf(version, "%d.%d", &a, &b) // what is no version counts as 0.0
	return a > major || (a == major && b >= minor)
}
