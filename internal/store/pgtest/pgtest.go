// Package pgtest runs a private PostgreSQL server for a test binary: a cluster of its own in a temporary directory, on a socket
// in that directory and no network, as an unprivileged user. The system's own cluster is never touched.
package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver that makes databases

	"warmboot"
)

const op = "start a PostgreSQL server for tests"

// account is whom the server runs as if we are root, whom PostgreSQL refuses. Debian's package makes it.
const account = "postgres"

// Server is a private PostgreSQL server.
type Server struct {
	bin, dir string
	settings []string
	cred     *syscall.Credential // nil: our own user
	process  *os.Process         // nil while the server is stopped
	ended    chan error
}

// Start makes a cluster and starts its server. It is an Unavailable error if PostgreSQL is not installed. Settings are as in
// postgresql.conf; without "fsync=on" nothing is flushed to disk, which only a crash of the machine would show.
func Start(settings ...string) (*Server, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	s := &Server{bin: bin, settings: append([]string{"listen_addresses=", "fsync=off"}, settings...)}
	if s.dir, err = os.MkdirTemp("", "warmboot-pg-"); err != nil {
		return nil, err
	}
	if err := s.init(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.dir))
	}
	return s, nil
}

func (s *Server) init() error {
	if os.Getuid() == 0 {
		u, err := user.Lookup(account)
		if err != nil {
			return warmboot.Errorf(warmboot.Unavailable, op, "PostgreSQL does not run as root, and there is no user %s: %w; run scripts/install-deps", account, err)
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(errUID, errGID); err != nil {
			return err
		}
		s.cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(s.dir, int(uid), int(gid)); err != nil {
			return err
		}
	}
	initdb := s.command("initdb", "-D", s.data(), "-U", account, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s.Resume()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + s.bin + ":/usr/bin:/bin", "LC_ALL=C", "HOME=" + s.dir}
	// The server ends with us, even if we are killed: SIGINT is its fast shutdown.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.cred, Pdeathsig: syscall.SIGINT}
	return cmd
}

// programs finds the directory of the newest PostgreSQL server. Debian keeps it off the PATH.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(strings.Split(path, "/")[4])
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		found = append(found, path)
	}
	if len(found) == 0 {
		return "", warmboot.Errorf(warmboot.Unavailable, op, "PostgreSQL's server is not installed; run scripts/install-deps")
	}
	return filepath.Dir(found[0]), nil
}

// Resume starts the server again after Stop and returns when it takes connections.
func (s *Server) Resume() error {
	log, logWriter, err := os.Pipe()
	if err != nil {
		return err
	}
	args := []string{"-D", s.data(), "-k", s.dir}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	cmd := s.command("postgres", args...)
	cmd.Stderr = logWriter
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// The death of the thread that started it would end the server too, so that thread stays with us.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		_ = logWriter.Close()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return errors.Join(err, log.Close())
	}
	ready := make(chan error, 1)
	go readLog(log, ready)
	if err := <-ready; err != nil {
		_ = cmd.Process.Kill()
		return errors.Join(err, <-ended)
	}
	s.process, s.ended = cmd.Process, ended
	return nil
}

// readLog reads the server's log to its end and tells when it says that it is ready.
func readLog(log io.ReadCloser, ready chan<- error) {
	defer func() { _ = log.Close() }()
	var said strings.Builder
	waiting := true
	for lines := bufio.NewScanner(log); lines.Scan(); {
		if waiting && strings.Contains(lines.Text(), "ready to accept connections") {
			waiting = false
			ready <- nil
		}
		if waiting {
			said.WriteString(lines.Text() + "\n")
		}
	}
	if waiting {
		ready <- fmt.Errorf("PostgreSQL ended before it was ready: %s", said.String())
	}
}

// Stop ends the server as an operator would, cutting every connection. What was stored stays.
func (s *Server) Stop() error { return s.end(syscall.SIGINT) }

// Crash ends the server in the middle of whatever it does. It recovers when it is started again.
func (s *Server) Crash() error { return s.end(syscall.SIGQUIT) }

func (s *Server) end(with syscall.Signal) error {
	if s.process == nil {
		return nil
	}
	if err := s.process.Signal(with); err != nil {
		return err
	}
	err := <-s.ended
	s.process = nil
	if exit := (*exec.ExitError)(nil); with != syscall.SIGINT && errors.As(err, &exit) {
		return nil
	}
	return err
}

// Close ends the server and removes everything.
func (s *Server) Close() error { return errors.Join(s.Stop(), os.RemoveAll(s.dir)) }

// URL is the address of one of the server's databases.
func (s *Server) URL(database string) string {
	return "postgres:///" + database + "?host=" + s.dir + "&user=" + account
}

// Database makes an empty database and returns its address. It goes with the server.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := "t" + warmboot.NewID().Short()
	s.exec(t, "CREATE DATABASE "+name)
	return s.URL(name)
}

// exec runs a statement as the server's superuser.
func (s *Server) exec(t testing.TB, statement string) {
	t.Helper()
	db, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if _, err := db.ExecContext(context.WithoutCancel(t.Context()), statement); err != nil {
		t.Fatal(err)
	}
}

// Dump is a backup of one of the server's databases, as pg_dump makes it.
func (s *Server) Dump(t testing.TB, url string) []byte {
	t.Helper()
	dump, err := s.command("pg_dump", "--format=custom", "--dbname="+url).Output()
	if err != nil {
		t.Fatal("pg_dump:", err)
	}
	return dump
}

// Restore makes a database out of a Dump and returns its address. It goes with the server.
func (s *Server) Restore(t testing.TB, dump []byte) string {
	t.Helper()
	url := s.Database(t)
	cmd := s.command("pg_restore", "--exit-on-error", "--dbname="+url)
	cmd.Stdin = bytes.NewReader(dump)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("pg_restore: %v: %s", err, out)
	}
	return url
}
