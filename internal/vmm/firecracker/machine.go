package firecracker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// machine is one Firecracker process.
type machine struct {
	driver  *Driver
	kept    kept
	process *process.Process
	handle  vmm.Handle
	timings []warmboot.Phase

	console process.Tail // what the guest's kernel has printed, and Firecracker's log
	said    process.Tail // what Firecracker has written to its standard error

	drained []<-chan struct{} // closed when everything that the process has printed is in console and said

	knock atomic.Bool // before the guest is dialled; see knockPort

	killed atomic.Bool // by us

	busy chan struct{} // holds a value while a command is given
	stop sync.Mutex
	gone bool // Stop has released everything
}

var (
	_ vmm.Machine         = (*machine)(nil)
	_ vmm.ConsoleKeeper   = (*machine)(nil)
	_ vmm.MemoryReclaimer = (*machine)(nil)
	_ vmm.CPULimiter      = (*machine)(nil)
)

func (m *machine) Handle() vmm.Handle        { return m.handle }
func (m *machine) Timings() []warmboot.Phase { return m.timings }
func (m *machine) Done() <-chan struct{}     { return m.process.Done() }

// Console is the end of what the guest's kernel has printed, for finding out why a boot failed. It is kept in memory by the process
// that started the machine; after Recover there is none.
func (m *machine) Console() string { return m.console.String() }

// LimitCPU lowers what the machine's cgroup may use. A process that is not in a jail has none.
func (m *machine) LimitCPU(cpus float64) error {
	const op = "limit CPU of machine"
	if cpus <= 0 {
		return warmboot.Errorf(warmboot.Invalid, op, "machine %s cannot run on %g CPUs", m.handle.ID, cpus)
	}
	if !m.kept.Jailed {
		return nil
	}
	jail := m.driver.jail
	err := jail.cgroups.limitCPU(m.kept.Spec, cpus)
	if err == nil || jail.unlimited && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return warmboot.Errorf(warmboot.Internal, op, "machine %s could not be held to %g CPUs: %w; its cgroup must be there, and writable", m.handle.ID, cpus, err)
}

func (m *machine) Pause(ctx context.Context) error {
	return m.command(ctx, "pause machine", func(c *Client) error { return c.Pause(ctx) })
}

// Resume lets the machine go on. One whose process refuses that is in a state that nobody knows, so it is ended.
func (m *machine) Resume(ctx context.Context) error {
	const op = "resume machine"
	return m.command(ctx, op, func(c *Client) error {
		err := c.Resume(ctx)
		var refused *Refusal
		if !errors.As(err, &refused) {
			return err
		}
		return warmboot.Errorf(warmboot.Unavailable, op, "machine %s did not go on and was ended: %w", m.handle.ID, errors.Join(err, m.kill()))
	})
}

// Snapshot lets Firecracker write the memory into a file that we have made and opened to it, and the state, which is small, into its root. We fetch
// it from there, because the root is all that a process in a jail finds by then.
func (m *machine) Snapshot(ctx context.Context, opts vmm.SnapshotOptions) (vmm.Snapshot, error) {
	const op = "snapshot machine"
	spec := m.kept.Spec
	if spec.MemoryFile == "" {
		return vmm.Snapshot{}, warmboot.Errorf(warmboot.Invalid, op, "machine %s was not started with a memory file, so it cannot be frozen", m.handle.ID)
	}
	var undo rollback.Stack
	defer undo.Unwind()
	err := m.command(ctx, op, func(c *Client) error {
		info, err := c.Instance(ctx)
		if err != nil {
			return err
		}
		if info.State != "Paused" {
			return warmboot.Errorf(warmboot.Conflict, op, "machine %s is %.20q; pause it first", m.handle.ID, info.State)
		}
		root, err := m.openRoot() // before, because a process that has ended has none
		if err != nil {
			return err
		}
		defer root.Close()
		if err := c.CreateSnapshot(ctx, SnapshotCreate{SnapshotType: "Full", MemFilePath: m.kept.Memory, SnapshotPath: stateName}); err != nil {
			return err
		}
		if err := m.fetchState(root, opts.StateFile); err != nil {
			return vmm.FileError(op, err)
		}
		undo.Push("fetch state file", func() error { return os.Remove(opts.StateFile) })
		return nil
	})
	if err != nil {
		return vmm.Snapshot{}, err
	}
	snap := vmm.Snapshot{
		MemoryFile: spec.MemoryFile, StateFile: opts.StateFile, VCPUs: spec.VCPUs, MemoryMiB: spec.MemoryMiB,
		Kernel: spec.Kernel, Initrd: spec.Initrd, KernelArgs: spec.KernelArgs,
	}
	if err := snap.CheckFiles(op); err != nil {
		return vmm.Snapshot{}, err
	}
	if err := punchZeros(snap.MemoryFile); err != nil {
		return vmm.Snapshot{}, vmm.FileError(op, err)
	}
	undo.Move()
	return snap, nil
}

// command connects to Firecracker, runs f and disconnects.
func (m *machine) command(ctx context.Context, op string, f func(*Client) error) error {
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	case <-ctx.Done():
		return m.unreachable(ctx, op, ctx.Err())
	}
	conn, err := m.dial(ctx, apiSocket)
	if err != nil {
		return m.unreachable(ctx, op, err)
	}
	c := NewClient(conn, m.kept.Release)
	defer func() { _ = c.Close() }()
	err = f(c)
	var refused *Refusal
	var ours *warmboot.Error
	switch {
	case err == nil, errors.As(err, &ours):
		return err
	case errors.As(err, &refused):
		return refusalError(op, refused)
	}
	return m.unreachable(ctx, op, err)
}

// unreachable is the error of a machine that did not answer.
func (m *machine) unreachable(ctx context.Context, op string, err error) error {
	return vmm.UnreachableError(ctx, op, m.handle.ID, err)
}

// Stop ends the machine.
func (m *machine) Stop(ctx context.Context, grace time.Duration) error {
	m.stop.Lock() // held for seconds at most, so a second caller waits for the first to be done
	defer m.stop.Unlock()
	if m.gone {
		return nil
	}
	if grace > 0 && !m.process.Ended() {
		ctx, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		// A guest that has begun to go down by itself may be gone before it is asked.
		_ = m.command(ctx, "power off machine", func(c *Client) error { return c.SendCtrlAltDel(ctx) })
		m.process.Wait(ctx)
	}
	if err := m.kill(); err != nil {
		return err
	}
	if err := m.driver.release(m.handle.ID, m.handle.Dir); err != nil {
		return err
	}
	m.gone = true
	return nil
}

// kill ends Firecracker by force: it has nothing to put in order, because what the guest has written is the host's by then.
func (m *machine) kill() error {
	if m.process.Ended() {
		return nil
	}
	m.killed.Store(true)
	return m.process.Kill("stop machine")
}

// drain waits for the last words of a process that has ended.
func (m *machine) drain() {
	for _, d := range m.drained {
		<-d
	}
}

// report logs, once Firecracker has ended, how it did and what it had to say.
func (m *machine) report() {
	<-m.process.Done()
	m.drain()
	how := ending(m.process.State())
	if m.killed.Load() {
		how = "it was stopped"
	}
	m.driver.Log.Debug("Firecracker ended", "machine", m.handle.ID, "pid", m.handle.PID, "how", how, "said", process.Lines(m.said.String(), 5))
}
