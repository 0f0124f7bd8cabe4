// Package qemu drives QEMU, under KVM where that works and as a pure emulator elsewhere.
//
// A machine is one QEMU process that runs as a user of its own, without capabilities, in QEMU's seccomp sandbox. It is not
// a child in spirit: it goes on when we end, and Recover finds it again. For that, its two sockets lie in the machine's
// directory; we make them, and QEMU inherits them already listening, so that no connection ever has to be retried. Every
// call connects to QMP, says what it wants, and disconnects: two of our processes, or two Drivers, can take turns.
//
// A snapshot is the memory file, which a machine that will be frozen has mapped shared from the start, and the state of the
// devices, which QEMU writes as a migration stream that leaves shared memory out. A restored machine maps the same memory
// file privately. Both must have the same devices at the same places: see arguments.
package qemu

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

const driverName = "qemu"

// startLimit is how long a QEMU process may take to become ready to take commands, and to load a state. Both take a fraction of a
// second; the limit is for a host that is out of memory.
const startLimit = 30 * time.Second

// maxVCPUs is what QEMU's q35 machine takes.
const maxVCPUs = 255

// Config is what a Driver needs. Every field may be zero.
type Config struct {
	Binary   string // "qemu-system-x86_64", looked up in PATH
	StateDir string // where what Probe found out is remembered; empty: nowhere
	// ProbeKernel is what Probe boots to find out whether KVM works; by default the newest kernel in /boot.
	ProbeKernel string
	Accelerator string // "kvm" or "tcg"; empty: KVM if it works
	Log         *slog.Logger
}

// Driver runs machines with QEMU. It is safe for concurrent use.
type Driver struct {
	Config

	probing sync.Mutex
	found   *vmm.Capabilities
}

var _ vmm.Driver = (*Driver)(nil)

// New makes a driver. Nothing is looked at until the first call.
func New(c Config) *Driver {
	if c.Binary == "" {
		c.Binary = "qemu-system-x86_64"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Driver{Config: c}
}

// Name is "qemu".
func (d *Driver) Name() string { return driverName }

// Create boots a machine.
func (d *Driver) Create(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	const op = "create machine"
	if err := validate(op, spec); err != nil {
		return nil, err
	}
	caps, err := d.Probe(ctx)
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
	m, err := d.launch(ctx, op, caps, spec, false, func(context.Context, *qmp) error { return nil })
	if err != nil {
		return nil, err
	}
	undo.Move()
	return m, nil
}

// Restore starts a machine from a snapshot.
func (d *Driver) Restore(ctx context.Context, snap vmm.Snapshot, opts vmm.RestoreOptions) (vmm.Machine, error) {
	const op = "restore machine"
	spec := vmm.Spec{
		ID: opts.ID, Dir: opts.Dir, RootDisk: opts.RootDisk, DataDisk: opts.DataDisk, Network: opts.Network, Owner: opts.Owner,
		VCPUs: snap.VCPUs, MemoryMiB: snap.MemoryMiB, Kernel: snap.Kernel, Initrd: snap.Initrd, KernelArgs: snap.KernelArgs,
		MemoryFile: snap.MemoryFile,
	}
	if err := validate(op, spec); err != nil {
		return nil, err
	}
	if err := snap.CheckFiles(op); err != nil {
		return nil, err
	}
	state, err := os.Open(snap.StateFile)
	if err != nil {
		return nil, vmm.FileError(op, err)
	}
	defer state.Close()
	caps, err := d.Probe(ctx)
	if err != nil {
		return nil, err
	}
	m, err := d.launch(ctx, op, caps, spec, true, func(ctx context.Context, q *qmp) error {
		if err := q.load(ctx, state); err != nil {
			return err
		}
		return q.execute(ctx, "cont", nil, nil)
	})
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
	p, err := process.Find(h.PID, h.StartTime)
	if errors.Is(err, process.ErrGone) {
		return nil, errors.Join(
			warmboot.Errorf(warmboot.NotFound, op, "machine %s (process %d) is not running any more", h.ID, h.PID), releaseDir(h.Dir))
	}
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	m := &machine{driver: d, process: p, handle: h, busy: make(chan struct{}, 1)}
	if m.spec, err = recall(h.Dir); err != nil {
		// It can still be used and stopped, but not frozen.
		d.Log.Warn("what a machine consists of is no longer known", "machine", h.ID, "error", err)
	}
	return m, nil
}

// validate rejects what QEMU would not understand, or understand as something else.
func validate(op string, spec vmm.Spec) error {
	if err := spec.Check(op, maxVCPUs); err != nil {
		return err
	}
	invalid := func(format string, args ...any) error {
		return warmboot.Errorf(warmboot.Invalid, op, format, args...)
	}
	if spec.Kernel == "" {
		return invalid("a machine needs a kernel")
	}
	if !spec.Network.Subnet.IsValid() || !spec.Network.Subnet.Addr().Is4() {
		return invalid("%v is not an IPv4 network for the guest", spec.Network.Subnet)
	}
	for _, f := range spec.Network.Forwards {
		if !f.HostIP.Is4() && !f.HostIP.Is4In6() {
			return invalid("port %d cannot be published on %v: QEMU's user-mode network forwards IPv4 only; publish it on 0.0.0.0 or 127.0.0.1", f.HostPort, f.HostIP)
		}
		if f.HostPort == 0 || f.GuestPort == 0 || (f.Protocol != warmboot.TCP && f.Protocol != warmboot.UDP) {
			return invalid("cannot forward %s port %d to %d", f.Protocol, f.HostPort, f.GuestPort)
		}
	}
	return nil
}
