// Package firecracker drives Firecracker, which needs KVM.
//
// A machine is one Firecracker process that runs as a user of its own. Like QEMU's it is not a child in spirit: it goes on when we
// end, and Recover finds it again. It makes its own sockets, so they lie in a directory that is its own (the root); every call connects
// to the API, says what it wants, and disconnects. The process is told of all files by their names in the root, because a snapshot
// keeps names, and each clone must find its own files under them; see starter.
//
// A body with a field that a release does not know is refused, so each field says which releases have it (wire.go). A snapshot load
// that fails leaves a process that is of no more use and ends; nothing is tried in it again.
//
// The guest channel is vsock: a connection to the machine's socket becomes one to the guest's port after a line each way (guest.go).
//
// Firecracker itself is no part of this project. Tests run against package standin, a program of ours that is as strict as Firecracker
// on the wire, and against the real one where a test is told where it is.
package firecracker

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

const driverName = "firecracker"

// startLimit is how long a process may take to be ready to take commands, and to boot or load. Both take a fraction of a second; the limit is
// for a host that is out of memory.
const startLimit = 30 * time.Second

// maxVCPUs is what Firecracker takes.
const maxVCPUs = 32

// guestCID is the guest's vsock address. Every machine has a socket of its own, so it can be the same for all: the first that is free.
const guestCID = 3

// Config is what a Driver needs. Every field may be zero.
type Config struct {
	Binary string // "firecracker", looked up in PATH
	// Jailer is Firecracker's jailer, in which every process is started, as root, for a machine with an owner; by default "jailer" beside Binary, or
	// else the one in PATH.
	Jailer string
	// Unjailed starts Firecracker without the jailer: no wall is around it but its user and its seccomp filter. For development only.
	Unjailed bool
	// Cgroup is the cgroup below which each jailed machine has one of its own, which limits it; "warmboot" below the root of the hierarchy.
	Cgroup string
	// Unlimited gives jailed machines no cgroups. One machine can then take what others need.
	Unlimited bool
	// StateDir is where unpacked kernels are kept, and what Probe found out. Empty: only kernels that are ELF files already can be booted, and
	// every Driver finds out for itself.
	StateDir string
	// ProbeKernel is what Probe boots to find out whether KVM works; by default the newest kernel in /boot.
	ProbeKernel string
	// Balloon gives machines a balloon device, so that they are MemoryReclaimers. A snapshot keeps it.
	Balloon bool
	Log     *slog.Logger
}

// Driver runs machines with Firecracker. It is safe for concurrent use.
type Driver struct {
	Config
	starter   starter
	jail      *jailed    // for machines that were started in one, too
	unpacking sync.Mutex // of kernels

	probing sync.Mutex
	found   *found
}

// found is what Probe has found.
type found struct {
	caps    vmm.Capabilities
	release Release
	file    identity // of the binary
}

var _ vmm.Driver = (*Driver)(nil)

// New makes a driver. Nothing is looked at until the first call.
func New(c Config) *Driver {
	if c.Binary == "" {
		c.Binary = driverName
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	d := &Driver{Config: c, jail: newJailed(c)}
	d.starter = d.jail
	if c.Unjailed {
		d.starter = direct{}
	}
	return d
}

// Name is "firecracker".
func (d *Driver) Name() string { return driverName }

// Create boots a machine.
func (d *Driver) Create(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	const op = "create machine"
	if err := validate(op, spec); err != nil {
		return nil, err
	}
	if spec.Kernel == "" {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "a machine needs a kernel")
	}
	if err := ctx.Err(); err != nil {
		return nil, warmboot.Errorf(warmboot.CodeOf(err), op, "%w", err)
	}
	f, err := d.ready(ctx)
	if err != nil {
		return nil, err
	}
	var undo rollback.Stack
	defer undo.Unwind()
	if spec.MemoryFile != "" {
		if err := spec.MakeMemoryFile(); err != nil {
			return nil, err
		}
		undo.Push("create memory file", func() error { return os.Remove(spec.MemoryFile) })
	}
	m, err := d.create(ctx, op, f, spec)
	if err != nil {
		return nil, err
	}
	undo.Move()
	return m, nil
}

// ready is what comes before each start.
func (d *Driver) ready(ctx context.Context) (*found, error) {
	f, err := d.probe(ctx)
	if err == nil && !d.Unjailed {
		d.jail.sweep.Do(func() { // by now whoever uses us has ended what it does not know
			if err := d.jail.cgroups.sweep(); err != nil {
				d.Log.Warn("The cgroups of microVMs that are gone could not all be removed", "err", err)
			}
		})
	}
	return f, err
}

func (d *Driver) create(ctx context.Context, op string, f *found, spec vmm.Spec) (*machine, error) {
	kernel, err := d.elfKernel(ctx, op, spec)
	if err != nil {
		return nil, err
	}
	return d.launch(ctx, op, f, spec, false, func(ctx context.Context, c *Client, known names) error { return d.boot(ctx, c, spec, known) },
		placed{name: kernelName, target: kernel}, placed{name: initrdName, target: spec.Initrd})
}

// boot puts a machine's parts together and starts it.
func (d *Driver) boot(ctx context.Context, c *Client, spec vmm.Spec, known names) error {
	source := BootSource{KernelImagePath: known[kernelName], InitrdPath: known[initrdName], BootArgs: kernelCommandLine(spec)}
	steps := []func() error{
		func() error {
			return c.PutMachineConfig(ctx, MachineConfig{VCPUCount: spec.VCPUs, MemSizeMiB: spec.MemoryMiB})
		},
		func() error { return c.PutBootSource(ctx, source) },
	}
	// In this order they are the guest's /dev/vda and /dev/vdb.
	if spec.RootDisk.Path != "" {
		steps = append(steps, func() error {
			return c.PutDrive(ctx, Drive{DriveID: "root", PathOnHost: rootName, IsReadOnly: true})
		})
	}
	if spec.DataDisk.Path != "" {
		// Flushes reach the host's disk, as the guest's Docker expects.
		steps = append(steps, func() error {
			return c.PutDrive(ctx, Drive{DriveID: "data", PathOnHost: dataName, CacheType: "Writeback"})
		})
	}
	if n := spec.Network; n.TAP != "" {
		steps = append(steps, func() error {
			return c.PutNetworkInterface(ctx, NetworkInterface{IfaceID: ifaceID, HostDevName: n.TAP, GuestMAC: n.MAC})
		})
	}
	steps = append(steps,
		func() error { return c.PutVsock(ctx, Vsock{GuestCID: guestCID, UDSPath: guestSocket}) },
		func() error { return c.PutEntropy(ctx, Entropy{}) },
	)
	if d.Balloon {
		steps = append(steps, func() error { return c.PutBalloon(ctx, balloon) })
	}
	for _, step := range append(steps, func() error { return c.Start(ctx) }) {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// ifaceID names the machine's one network interface.
const ifaceID = "eth0"

// kernelCommandLine: Firecracker has no power switch, but ends when the guest reboots by way of the keyboard controller, which it has for nothing
// else. There is no PCI bus to look for, and one serial port.
func kernelCommandLine(spec vmm.Spec) string {
	return strings.Join(append([]string{
		"console=ttyS0", "quiet", "reboot=k", "panic=-1", "pci=off", "8250.nr_uarts=1", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd",
	}, spec.GuestArgs()...), " ")
}

// Restore starts a machine from a snapshot.
func (d *Driver) Restore(ctx context.Context, snap vmm.Snapshot, opts vmm.RestoreOptions) (vmm.Machine, error) {
	const op = "restore machine"
	spec := vmm.Spec{
		ID: opts.ID, Dir: opts.Dir, RootDisk: opts.RootDisk, DataDisk: opts.DataDisk, Network: opts.Network, Owner: opts.Owner,
		VCPUs: snap.VCPUs, MemoryMiB: snap.MemoryMiB,
	}
	if err := validate(op, spec); err != nil {
		return nil, err
	}
	if err := snap.CheckFiles(op); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, warmboot.Errorf(warmboot.CodeOf(err), op, "%w", err)
	}
	f, err := d.ready(ctx)
	if err != nil {
		return nil, err
	}
	m, err := d.launch(ctx, op, f, spec, true, func(ctx context.Context, c *Client, known names) error {
		return c.LoadSnapshot(ctx, SnapshotLoad{SnapshotPath: known[stateName], MemBackend: MemBackend{"File", known[memoryName]}, ResumeVM: true})
	}, placed{name: memoryName, target: snap.MemoryFile}, placed{name: stateName, target: snap.StateFile})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Recover takes charge of a machine that was started before.
func (d *Driver) Recover(_ context.Context, h vmm.Handle) (vmm.Machine, error) {
	const op = "recover machine"
	if h.Driver != driverName {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "machine %s was started with %q, not with %s", h.ID, h.Driver, driverName)
	}
	k, recallErr := recall(h.Dir)
	p, err := process.Find(h.PID, h.StartTime)
	if errors.Is(err, process.ErrGone) {
		return nil, errors.Join(
			warmboot.Errorf(warmboot.NotFound, op, "machine %s (process %d) is not running any more", h.ID, h.PID), d.release(h.ID, h.Dir))
	}
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	m := &machine{driver: d, process: p, handle: h, kept: k, busy: make(chan struct{}, 1)}
	m.knock.Store(needsKnock(k.Release)) // whoever restored it may not have come to dialling
	if recallErr != nil {
		// Without it nothing can be said to the machine but that it is to end, and that is better than that it runs on unknown.
		d.Log.Warn("What a microVM consists of is no longer known; it is ended", "machine", h.ID, "err", recallErr)
		return nil, errors.Join(
			warmboot.Errorf(warmboot.NotFound, op, "what machine %s consists of cannot be read any more, so it was ended: %w", h.ID, recallErr), m.Stop(context.Background(), 0))
	}
	return m, nil
}

// validate rejects what Firecracker cannot do.
func validate(op string, spec vmm.Spec) error {
	if err := spec.Check(op, maxVCPUs); err != nil {
		return err
	}
	for _, disk := range []vmm.Disk{spec.RootDisk, spec.DataDisk} {
		if disk.Format != "" && disk.Format != vmm.Raw {
			return warmboot.Errorf(warmboot.Invalid, op, "Firecracker reads raw disks only, and %s is %s; convert it, or use QEMU", disk.Path, disk.Format)
		}
	}
	if n := spec.Network; n.TAP == "" && len(n.Forwards) > 0 {
		return warmboot.Errorf(warmboot.Invalid, op, "Firecracker publishes no ports by itself (%d is asked for); give the machine a TAP, behind which the host does", n.Forwards[0].HostPort)
	}
	return nil
}
