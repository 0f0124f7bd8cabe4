package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot/internal/guestrpc"
)

// roleEnv makes the test binary play another process of a machine.
const roleEnv = "WARMBOOT_GUEST_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "engine":
		playEngine()
	case "init":
		playInit()
	case "intruder":
		playIntruder()
	}
}

func play(role string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

// playEngine is a process that, like dockerd, keeps an id that it read at its start, and says it when asked, in JSON.
func playEngine() {
	id, err := os.ReadFile(os.Args[1])
	if err != nil {
		panic(err)
	}
	engine := &struct{ ID string }{string(id)}
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		runtime.GC()
		json.NewEncoder(os.Stdout).Encode(engine)
	}
}

// playInit is a process that inherits orphans, as PID 1 does, and reports how many children it has left at the end.
func playInit() {
	fail := func(format string, args ...any) {
		fmt.Printf(format+"\n", args...)
		os.Exit(1)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fail("subreaper: %v", err)
	}
	p := newProcesses(true)
	go p.reap()
	g := &Guest{processes: p}
	for i := range 5 {
		// Leaves two orphans, one of which ends before its parent is waited for, and one after.
		code, out, err := g.run(context.Background(), "sh", "-c", fmt.Sprintf("(sleep 0 &) ; (sleep 0.1 >/dev/null 2>&1 &) ; echo %d; exit %d", i, i))
		if err != nil || code != i || out != fmt.Sprintln(i) {
			fail("run %d: %d %q %v", i, code, out, err)
		}
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // the kernel tells only the reaper
		_, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if err == unix.ECHILD {
			break
		}
		if time.Now().After(end) {
			fail("children are left")
		}
	}
	fmt.Println("reaped")
}

// newTestGuest is an agent in a directory of its own that does not own the machine.
func newTestGuest(t *testing.T) *Guest {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"etc", "run", "var/lib/docker"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g, err := New(Config{Version: "test", Log: slog.New(slog.DiscardHandler), Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.nic.close)
	return g
}

// serveTest serves the API of g and returns a client of it.
func serveTest(t *testing.T, g *Guest) *guestrpc.Client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() {
		defer close(served)
		g.serveListener(ctx, l)
	}()
	t.Cleanup(func() { cancel(); <-served })
	c, err := guestrpc.Connect(t.Context(), func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// serveDocker serves h where Docker would be.
func serveDocker(t *testing.T, g *Guest, h http.Handler) {
	t.Helper()
	l, err := net.Listen("unix", g.docker.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: h}
	go s.Serve(l)
	t.Cleanup(func() { s.Close() })
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, for namespaces and the memory of another process")
	}
}

// inNamespaces runs f on a thread with a network and a host name of its own, which ends with it.
func inNamespaces(t *testing.T, f func()) {
	t.Helper()
	needRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread, and so the namespaces, end with this goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWUTS); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func lines(s string) []string { return strings.Split(strings.TrimSpace(s), "\n") }
