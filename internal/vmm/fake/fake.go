// Package fake is a vmm.Driver without a VMM, for tests of what lies above. A machine lives in our own process: its guest
// is a function that serves the guest channel. Everything around the guest is real: memory is mapped from the memory file,
// shared or private as a VMM would; a snapshot is files that can be damaged; a published port is taken on the host.
package fake

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

const driverName = "fake"

// Step is something that can be made to fail.
type Step string

// The steps.
const (
	StepProbe    Step = "probe"
	StepCreate   Step = "create"
	StepRestore  Step = "restore"
	StepPause    Step = "pause"
	StepResume   Step = "resume"
	StepSnapshot Step = "snapshot"
	StepDial     Step = "dial"
	StepStop     Step = "stop" // the machine is stopped even so
	StepLimitCPU Step = "limit CPU of"
)

// Config is what a Driver needs. Every field may be zero.
type Config struct {
	// Guest serves one connection to the guest channel, and returns when it is done or the connection ends. Without it,
	// connections are closed at once.
	Guest func(conn net.Conn, s *State)
	// Forwarded serves one connection to a published TCP port. Without it, connections are closed at once.
	Forwarded func(conn net.Conn, guestPort uint16, s *State)
	// Fail is called before each step of each machine; what it returns is how the step fails. It may wait, to make a step slow.
	Fail func(ctx context.Context, step Step, id string) error
	// Version is the VMM's, "1.0" if empty. A snapshot is tied to it.
	Version string
}

// Driver runs machines in this process. It is safe for concurrent use.
type Driver struct {
	Config

	mu       sync.Mutex
	serial   uint64
	machines map[uint64]*machine // by start time, which is a serial number here
}

var _ vmm.Driver = (*Driver)(nil)

// New makes a driver. Recover finds the machines that this same driver has started, no others.
func New(c Config) *Driver {
	if c.Version == "" {
		c.Version = "1.0"
	}
	return &Driver{Config: c, machines: map[uint64]*machine{}}
}

// Name is "fake".
func (d *Driver) Name() string { return driverName }

func (d *Driver) fail(ctx context.Context, step Step, id string) error {
	if err := ctx.Err(); err != nil {
		return warmboot.Errorf(warmboot.CodeOf(err), string(step)+" machine", "%w", err)
	}
	if d.Fail == nil {
		return nil
	}
	return d.Fail(ctx, step, id)
}

// Probe tells what a fake machine is.
func (d *Driver) Probe(ctx context.Context) (vmm.Capabilities, error) {
	if err := d.fail(ctx, StepProbe, ""); err != nil {
		return vmm.Capabilities{}, err
	}
	return vmm.Capabilities{
		Driver: driverName, Version: d.Version, SnapshotVersion: d.Version, Accelerator: "none",
		AcceleratorWhy: "there is no VMM", MachineType: driverName, Arch: "x86_64", CPUModel: driverName,
	}, nil
}

// Create starts a machine.
func (d *Driver) Create(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	const op = "create machine"
	if err := check(op, spec.ID, spec.Kernel, spec.Initrd, spec.RootDisk.Path, spec.DataDisk.Path); err != nil {
		return nil, err
	}
	if err := d.fail(ctx, StepCreate, spec.ID); err != nil {
		return nil, err
	}
	var undo rollback.Stack
	defer undo.Unwind()
	if spec.MemoryFile != "" {
		f, err := os.OpenFile(spec.MemoryFile, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return nil, vmm.FileError(op, err)
		}
		undo.Push("create memory file", func() error { return os.Remove(spec.MemoryFile) })
		err = errors.Join(f.Truncate(int64(spec.MemoryMiB)<<20), f.Close())
		if err != nil {
			return nil, vmm.FileError(op, err)
		}
	}
	m, err := d.start(op, spec, spec.MemoryFile, unix.MAP_SHARED, 0)
	if err != nil {
		return nil, err
	}
	undo.Move()
	return m, nil
}

// deviceState is the content of a state file.
type deviceState struct {
	Fake      string        `json:"fake"` // the driver's version
	MemoryMiB int           `json:"memory_mib"`
	Uptime    time.Duration `json:"uptime_ns"`
}

// Restore starts a machine from a snapshot.
func (d *Driver) Restore(ctx context.Context, snap vmm.Snapshot, opts vmm.RestoreOptions) (vmm.Machine, error) {
	const op = "restore machine"
	if err := check(op, opts.ID, opts.RootDisk.Path, opts.DataDisk.Path, snap.MemoryFile, snap.StateFile); err != nil {
		return nil, err
	}
	if err := d.fail(ctx, StepRestore, opts.ID); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(snap.StateFile)
	if err != nil {
		return nil, vmm.FileError(op, err)
	}
	var state deviceState
	if err := json.Unmarshal(text, &state); err != nil || state.Fake != d.Version || state.MemoryMiB != snap.MemoryMiB {
		return nil, warmboot.Errorf(warmboot.Corrupt, op, "%s is not the state of such a machine; rebuild the snapshot", snap.StateFile)
	}
	info, err := os.Stat(snap.MemoryFile)
	if err != nil {
		return nil, vmm.FileError(op, err)
	}
	if info.Size() != int64(snap.MemoryMiB)<<20 {
		return nil, warmboot.Errorf(warmboot.Corrupt, op, "%s has %d bytes, not %d MiB; rebuild the snapshot", snap.MemoryFile, info.Size(), snap.MemoryMiB)
	}
	spec := vmm.Spec{ID: opts.ID, Dir: opts.Dir, MemoryMiB: snap.MemoryMiB, VCPUs: snap.VCPUs, Network: opts.Network}
	m, err := d.start(op, spec, snap.MemoryFile, unix.MAP_PRIVATE, state.Uptime)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// start maps a machine's memory, takes its ports and registers it.
func (d *Driver) start(op string, spec vmm.Spec, memoryFile string, sharing int, uptime time.Duration) (*machine, error) {
	began := time.Now()
	var undo rollback.Stack
	defer undo.Unwind()
	m := &machine{driver: d, spec: spec, done: make(chan struct{})}
	d.mu.Lock()
	d.serial++
	m.handle = vmm.Handle{Driver: driverName, ID: spec.ID, Dir: spec.Dir, PID: os.Getpid(), StartTime: d.serial}
	d.mu.Unlock()
	memory, err := mapMemory(memoryFile, spec.MemoryMiB<<20, sharing)
	if err != nil {
		return nil, vmm.FileError(op, err)
	}
	m.state = newState(m, memory, uptime)
	undo.Push("map memory", func() error {
		// It is in use until the last guest function has returned, and one of them may be our caller (State.PowerOff).
		go func() {
			m.guests.Wait()
			_ = unix.Munmap(memory)
		}()
		return nil
	})
	forwards := spec.Network.Forwards
	if spec.Network.TAP != "" {
		forwards = nil // whoever made it has opened them
	}
	for _, f := range forwards {
		l, err := m.forward(f)
		if err != nil {
			return nil, warmboot.Errorf(warmboot.Conflict, op, "%s port %d on %s cannot be published: %w; publish another port", f.Protocol, f.HostPort, f.HostIP, err)
		}
		undo.Push("publish port", l.Close)
	}
	m.timings = []warmboot.Phase{{Name: warmboot.PhaseVMM, Duration: time.Since(began)}}
	if sharing == unix.MAP_PRIVATE {
		m.timings = append(m.timings, warmboot.Phase{Name: warmboot.PhaseRestore, Duration: 0}) // loading is part of mapping
	}
	m.release = undo.Move()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.machines[m.handle.StartTime] = m
	return m, nil
}

// Recover finds a machine that this driver has started.
func (d *Driver) Recover(_ context.Context, h vmm.Handle) (vmm.Machine, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if m := d.machines[h.StartTime]; m != nil && m.handle == h {
		return m, nil
	}
	return nil, warmboot.Errorf(warmboot.NotFound, "recover machine", "machine %s is not running any more", h.ID)
}

// Kill ends a machine as if its VMM had crashed. It reports whether there was such a machine.
func (d *Driver) Kill(id string) bool {
	m := d.find(id)
	if m != nil {
		m.end()
	}
	return m != nil
}

// Alive reports whether there is a machine with this id.
func (d *Driver) Alive(id string) bool { return d.find(id) != nil }

func (d *Driver) find(id string) *machine {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.machines {
		if m.handle.ID == id {
			return m
		}
	}
	return nil
}

// check rejects a bad id, and files that are not there.
func check(op, id string, files ...string) error {
	for _, c := range id {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return warmboot.Errorf(warmboot.Invalid, op, "machine id %q is not 1 to 64 of a-z, 0-9 and '-'", id)
		}
	}
	for _, f := range files {
		if f == "" {
			continue
		}
		if !filepath.IsAbs(f) {
			return warmboot.Errorf(warmboot.Invalid, op, "%q is not an absolute path", f)
		}
		if _, err := os.Stat(f); err != nil {
			return vmm.FileError(op, err)
		}
	}
	return nil
}

// mapMemory maps a file, or anonymous memory if there is none.
func mapMemory(path string, size, sharing int) ([]byte, error) {
	const access = unix.PROT_READ | unix.PROT_WRITE
	if path == "" {
		return unix.Mmap(-1, 0, size, access, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	}
	mode := os.O_RDWR
	if sharing == unix.MAP_PRIVATE {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.Mmap(int(f.Fd()), 0, size, access, sharing)
}
