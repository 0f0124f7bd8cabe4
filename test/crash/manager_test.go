package crash

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	"warmboot/internal/httpapi"
	"warmboot/internal/planetest"
	"warmboot/internal/store"
	"warmboot/internal/store/pgtest"
)

// managerEnv makes the test's program a manager; it has a managerOptions as JSON.
const managerEnv = "WARMBOOT_TEST_CRASH_MANAGER"

type managerOptions struct {
	Name    string
	URL     string // of the database
	API     string // addresses
	Cluster string
	Log     string // file
}

// managerMain is a manager in a process of its own that can be told, with a line on its standard input, at which step it is to die. It
// writes a line to its standard output when it serves.
func managerMain(text string) error {
	var o managerOptions
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	file, err := os.OpenFile(o.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(file, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var fatal atomic.Pointer[string] // the step
	ctx := context.Background()
	db, err := store.Open(ctx, store.Config{URL: o.URL, Log: log})
	if err != nil {
		return err
	}
	ca, err := authority.Open(ctx, db)
	if err != nil {
		return err
	}
	credentials := ca.Manager()
	hosts := agentrpc.NewHosts(credentials)
	p, err := planetest.Start(ctx, planetest.Config{
		URL: o.URL, Log: log, Reach: hosts,
		Shape: func(c *controlplane.Config) {
			c.Name, c.Beat, c.DeadAfter, c.HostDownAfter = o.Name, 50*time.Millisecond, time.Second, 2*time.Second
			c.AutoSnapshot = true
			c.RebuildDelays = slices.Repeat([]time.Duration{10 * time.Millisecond}, 4)
			c.Step = func(step string) {
				if at := fatal.Load(); at != nil && *at == step {
					_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
					select {} // not a step further
				}
			}
		},
	})
	if err != nil {
		return err
	}
	cluster, err := net.Listen("tcp", o.Cluster)
	if err != nil {
		return err
	}
	go func() {
		h := agentrpc.ManagerHandler(agentrpc.ManagerConfig{Reports: p.Service, Authority: ca, Store: p.Store, Log: log})
		_ = agentrpc.NewServer(h, credentials.Server()).ServeTLS(cluster, "", "") // it ends with the process
	}()
	api, err := net.Listen("tcp", o.API)
	if err != nil {
		return err
	}
	keeper := access.New(access.Config{Store: p.Store, Log: log})
	go func() {
		_ = http.Serve(api, httpapi.New(httpapi.Config{Service: p.Service, Log: log, Access: keeper, NoAuth: true})) // likewise
	}()
	fmt.Println("serving")
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		step := in.Text()
		fatal.Store(&step)
		fmt.Println("told")
	}
	keeper.Close()
	return errors.Join(hosts.Close(), p.Close(), db.Close())
}

// manager is such a process, as the test sees it.
type manager struct {
	t     *testing.T
	cmd   *exec.Cmd
	in    interface{ Close() error }
	tell  func(string) error
	out   *bufio.Scanner
	ended chan struct{}
	state *os.ProcessState // once it has ended
	once  sync.Once
	*client.Client
}

func startManager(t *testing.T, o managerOptions) *manager {
	t.Helper()
	text, err := json.Marshal(o)
	must(t, err)
	m := &manager{t: t, ended: make(chan struct{})}
	m.cmd = exec.Command(os.Args[0])
	m.cmd.Env = append(os.Environ(), managerEnv+"="+string(text))
	m.cmd.Stderr = os.Stderr
	in, err := m.cmd.StdinPipe()
	must(t, err)
	m.in = in
	m.tell = func(step string) error { _, err := fmt.Fprintln(in, step); return err }
	out, err := m.cmd.StdoutPipe()
	must(t, err)
	m.out = bufio.NewScanner(out)
	must(t, m.cmd.Start())
	t.Cleanup(m.stop)
	m.await("serving")
	m.Client, err = client.New(client.Config{Addr: "http://" + o.API})
	must(t, err)
	return m
}

// await reads the line that the manager writes next.
func (m *manager) await(line string) {
	m.t.Helper()
	if !m.out.Scan() || m.out.Text() != line {
		m.stop()
		m.t.Fatalf("the manager says %q, not %q, and is %v", m.out.Text(), line, m.state)
	}
}

// dieAt makes the manager die the next time that it comes to a step.
func (m *manager) dieAt(step string) {
	m.t.Helper()
	must(m.t, m.tell(step))
	m.await("told")
}

// died waits until the manager has.
func (m *manager) died(limit time.Duration) {
	m.t.Helper()
	timer := time.AfterFunc(limit, func() { _ = m.cmd.Process.Signal(syscall.SIGQUIT) }) // says where it is instead
	defer timer.Stop()
	m.wait()
	if s := m.state.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL {
		m.t.Fatalf("it did not come to that step: %v", m.state)
	}
}

func (m *manager) wait() {
	m.once.Do(func() {
		_ = m.cmd.Wait() // its state tells
		m.state = m.cmd.ProcessState
		close(m.ended)
	})
	<-m.ended
}

// stop ends the manager as a user does.
func (m *manager) stop() {
	_ = m.in.Close()
	timer := time.AfterFunc(20*time.Second, func() { _ = m.cmd.Process.Signal(syscall.SIGQUIT) })
	defer timer.Stop()
	m.wait()
	if s := m.state.Sys().(syscall.WaitStatus); s.Signal() != syscall.SIGKILL && s.ExitStatus() != 0 {
		m.t.Errorf("the manager ended with %v", m.state)
	}
}

func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv(managerEnv); ok {
		if err := managerMain(text); err != nil {
			fmt.Fprintln(os.Stderr, "manager:", err)
			os.Exit(1)
		}
		return
	}
	postgres.Start()
	postgres.End(m.Run())
}

var postgres pgtest.Shared
