package nestedhost

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
)

// bootLimit is how long a machine may take from its power button to the agent's answer. It takes 5 seconds on 2 cores that have
// nothing else to do.
const bootLimit = 2 * time.Minute

// The files of a machine's directory.
const (
	diskFile    = "disk.qcow2"
	agentSocket = "agent.sock"
	inShare     = "in"    // what the machine may read, as /host/in
	outShare    = "out"   // what it may write, as /host/out
	agentFile   = "agent" // in inShare
)

// Config is what a machine is. Every field but Image may be zero.
type Config struct {
	Image     Image
	MemoryMiB int    // 4096
	Hostname  string // "nestedhost"
	Dir       string // where the machine's directory is made; by default not in /tmp, which may be memory, while a disk grows
	Agent     string // path of the program in test/nestedhost/agent, statically linked; by default it is built
}

// Machine is a nested host. It is safe for concurrent use, but what is running in it fails when its power is cut.
type Machine struct {
	cfg       Config
	dir       string
	machineID string
	undo      *rollback.Stack
	copies    atomic.Int64

	mu sync.Mutex
	on *power // nil while it is off
}

// Boot makes a machine with a disk of its own and powers it on. On error nothing is left.
func Boot(ctx context.Context, cfg Config) (*Machine, error) {
	const op = "boot nested host"
	cfg.MemoryMiB, cfg.Hostname = cmp.Or(cfg.MemoryMiB, 4096), cmp.Or(cfg.Hostname, "nestedhost")
	m := &Machine{cfg: cfg, machineID: newMachineID()}
	var undo rollback.Stack
	defer undo.Unwind()
	var err error
	if m.dir, err = os.MkdirTemp(cmp.Or(cfg.Dir, "/var/tmp"), "nestedhost-"); err != nil {
		return nil, internal(op, err)
	}
	undo.Push("make directory", func() error { return os.RemoveAll(m.dir) })
	for _, share := range []string{inShare, outShare} {
		if err := os.Mkdir(m.path(share), 0o755); err != nil {
			return nil, internal(op, err)
		}
	}
	if err := m.provideAgent(ctx); err != nil {
		return nil, internal(op, err)
	}
	create := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", cfg.Image.path(rootFile), "-F", "raw", m.path(diskFile))
	if out, err := create.CombinedOutput(); err != nil {
		return nil, warmboot.Errorf(warmboot.Internal, op, "qemu-img: %w: %.300s", err, out)
	}
	undo.Push("power on", m.PowerCut)
	if err := m.PowerOn(ctx); err != nil {
		return nil, err
	}
	m.undo = undo.Move()
	return m, nil
}

func newMachineID() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

func (m *Machine) path(name string) string { return filepath.Join(m.dir, name) }

// provideAgent puts the agent where the machine finds it.
func (m *Machine) provideAgent(ctx context.Context) error {
	to := m.path(filepath.Join(inShare, agentFile))
	if m.cfg.Agent != "" {
		return copyFile(to, m.cfg.Agent)
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "warmboot/test/nestedhost/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := build.CombinedOutput(); err != nil {
		return warmboot.Errorf(warmboot.Internal, "build agent", "go build: %w: %.1000s", err, out)
	}
	return nil
}

// PowerOn boots a machine that is off, from its disk as it is, and returns once it takes commands.
func (m *Machine) PowerOn(ctx context.Context) error {
	const op = "power nested host on"
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	m.mu.Lock()
	if m.on != nil {
		m.mu.Unlock()
		return warmboot.Errorf(warmboot.Conflict, op, "the machine is on already")
	}
	p, err := startPower(m.arguments(), m.path(agentSocket))
	if err != nil {
		m.mu.Unlock()
		return internal(op, err)
	}
	m.on = p
	m.mu.Unlock()
	if _, err := p.agent(ctx, op); err != nil {
		return errors.Join(err, m.PowerCut())
	}
	return nil
}

// PowerCut is the end of the machine's electricity: what its kernel has not written is lost. The disk stays for PowerOn.
func (m *Machine) PowerCut() error {
	m.mu.Lock()
	p := m.on
	m.on = nil
	m.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.cut()
}

// Reboot restarts the machine as its administrator would, and returns once it takes commands again.
func (m *Machine) Reboot(ctx context.Context) error {
	const op = "reboot nested host"
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	p, err := m.powered(op)
	if err != nil {
		return err
	}
	restarted := p.console.next(restartMark)
	ordered := make(chan error, 1)
	go func() {
		_, err := m.Run(ctx, "systemctl", "--no-block", "reboot")
		ordered <- err
	}()
	for down := false; !down; {
		select {
		case err := <-ordered:
			// The machine may be down before the command could say that all is well.
			if err != nil && warmboot.CodeOf(err) != warmboot.Unavailable {
				return err
			}
		case <-restarted:
			down = true
		case <-p.done:
			return p.explain(op, context.Canceled)
		case <-ctx.Done():
			return p.explain(op, ctx.Err())
		}
	}
	p.forgetAgent() // nobody tells us that it is gone
	_, err = p.agent(ctx, op)
	return err
}

// SetClock sets the machine's wall clock. Its next boot takes the time of this machine again.
func (m *Machine) SetClock(ctx context.Context, t time.Time) error {
	_, err := m.Run(ctx, "date", "-u", "-s", t.UTC().Format("2006-01-02 15:04:05.000000000"))
	return err
}

// Console is the end of what the machine has printed since it was powered on; empty while it is off.
func (m *Machine) Console() string {
	if p, err := m.powered(""); err == nil {
		return p.console.String()
	}
	return ""
}

// Close ends the machine and removes its disk.
func (m *Machine) Close() error { return m.undo.Unwind() }

func (m *Machine) powered(op string) (*power, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.on == nil {
		return nil, warmboot.Errorf(warmboot.Conflict, op, "the machine is off")
	}
	return m.on, nil
}
