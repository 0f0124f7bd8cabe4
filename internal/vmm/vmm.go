// Package vmm is the seam between warmboot and the programs that run microVMs. It holds the contract (Driver, Machine)
// and the values that cross it; each VMM has a package of its own below it, and vmmtest is the one suite that decides
// whether a driver is right.
package vmm

import (
	"context"
	"net"
	"net/netip"
	"time"

	"warmboot"
)

// Driver starts microVMs with one kind of VMM. It is safe for concurrent use.
//
// Ownership: the caller makes Spec.Dir (empty) and removes it after Stop; the driver puts its sockets, logs and other
// files there and nowhere else. Disks, kernel and snapshot files belong to the caller and must stay as they are for as
// long as the machine lives. A method that returns an error has left no process, file, mount or network device behind.
type Driver interface {
	// Name is "firecracker", "qemu" or "fake".
	Name() string
	// Probe finds, by trying, what really works on this host. It may take seconds the first time and is remembered
	// for the life of the host's boot and the VMM binary.
	Probe(ctx context.Context) (Capabilities, error)
	// Create boots a machine from its kernel and returns once the VMM runs it; the guest is still booting.
	Create(ctx context.Context, spec Spec) (Machine, error)
	// Restore starts a machine from a snapshot and resumes it. The machine's RAM is a private copy-on-write mapping
	// of the snapshot's memory file, so one snapshot serves any number of machines at once.
	Restore(ctx context.Context, snap Snapshot, opts RestoreOptions) (Machine, error)
	// Recover takes charge again of a machine that an earlier process of ours started. A machine whose process is
	// gone, or whose PID now belongs to something else, is a NotFound error and everything of it is released.
	Recover(ctx context.Context, h Handle) (Machine, error)
}

// Machine is one running microVM. It is safe for concurrent use.
type Machine interface {
	// Handle is what must be kept, as JSON, to Recover this machine after a restart of our process.
	Handle() Handle
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Snapshot saves a paused machine's device state and memory. The machine must have been created with a
	// Spec.MemoryFile; it stays paused, and must be stopped before its files are used: the memory file may be live
	// until then. Connections to the guest do not survive it: there should be none.
	Snapshot(ctx context.Context, opts SnapshotOptions) (Snapshot, error)
	// DialGuest connects to the guest agent's channel. A machine has one such connection at a time under QEMU: the
	// caller closes the first before it dials again. The guest may not be listening yet: QEMU connects all the same, and the protocol
	// above retries; Firecracker connects when the guest listens, within a limit of its own. Under Firecracker before 1.16 the first connection to a
	// restored guest may break soon after it was made, on a busy host: then another is to be made.
	DialGuest(ctx context.Context) (net.Conn, error)
	// Timings tells how long the driver's own steps took: PhaseVMM, and PhaseRestore after a Restore.
	Timings() []warmboot.Phase
	// Done is closed when the VMM's process has ended, for whatever reason.
	Done() <-chan struct{}
	// Stop ends the machine and releases everything the driver holds for it. With grace > 0 the guest is first asked
	// to power off and given that long. Idempotent.
	Stop(ctx context.Context, grace time.Duration) error
}

// MemoryReclaimer is a Machine that can give memory which its guest does not use back to the host.
type MemoryReclaimer interface {
	// Reclaim asks the guest to do without mib MiB of its memory (0 gives all of it back) and returns how many MiB it does without
	// when it yields no more, or when ctx ends. A machine without the device for it is a Conflict.
	Reclaim(ctx context.Context, mib int) (int, error)
}

// CPULimiter is a Machine that its host can hold to less than its CPUs. The guest has no say in that, nor any means to tell.
type CPULimiter interface {
	// LimitCPU lets the machine, its VMM included, use so many CPUs from now on: a fraction at will, and never more than it has. That holds as
	// long as the machine does, whoever takes charge of it. An error means that it is not held to that. It is none where whoever set up the driver has
	// asked for machines without limits.
	LimitCPU(cpus float64) error
}

// ConsoleKeeper is a Machine that also keeps the end of what the guest's kernel has printed.
type ConsoleKeeper interface {
	// Console is that text; empty if nothing was printed, or if an earlier process of ours was the one to read it.
	Console() string
}

// Spec describes a machine to boot. Paths are absolute.
type Spec struct {
	ID         string // [a-z0-9-], 1 to 64: names the machine in processes and logs
	Dir        string // the machine's own empty directory
	VCPUs      int
	MemoryMiB  int
	Kernel     string
	Initrd     string   // may be empty
	KernelArgs []string // added to the driver's own, and to GuestArgs
	RootDisk   Disk     // read-only, shared by all machines; the guest's /dev/vda
	DataDisk   Disk     // the guest's /dev/vdb; a zero Disk means none
	// MemoryFile, if set, is where a snapshot finds the guest's RAM: a file that the driver creates with exactly MemoryMiB. QEMU maps it
	// shared and keeps the RAM there from the start, so that nothing is copied; Firecracker writes it at the snapshot. Empty means
	// that the machine cannot be frozen.
	MemoryFile string
	Network    Network
	Owner      Owner
}

// GuestArgs are what a guest finds on its kernel's command line under every VMM. The guest agent calls the network interface eth0, and so must a
// guest whose udev has other names for it. The root disk is named for a kernel without an initrd and for a distribution's initrd; the runtime
// images that we build do not look.
func (s *Spec) GuestArgs() []string {
	args := []string{"net.ifnames=0"}
	if s.RootDisk.Path != "" {
		args = append(args, "root=/dev/vda", "ro")
	}
	return append(args, s.KernelArgs...)
}

// DiskFormat is how a disk's bytes are laid out in its file.
type DiskFormat string

// The disk formats. Only QEMU reads QCOW2.
const (
	Raw   DiskFormat = "raw"
	QCOW2 DiskFormat = "qcow2"
)

// Disk is a file that a machine sees as a block device.
type Disk struct {
	Path   string     `json:"path"`
	Format DiskFormat `json:"format"`
}

// Network is the host side of a machine's one network interface. The guest's addresses are set by the guest agent, not
// here. There are two kinds: in user mode, which only QEMU has, the VMM routes by itself, without any privilege; with a TAP, the host
// does. A zero Network is for a machine without an interface, which QEMU does not make.
type Network struct {
	// TAP is the name of the host interface that the guest's is connected to; empty means user mode. It is there already, belongs
	// to the machine's owner, and has the same name as at the snapshot.
	TAP string `json:"tap,omitempty"`
	// Namespace is the path of the network namespace that TAP is in; empty means ours. The VMM's process runs in it.
	Namespace string `json:"namespace,omitempty"`
	// MAC is the guest's address at boot, "02:..."; with a TAP only, empty means that the VMM chooses. A restored machine keeps its
	// snapshot's until the guest agent changes it.
	MAC string `json:"mac,omitempty"`
	// Subnet is the network that the guest is in; its gateway, which stands for the host, is address 2 and its name server address 3.
	// In user mode the guest may take any other.
	Subnet netip.Prefix `json:"subnet"`
	// Forwards are host ports that lead into the guest. In user mode the VMM opens them; with a TAP, whoever made it does.
	Forwards []Forward `json:"forwards,omitempty"`
}

// Gateway is the address by which the guest reaches the host and, through it, everything else.
func (n Network) Gateway() netip.Addr { return nth(n.Subnet, 2) }

// DNS is the address of the name server that forwards to the host's.
func (n Network) DNS() netip.Addr { return nth(n.Subnet, 3) }

// Guest is the address, with its prefix length, that the guest takes.
func (n Network) Guest() netip.Prefix { return netip.PrefixFrom(nth(n.Subnet, 15), n.Subnet.Bits()) }

func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// Forward leads a host port into the guest.
type Forward struct {
	Protocol  warmboot.Protocol `json:"protocol"`
	HostIP    netip.Addr        `json:"host_ip"`
	HostPort  uint16            `json:"host_port"`
	GuestPort uint16            `json:"guest_port"`
}

// Owner is the unprivileged user that the VMM's process runs as, when we are root. Zero means: as ourselves.
type Owner struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
	// Readers is a group that the process is in besides, so that it can come to the files of snapshots by their paths. A process in a jail finds
	// them there and is in no other group. 0 is none.
	Readers uint32 `json:"readers,omitempty"`
}

// Groups are the groups that the owner is in besides its own.
func (o Owner) Groups() []uint32 {
	if o.Readers == 0 {
		return nil
	}
	return []uint32{o.Readers}
}

// Snapshot names the files of a frozen machine and what a restored machine must have in common with it.
type Snapshot struct {
	MemoryFile string // as large as the guest's memory; must not change while a machine restored from it lives
	StateFile  string // device state
	VCPUs      int
	MemoryMiB  int
	Kernel     string // boot files of the machine, part of the VMM's command line
	Initrd     string
	KernelArgs []string
}

// SnapshotOptions says where a snapshot's state goes. The memory stays in Spec.MemoryFile.
type SnapshotOptions struct {
	StateFile string
}

// RestoreOptions is what a restored machine has for itself.
type RestoreOptions struct {
	ID       string
	Dir      string // the machine's own empty directory
	RootDisk Disk   // the same content as at the snapshot
	DataDisk Disk   // a clone of the data disk at the instant of the pause
	Network  Network
	Owner    Owner
}

// Handle finds a running machine again. It is JSON on disk, so it holds no secret and every field is exported.
type Handle struct {
	Driver    string `json:"driver"`
	ID        string `json:"id"`
	Dir       string `json:"dir"`
	PID       int    `json:"pid"`
	StartTime uint64 `json:"start_time"` // of the process, in clock ticks since boot: field 22 of /proc/PID/stat; guards against a reused PID
}

// Capabilities is what a VMM can do on this host. Its fields that bear on restoring are part of a snapshot's fingerprint.
type Capabilities struct {
	Driver          string `json:"driver"`           // "qemu"
	Version         string `json:"version"`          // "7.2.22"
	Binary          string `json:"binary"`           // absolute path
	BinaryDigest    string `json:"binary_digest"`    // SHA-256, hexadecimal
	SnapshotVersion string `json:"snapshot_version"` // of the state format; the VMM's version where it has no other
	Accelerator     string `json:"accelerator"`      // "kvm" or "tcg"
	AcceleratorWhy  string `json:"accelerator_why"`  // one line: why not the faster one
	MachineType     string `json:"machine_type"`     // "pc-q35-7.2"
	Arch            string `json:"arch"`             // "x86_64"
	CPUModel        string `json:"cpu_model"`        // what the guest sees; under KVM vendor/family/model/stepping of the host
	KernelRelease   string `json:"kernel_release"`   // of the host; it matters only under KVM and is empty under TCG
	// Network is "tap" if machines here are connected to TAPs, and empty in user mode. A driver has no say in it: whoever gives the
	// machines their networks sets it. It belongs to what a snapshot must match, because the two offer a guest different features of
	// virtio-net (offloads), and a frozen guest cannot be told that one is gone.
	Network string `json:"network,omitempty"`
	// WritableMemoryFile means that Restore must be able to open a memory file for writing, though it maps it
	// privately and never writes to it (QEMU before 8.2).
	WritableMemoryFile bool `json:"writable_memory_file"`
	// Warning is what is known to be wrong with this VMM's version, and what to do about it; empty if nothing is. It is no part of
	// what a snapshot must match.
	Warning string `json:"warning,omitempty"`
	// Flawed means that what Warning tells may keep machines from working, so that another VMM is better where one works with KVM.
	Flawed bool `json:"flawed,omitempty"`
}

// FCVersion is the version as the API's fc_version tells it: "v1.15.1" for Firecracker, "qemu-7.2.22" for QEMU.
func (c Capabilities) FCVersion() string {
	if c.Driver == "firecracker" {
		return "v" + c.Version
	}
	return c.Driver + "-" + c.Version
}
