package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"

	"warmboot/client"
	"warmboot/internal/access"
	"warmboot/internal/certificate"
)

// server is a `warmboot serve` process and the storage root that it works in.
type server struct {
	t       *testing.T
	root    string
	addr    string
	url     string // with the scheme that the server speaks
	uidBase uint32
	api     *client.Client
	token   string // an admin's, from the file that the server keeps
	cmd     *exec.Cmd
	log     *logBuffer
}

// nextUIDBase is where the user ids of the next root begin. Suites that run at once on one machine must not take each other's VMMs for
// their own; each has room for 16 roots.
var nextUIDBase = 1_960_000_000 + uint32(os.Getpid()%128)<<20

// newRoot makes a storage root that VMMs of other users can pass through, and checks at the end that nothing of them is left.
func newRoot(t *testing.T) (root string, uidBase uint32) {
	t.Helper()
	root, err := os.MkdirTemp("/var/tmp", "warmboot-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o711); err != nil {
		t.Fatal(err)
	}
	uidBase = nextUIDBase
	nextUIDBase += 1 << 16
	t.Cleanup(func() {
		for _, pid := range processesOf(t, uidBase) {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			t.Errorf("VMM %d is left: %.300q", pid, cmdline)
			syscall.Kill(pid, syscall.SIGKILL)
		}
		if hasRule(t, uidBase) {
			t.Error("the network rule is left")
		}
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	return root, uidBase
}

// startServer runs `warmboot serve` until the test ends.
func startServer(t *testing.T, flags ...string) *server {
	t.Helper()
	s := &server{t: t}
	s.root, s.uidBase = newRoot(t)
	s.addr = freeAddr(t)
	s.start(flags...)
	t.Cleanup(s.stop)
	return s
}

func freeAddr(t *testing.T) string {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *server) start(flags ...string) { s.startWith(nil, flags...) }

// startWith is start with more environment variables.
func (s *server) startWith(env []string, flags ...string) {
	s.t.Helper()
	args := append([]string{"serve", "--listen", s.addr, "--storage-root", s.root, "--image-root", imageDir, "--auto-snapshot=false",
		"--plain-http-registry", open.Host, "--plain-http-registry", locked.Host}, flags...)
	if onFirecracker {
		args = append(args, "--snapshot-wait", (patience * time.Minute).String())
	}
	s.cmd = exec.Command(filepath.Join(bin, "warmboot"), args...)
	s.cmd.Env = append(append(os.Environ(), "WARMBOOT_UID_BASE="+strconv.Itoa(int(s.uidBase))), env...)
	s.log = &logBuffer{}
	s.cmd.Stderr = s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.url = s.log.await(s.t, regexp.MustCompile(`INFO warmboot .* serves (https?://`+regexp.QuoteMeta(s.addr)+`)`), 2*time.Minute)[1]
	if !slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "MANAGER_VMM=") }) {
		s.log.await(s.t, regexp.MustCompile(chosen()), time.Second)
	}
	c := client.Config{Addr: s.url}
	var err error
	if c.Token, _, err = access.ReadLocal(s.root); err != nil {
		s.t.Fatal(err)
	}
	if strings.HasPrefix(s.url, "https:") {
		c.TLSCA = filepath.Join(s.root, certificate.Dir, certificate.CertFile)
	}
	if s.api, err = client.New(c); err != nil {
		s.t.Fatal(err)
	}
	s.token = c.Token
}

// stop asks the server to end, as systemd would.
func (s *server) stop() {
	if s.cmd.ProcessState != nil {
		return
	}
	s.cmd.Process.Signal(syscall.SIGTERM)
	if err := s.cmd.Wait(); err != nil {
		s.t.Errorf("serve ended with %v; its log:\n%s", err, s.log)
	}
	if s.t.Failed() {
		s.t.Logf("log of serve:\n%s", s.log)
	}
}

// kill ends the server as a lack of memory would.
func (s *server) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

// warmboot runs a command line against the server and returns what it printed and its exit code.
func (s *server) warmboot(args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	return s.warmbootFrom(nil, args...)
}

// warmbootFrom is warmboot with a standard input.
func (s *server) warmbootFrom(stdin io.Reader, args ...string) (stdout, stderr string, code int) {
	s.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "warmboot"), args...)
	cmd.Stdin = stdin
	cmd.Env = append(os.Environ(), "WARMBOOT_HOST="+s.url, "MANAGER_STORAGE_ROOT="+s.root, "WARMBOOT_TOKEN=", "MANAGER_API_TOKEN=")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	s.t.Logf("$ warmboot %s\n%s%s[exit %d]", strings.Join(args, " "), out.String(), errOut.String(), cmd.ProcessState.ExitCode())
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// must is warmboot for a command line that has to succeed. It returns standard output without its last line end.
func (s *server) must(args ...string) string {
	s.t.Helper()
	out, errOut, code := s.warmboot(args...)
	if code != 0 {
		s.t.Fatalf("warmboot %s: exit code %d: %s\nlog of serve:\n%s", strings.Join(args, " "), code, errOut, s.log)
	}
	return strings.TrimSuffix(out, "\n")
}

// do sends a raw request, for what the client would not send.
func (s *server) do(method, path, body string) (status int, answer map[string]any) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, "http://"+s.addr+path, strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.token)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		s.t.Fatalf("%s %s: %d with a body that is no JSON: %v", method, path, res.StatusCode, err)
	}
	return res.StatusCode, answer
}

// logBuffer collects a process's log and tells when a line appears.
type logBuffer struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{}
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// await waits for a line of the log and returns its submatches.
func (b *logBuffer) await(t *testing.T, re *regexp.Regexp, limit time.Duration) []string {
	t.Helper()
	limit *= patience
	timeout := time.After(limit)
	for {
		b.mu.Lock()
		found := re.FindStringSubmatch(b.text.String())
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		if found != nil {
			return found
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("the log has no line like %q after %s:\n%s", re, limit, b)
		}
	}
}

// processesOf lists the processes of a server's VMM users.
func processesOf(t *testing.T, uidBase uint32) (pids []int) {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		info, err := os.Stat(d)
		if err != nil {
			continue // it has just ended
		}
		uid := info.Sys().(*syscall.Stat_t).Uid
		if uid <= uidBase || uid >= uidBase+1<<16 {
			continue
		}
		// A machine that has outlived its server is a child of init, which may take a while to notice that it has ended.
		stat, err := os.ReadFile(filepath.Join(d, "stat"))
		if _, state, ok := strings.Cut(string(stat), ") "); err != nil || ok && strings.HasPrefix(state, "Z") {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(d))
		pids = append(pids, pid)
	}
	return pids
}

// hasRule reports whether the kernel has the network rule of a server.
func hasRule(t *testing.T, uidBase uint32) bool {
	t.Helper()
	return slices.ContainsFunc(tables(t), func(name string) bool { return strings.HasPrefix(name, fmt.Sprintf("warmboot-%d-", uidBase+1)) })
}

// tables are the names of the kernel's nftables tables.
func tables(t *testing.T) (names []string) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	all, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		names = append(names, x.Name)
	}
	return names
}

// left lists what a storage root holds of containers and builds.
func left(t *testing.T, root string) (paths []string) {
	t.Helper()
	for _, pattern := range []string{"containers/*", "builds/*", "runtime-snapshots/*/.draft-*"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	return paths
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
