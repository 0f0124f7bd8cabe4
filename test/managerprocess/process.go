// Package managerprocess is a manager of warmboot in a process of its own, for tests that kill or measure one. Everything in it is real but for a way to
// be told at which step to die. The test's program is the manager too: its TestMain calls Main.
package managerprocess

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"warmboot/client"
	"warmboot/internal/access"
	"warmboot/internal/agentrpc"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
	"warmboot/internal/expect"
	"warmboot/internal/httpapi"
	"warmboot/internal/planetest"
	"warmboot/internal/rollback"
	"warmboot/internal/store"
)

// env makes the test's program a manager; it has Options as JSON.
const env = "WARMBOOT_TEST_MANAGER"

// Options say how a manager is to be.
type Options struct {
	Name    string
	URL     string // of the database
	API     string // address to serve the API on, without tokens
	Cluster string // address for hosts; if empty, the manager has one host, without machines, inside itself
	Log     string // file; nothing is logged if empty
	// Fast makes it notice sooner than it usually does that others are gone.
	Fast bool
}

// Main is called first by a TestMain. In a process that is to be a manager it does not return.
func Main() {
	text, ok := os.LookupEnv(env)
	if !ok {
		return
	}
	if err := run(text); err != nil {
		fmt.Fprintln(os.Stderr, "manager:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run is the manager. It is told, with a line on its standard input, at which step it is to die, and writes a line to its standard output
// when it serves.
func run(text string) (err error) {
	var o Options
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	if o.Log != "" {
		file, err := os.OpenFile(o.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		log = slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	var fatal atomic.Pointer[string] // the step
	ctx := context.Background()
	config := planetest.Config{URL: o.URL, Log: log, Shape: func(c *controlplane.Config) {
		c.Name, c.AutoSnapshot = o.Name, true
		if o.Fast {
			c.Beat, c.DeadAfter, c.HostDownAfter = 50*time.Millisecond, time.Second, 2*time.Second
			c.RebuildDelays = slices.Repeat([]time.Duration{10 * time.Millisecond}, 4)
		}
		c.Step = func(step string) {
			if at := fatal.Load(); at != nil && *at == step {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {} // not a step further
			}
		}
	}}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	serve, err := cluster(ctx, o, &config, log, &undo)
	if err != nil {
		return err
	}
	p, err := planetest.Start(ctx, config)
	if err != nil {
		return err
	}
	undo.Push("end manager", p.Close)
	if err := serve(p.Service); err != nil {
		return err
	}
	for _, h := range p.Hosts {
		go func() {
			for range time.Tick(time.Second) {
				_ = h.Beat(ctx) // it cannot fail while this process lives
			}
		}()
	}
	api, err := net.Listen("tcp", o.API)
	if err != nil {
		return err
	}
	keeper := access.New(access.Config{Store: p.Store, Log: log})
	undo.Push("end access", func() error { keeper.Close(); return nil })
	go func() {
		_ = http.Serve(api, httpapi.New(httpapi.Config{Service: p.Service, Log: log, Access: keeper, NoAuth: true})) // it ends with the process
	}()
	fmt.Println("serving")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		step := in.Text()
		fatal.Store(&step)
		fmt.Println("told")
	}
	return nil
}

// cluster prepares for hosts elsewhere; serve lets them come.
func cluster(ctx context.Context, o Options, c *planetest.Config, log *slog.Logger, undo *rollback.Stack) (serve func(*controlplane.Service) error, err error) {
	if o.Cluster == "" {
		return func(*controlplane.Service) error { return nil }, nil
	}
	db, err := store.Open(ctx, store.Config{URL: o.URL, Log: log})
	if err != nil {
		return nil, err
	}
	undo.Push("close database", db.Close)
	ca, err := authority.Open(ctx, db)
	if err != nil {
		return nil, err
	}
	credentials := ca.Manager()
	hosts := agentrpc.NewHosts(credentials)
	undo.Push("close connections to hosts", hosts.Close)
	c.Reach = hosts
	return func(service *controlplane.Service) error {
		l, err := net.Listen("tcp", o.Cluster)
		if err != nil {
			return err
		}
		h := agentrpc.ManagerHandler(agentrpc.ManagerConfig{Reports: service, Authority: ca, Store: db, Log: log})
		go func() { _ = agentrpc.NewServer(h, credentials.Server()).ServeTLS(l, "", "") }() // it ends with the process
		return nil
	}, nil
}

// Process is such a manager, as the test sees it.
type Process struct {
	*client.Client // of its API
	t              testing.TB
	cmd            *exec.Cmd
	in             io.WriteCloser
	out            *bufio.Scanner
	once           sync.Once
}

// Start starts a manager and returns when it serves. It ends with the test.
func Start(t testing.TB, o Options) *Process {
	t.Helper()
	text, err := json.Marshal(o)
	expect.NoError(t, err)
	m := &Process{t: t, cmd: exec.Command(os.Args[0])}
	m.cmd.Env = append(os.Environ(), env+"="+string(text))
	m.cmd.Stderr = os.Stderr
	m.in, err = m.cmd.StdinPipe()
	expect.NoError(t, err)
	out, err := m.cmd.StdoutPipe()
	expect.NoError(t, err)
	m.out = bufio.NewScanner(out)
	expect.NoError(t, m.cmd.Start())
	t.Cleanup(m.Stop)
	m.await("serving")
	m.Client, err = client.New(client.Config{Addr: "http://" + o.API})
	expect.NoError(t, err)
	return m
}

// await reads the line that the manager writes next.
func (m *Process) await(line string) {
	m.t.Helper()
	if !m.out.Scan() || m.out.Text() != line {
		m.Stop()
		m.t.Fatalf("the manager says %q, not %q, and is %v", m.out.Text(), line, m.cmd.ProcessState)
	}
}

// PID is its process id.
func (m *Process) PID() int { return m.cmd.Process.Pid }

// DieAt makes the manager kill itself the next time that it comes to a step (controlplane.Config.Step).
func (m *Process) DieAt(step string) {
	m.t.Helper()
	_, err := fmt.Fprintln(m.in, step)
	expect.NoError(m.t, err)
	m.await("told")
}

// Kill ends the manager without a word.
func (m *Process) Kill() {
	m.t.Helper()
	expect.NoError(m.t, m.cmd.Process.Kill())
	m.Died(20 * time.Second)
}

// Died waits until the manager has been killed. One that lives on for too long, or ends in another way, fails the test.
func (m *Process) Died(limit time.Duration) {
	m.t.Helper()
	if m.wait(limit); m.status().Signal() != syscall.SIGKILL {
		m.t.Fatalf("it was to be killed: %v", m.cmd.ProcessState)
	}
}

// wait waits for the end of the manager. One that takes too long is made to say where it is instead.
func (m *Process) wait(limit time.Duration) {
	m.once.Do(func() {
		timer := time.AfterFunc(limit, func() { _ = m.cmd.Process.Signal(syscall.SIGQUIT) })
		defer timer.Stop()
		_ = m.cmd.Wait() // its state tells
	})
}

func (m *Process) status() syscall.WaitStatus { return m.cmd.ProcessState.Sys().(syscall.WaitStatus) }

// Stop ends the manager as a user does, unless it has ended.
func (m *Process) Stop() {
	_ = m.in.Close()
	if m.wait(20 * time.Second); m.status().Signal() != syscall.SIGKILL && m.status().ExitStatus() != 0 {
		m.t.Errorf("the manager ended with %v", m.cmd.ProcessState)
	}
}
