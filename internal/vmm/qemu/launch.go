package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/netns"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// The files of a machine's directory.
const (
	qmpSocket   = "qmp.sock"
	guestSocket = "guest.sock"
	specFile    = "machine.json" // the vmm.Spec, for Recover
)

// launch starts QEMU for a machine and lets load do what must be done before it counts as started.
func (d *Driver) launch(ctx context.Context, op string, caps vmm.Capabilities, spec vmm.Spec, restored bool, load func(context.Context, *qmp) error) (*machine, error) {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	start := time.Now()
	var undo rollback.Stack
	defer undo.Unwind()
	fail := func(err error) error {
		if ctx.Err() != nil {
			return failure(ctx, op, restored, err, "")
		}
		return warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}

	m := &machine{driver: d, spec: spec, busy: make(chan struct{}, 1)}
	if restored {
		m.spec.MemoryFile = "" // its memory is private, so it cannot be frozen again
	}
	undo.Push("use machine's directory", func() error { return releaseDir(spec.Dir) })
	if err := m.remember(); err != nil {
		return nil, fail(err)
	}
	var fds inherited
	cmd := exec.Command(caps.Binary)
	inherit := func(f *os.File) int {
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		return 2 + len(cmd.ExtraFiles) // the first one comes after standard error
	}
	for _, s := range []struct {
		name string
		fd   *int
	}{{qmpSocket, &fds.qmp}, {guestSocket, &fds.guest}} {
		f, err := listen(spec.Dir, s.name)
		if err != nil {
			return nil, fail(err)
		}
		defer f.Close()
		*s.fd = inherit(f)
	}
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, fail(err)
	}
	defer theirs.Close()
	fds.console = inherit(theirs)
	go func() { // ends with QEMU, or here if there never is one
		_, _ = io.Copy(&m.console, ours)
		ours.Close()
	}()
	if spec.Network.TAP != "" {
		tap, err := openTAP(op, spec.Network)
		if err != nil {
			return nil, err
		}
		defer tap.Close()
		fds.tap = inherit(tap)
	}
	conn, err := dial(ctx, spec.Dir, qmpSocket)
	if err != nil {
		return nil, fail(err)
	}
	defer func() { _ = conn.Close() }()

	cmd.Args = append(cmd.Args, arguments(caps, spec, restored, fds)...)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = &m.said, &m.said
	if err := netns.Do(spec.Network.Namespace, func() (err error) {
		m.process, err = process.Start(cmd, spec.Owner, ambientCapabilities(spec))
		return err
	}); err != nil {
		return nil, fail(fmt.Errorf("start %s: %w", caps.Binary, err))
	}
	undo.Push("start QEMU", func() error { return m.kill(context.WithoutCancel(ctx)) })
	for _, f := range cmd.ExtraFiles {
		f.Close() // so that the sockets close when QEMU ends
	}
	m.handle = vmm.Handle{Driver: driverName, ID: spec.ID, Dir: spec.Dir, PID: m.process.PID, StartTime: m.process.StartTime}

	step := func(phase warmboot.PhaseName, err error) error {
		if err != nil {
			var said string
			if m.process.Wait(afterwards(ctx, err)) {
				said = m.said.String()
			}
			return failure(ctx, op, restored, err, said)
		}
		m.timings = append(m.timings, warmboot.Phase{Name: phase, Duration: time.Since(start)})
		start = time.Now()
		return nil
	}
	q := newQMP(conn)
	if err := step(warmboot.PhaseVMM, q.greet(ctx)); err != nil {
		return nil, err
	}
	if err := load(ctx, q); restored || err != nil {
		if err := step(warmboot.PhaseRestore, err); err != nil {
			return nil, err
		}
	}
	undo.Move()
	go m.report()
	return m, nil
}

// afterwards is a context for waiting until QEMU has ended after err: if it refused a command it goes on, else it is
// about to end, having said why.
func afterwards(ctx context.Context, err error) context.Context {
	var refused *qmpError
	if !errors.As(err, &refused) || refused.command == "migration" {
		return ctx
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	return over
}

// ambientCapabilities are those that QEMU keeps although it is not root.
func ambientCapabilities(spec vmm.Spec) []uintptr {
	if spec.Network.TAP != "" {
		return nil // ports are published by others
	}
	for _, f := range spec.Network.Forwards {
		if f.HostPort < 1024 {
			return []uintptr{unix.CAP_NET_BIND_SERVICE}
		}
	}
	return nil
}

// openTAP opens the machine's TAP, of which every machine has one for itself.
func openTAP(op string, n vmm.Network) (*os.File, error) {
	f, err := netns.OpenTAP(n.Namespace, n.TAP)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, netns.ErrBusy):
		return nil, warmboot.Errorf(warmboot.Conflict, op, "another machine uses the network interface (%w); stop it first", err)
	case errors.Is(err, fs.ErrNotExist):
		return nil, warmboot.Errorf(warmboot.NotFound, op, "the machine's network is not there: %w", err)
	}
	return nil, warmboot.Errorf(warmboot.Internal, op, "%w", err)
}

// listen makes a socket in a machine's directory. Only we may connect to it.
func listen(dir, name string) (*os.File, error) {
	path, done, err := socketPath(dir, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, err
	}
	return l.File()
}

func dial(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	path, done, err := socketPath(dir, name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = done() }()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// socketPath is a path by which to reach dir/name that is short enough for a socket address, whatever dir is.
func socketPath(dir, name string) (path string, done func() error, err error) {
	d, err := os.Open(dir)
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name), d.Close, nil
}

// socketpair is a pipe both ways: one end for us, one to inherit.
func socketpair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "console")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "console")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// releaseDir removes what launch put into a machine's directory.
func releaseDir(dir string) error {
	var errs []error
	for _, name := range []string{qmpSocket, guestSocket, specFile} {
		if err := os.Remove(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return warmboot.Errorf(warmboot.Internal, "release machine", "%w", err)
	}
	return nil
}

// remember writes down what the machine consists of. QEMU's user cannot change it: the directory is not its own.
func (m *machine) remember() error {
	text, err := json.Marshal(m.spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(m.spec.Dir, specFile), text, 0o600)
}

func recall(dir string) (spec vmm.Spec, err error) {
	text, err := os.ReadFile(filepath.Join(dir, specFile))
	if err != nil {
		return spec, err
	}
	return spec, json.Unmarshal(text, &spec)
}
