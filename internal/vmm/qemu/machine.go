package qemu

import (
	"context"
	"errors"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// quitLimit is how long QEMU may take to write its disks' metadata and end before it is killed.
const quitLimit = 5 * time.Second

// machine is one QEMU process.
type machine struct {
	driver  *Driver
	spec    vmm.Spec // as created; MemoryFile is empty if the machine cannot be frozen
	process *process.Process
	handle  vmm.Handle
	timings []warmboot.Phase

	console process.Tail // what the guest's kernel has printed
	said    process.Tail // what QEMU has printed

	busy chan struct{} // holds a value while a command is given
	stop sync.Mutex
	gone bool // Stop has released everything
}

var (
	_ vmm.Machine       = (*machine)(nil)
	_ vmm.ConsoleKeeper = (*machine)(nil)
)

func (m *machine) Handle() vmm.Handle        { return m.handle }
func (m *machine) Timings() []warmboot.Phase { return m.timings }
func (m *machine) Done() <-chan struct{}     { return m.process.Done() }

// Console is the end of what the guest's kernel has printed, for finding out why a boot failed. It is kept in memory by the process
// that started the machine; after Recover there is none.
func (m *machine) Console() string { return m.console.String() }

func (m *machine) Pause(ctx context.Context) error {
	return m.command(ctx, "pause machine", func(q *qmp) error { return q.execute(ctx, "stop", nil, nil) })
}

func (m *machine) Resume(ctx context.Context) error {
	return m.command(ctx, "resume machine", func(q *qmp) error { return q.execute(ctx, "cont", nil, nil) })
}

func (m *machine) Snapshot(ctx context.Context, opts vmm.SnapshotOptions) (vmm.Snapshot, error) {
	const op = "snapshot machine"
	if m.spec.MemoryFile == "" {
		return vmm.Snapshot{}, warmboot.Errorf(warmboot.Invalid, op, "machine %s was not started with a memory file, so it cannot be frozen", m.handle.ID)
	}
	var undo rollback.Stack
	defer undo.Unwind()
	state, err := os.OpenFile(opts.StateFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return vmm.Snapshot{}, vmm.FileError(op, err)
	}
	undo.Push("create state file", func() error { return os.Remove(opts.StateFile) })
	defer state.Close()
	err = m.command(ctx, op, func(q *qmp) error {
		status, err := q.status(ctx)
		if err != nil {
			return err
		}
		if status != "paused" && status != "postmigrate" {
			return warmboot.Errorf(warmboot.Conflict, op, "machine %s is %s; pause it first", m.handle.ID, status)
		}
		return q.save(ctx, state)
	})
	if err != nil {
		return vmm.Snapshot{}, err
	}
	undo.Move()
	return vmm.Snapshot{
		MemoryFile: m.spec.MemoryFile, StateFile: opts.StateFile, VCPUs: m.spec.VCPUs, MemoryMiB: m.spec.MemoryMiB,
		Kernel: m.spec.Kernel, Initrd: m.spec.Initrd, KernelArgs: m.spec.KernelArgs,
	}, nil
}

func (m *machine) DialGuest(ctx context.Context) (net.Conn, error) {
	conn, err := dial(ctx, m.handle.Dir, guestSocket)
	if err != nil {
		return nil, m.unreachable(ctx, "dial guest", err)
	}
	return conn, nil
}

// command connects to QEMU, runs f and disconnects.
func (m *machine) command(ctx context.Context, op string, f func(*qmp) error) error {
	select {
	case m.busy <- struct{}{}:
		defer func() { <-m.busy }()
	case <-ctx.Done():
		return m.unreachable(ctx, op, ctx.Err())
	}
	conn, err := dial(ctx, m.handle.Dir, qmpSocket)
	if err != nil {
		return m.unreachable(ctx, op, err)
	}
	defer func() { _ = conn.Close() }()
	q := newQMP(conn)
	if err := q.greet(ctx); err != nil {
		return m.unreachable(ctx, op, err)
	}
	err = f(q)
	var refused *qmpError
	var ours *warmboot.Error
	switch {
	case err == nil, errors.As(err, &ours):
		return err
	case errors.As(err, &refused):
		return warmboot.Errorf(warmboot.Internal, op, "%w", err)
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
		// A guest that has begun to power off by itself may be gone before it is asked.
		_ = m.command(ctx, "power off machine", func(q *qmp) error { return q.execute(ctx, "system_powerdown", nil, nil) })
		m.process.Wait(ctx)
	}
	if err := m.kill(ctx); err != nil {
		return err
	}
	if err := releaseDir(m.handle.Dir); err != nil {
		return err
	}
	m.gone = true
	return nil
}

// kill ends QEMU: by itself if it can, so that the metadata of its disks is written, else by force. A ctx that is over
// makes it force at once.
func (m *machine) kill(ctx context.Context) error {
	if m.process.Ended() {
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, quitLimit)
	defer cancel()
	if err := m.process.Signal(unix.SIGTERM); err != nil {
		return warmboot.Errorf(warmboot.Internal, "stop machine", "process %d: %w", m.handle.PID, err)
	}
	if m.process.Wait(limit) {
		return nil
	}
	return m.process.Kill("stop machine")
}

// report logs, once QEMU has ended, what it had to say.
func (m *machine) report() {
	<-m.process.Done()
	m.driver.Log.Debug("QEMU ended", "machine", m.handle.ID, "pid", m.handle.PID, "said", process.Lines(m.said.String(), 5))
}
