package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// The names in a machine's root, as far as it has them all. Those of the disks and of the guest channel's socket are kept in snapshots: a change of
// any of them is a change of layout.
const (
	apiSocket   = "api.sock"
	guestSocket = "guest.sock"
	kernelName  = "kernel"
	initrdName  = "initrd"
	rootName    = "rootfs"
	dataName    = "data"
	memoryName  = "memory"
	stateName   = "state"
)

// layout counts the changes of what a snapshot keeps of us: names, devices and their order.
const layout = 1

// machineFile in a machine's directory, which the VMM cannot reach, is what Recover needs.
const machineFile = "machine.json"

// kept is the content of machineFile.
type kept struct {
	Spec    vmm.Spec `json:"spec"`   // MemoryFile is empty if the machine cannot be frozen
	Memory  string   `json:"memory"` // the name by which the process knows the memory file
	Jailed  bool     `json:"jailed"`
	Release Release  `json:"release"` // of the process, which may be older than the binary that is installed by now
}

// names are those by which a machine's process knows the files that were placed for it; "" for what it does not have.
type names map[string]string

// launch starts Firecracker for a machine with its disks and files, as far as they have targets, and lets setUp do what must be done before it counts
// as started.
func (d *Driver) launch(ctx context.Context, op string, f *found, spec vmm.Spec, restored bool, setUp func(context.Context, *Client, names) error, files ...placed) (_ *machine, err error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	start := time.Now()
	var undo rollback.Stack
	defer func() {
		if undoErr := undo.Unwind(); undoErr != nil {
			d.Log.Error("What a microVM that did not start had taken could not all be released", "machine", spec.ID, "err", undoErr)
		}
	}()
	fail := func(err error) error {
		if ctx.Err() != nil {
			return failure(ctx, op, restored, err, "", nil)
		}
		if ours := (*warmboot.Error)(nil); errors.As(err, &ours) {
			return ours
		}
		return warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}

	m := &machine{driver: d, kept: kept{Spec: spec, Jailed: !d.Unjailed, Release: f.release}, busy: make(chan struct{}, 1)}
	if restored {
		m.kept.Spec.MemoryFile = "" // its memory is private, so it cannot be frozen again
		m.knock.Store(needsKnock(f.release))
	}
	files = append(files,
		placed{name: rootName, target: spec.RootDisk.Path, fixed: true},
		placed{name: dataName, target: spec.DataDisk.Path, fixed: true, writable: true},
		placed{name: memoryName, target: spec.MemoryFile, writable: true})
	files = slices.DeleteFunc(files, func(p placed) bool { return p.target == "" })
	known := names{}
	for _, p := range files {
		known[p.name] = d.starter.name(p)
	}
	m.kept.Memory = known[memoryName]
	undo.Push("prepare machine", func() error { return removeFiles(spec.Dir) })
	if err := m.remember(); err != nil {
		return nil, fail(err)
	}

	console, err := process.NewOutput(&m.console)
	if err != nil {
		return nil, fail(err)
	}
	defer console.Theirs.Close()
	said, err := process.NewOutput(&m.said)
	if err != nil {
		return nil, fail(err)
	}
	defer said.Theirs.Close()
	m.drained = []<-chan struct{}{console.Drained(), said.Drained()}
	var root *os.File
	var w *watcher
	defer func() {
		root.Close() // nil is no file, and that is no error worth knowing
		w.close()
	}()
	m.process, err = d.starter.start(order{f.caps.Binary, arguments, spec, files, console.Theirs, said.Theirs}, func(r *os.File) (err error) {
		root = r
		w, err = watch(root)
		return err
	})
	if err != nil {
		return nil, fail(fmt.Errorf("start %s: %w", f.caps.Binary, err))
	}
	// So that what it prints has an end when it has.
	console.Theirs.Close()
	said.Theirs.Close()
	undo.Push("start Firecracker", func() error {
		return errors.Join(m.kill(), d.jail.cgroups.remove(spec.ID))
	})
	m.handle = vmm.Handle{Driver: driverName, ID: spec.ID, Dir: spec.Dir, PID: m.process.PID, StartTime: m.process.StartTime}

	alive, stop := whileAlive(ctx, m.process)
	defer stop()
	conn, err := awaitSocket(alive, w, root, apiSocket, spec.Owner)
	if err != nil {
		err = m.failed(ctx, op, restored, err)
		if how := m.process.State(); m.kept.Jailed && how != nil && how.ExitCode() == exitJailer {
			err = warmboot.Errorf(warmboot.Internal, op, "the jail could not be made, or Firecracker ended in it at once: %s; `warmboot doctor` tells what this host lacks", process.Lines(m.said.String(), 3))
		}
		return nil, err
	}
	c := NewClient(conn, f.release)
	defer func() { _ = c.Close() }()
	if restored {
		m.timings, start = append(m.timings, warmboot.Phase{Name: warmboot.PhaseVMM, Duration: time.Since(start)}), time.Now()
	}
	if err := setUp(ctx, c, known); err != nil {
		return nil, m.failed(ctx, op, restored, err)
	}
	phase := warmboot.PhaseVMM
	if restored {
		phase = warmboot.PhaseRestore
	}
	m.timings = append(m.timings, warmboot.Phase{Name: phase, Duration: time.Since(start)})
	undo.Move()
	go m.report()
	return m, nil
}

// arguments is Firecracker's command line, without its id. What is logged goes to the console's stream, between the guest's lines. Errors are worth
// that; warnings come by the dozen while a kernel looks for devices.
var arguments = []string{"--api-sock", apiSocket, "--level", "Error"}

// errEnded is the cause of a context that whileAlive ended.
var errEnded = errors.New("the process ended")

// whileAlive derives a context that ends with a process: nobody waits for the socket of a process that is gone.
func whileAlive(ctx context.Context, p *process.Process) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-p.Done():
			cancel(errEnded)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// failed is the error of a machine whose process did not come up or refused something. If it is about to end it is given the time, because
// how it ended tells more.
func (m *machine) failed(ctx context.Context, op string, restored bool, cause error) error {
	var ours *warmboot.Error
	if errors.As(cause, &ours) && !m.process.Ended() && ctx.Err() == nil {
		return cause // nothing was sent
	}
	wait, cancel := context.WithTimeout(ctx, endLimit)
	defer cancel()
	var refused *Refusal
	if !errors.As(cause, &refused) || restored {
		m.process.Wait(wait)
	}
	if m.process.Ended() {
		m.drain()
	}
	m.driver.Log.Debug("A microVM did not start", "machine", m.handle.ID, "pid", m.handle.PID, "how", ending(m.process.State()), "err", cause)
	return failure(ctx, op, restored, cause, m.said.String(), m.process.State())
}

// endLimit is how long a process may take to end that has said that it will, or has stopped answering.
const endLimit = time.Second

// remember writes down what the machine consists of.
func (m *machine) remember() error {
	text, err := json.Marshal(m.kept)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(m.kept.Spec.Dir, machineFile), text, 0o600)
}

func recall(dir string) (k kept, err error) {
	text, err := os.ReadFile(filepath.Join(dir, machineFile))
	if err != nil {
		return k, err
	}
	return k, json.Unmarshal(text, &k)
}

// openRoot opens the root of a machine that runs.
func (m *machine) openRoot() (*os.File, error) {
	if m.kept.Jailed {
		return m.process.Root()
	}
	return os.Open(filepath.Join(m.handle.Dir, rootDir))
}

// release removes everything of a machine whose process is gone. What is not there is no error.
func (d *Driver) release(id, dir string) error {
	if err := errors.Join(d.jail.cgroups.remove(id), removeFiles(dir)); err != nil {
		return warmboot.Errorf(warmboot.Internal, "release machine", "%w", err)
	}
	return nil
}

// removeFiles removes what a machine has in its directory.
func removeFiles(dir string) error {
	return errors.Join(os.RemoveAll(filepath.Join(dir, rootDir)), ignoreMissing(os.Remove(filepath.Join(dir, jailDir))), ignoreMissing(os.Remove(filepath.Join(dir, machineFile))))
}
