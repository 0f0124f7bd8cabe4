package guest

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestInitReapsOrphansAndKeepsExitCodes(t *testing.T) {
	t.Parallel()
	out, err := play("init").Output()
	if err != nil || string(out) != "reaped\n" {
		t.Fatalf("%v: %s", err, out)
	}
}

func newTestService(t *testing.T, script string) (*service, string) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	return &service{
		name: "test", argv: []string{"/bin/sh", "-c", script}, env: []string{searchPath},
		output: &logFile{path: log, limit: 1 << 10}, processes: newProcesses(false), log: slog.New(slog.DiscardHandler),
		firstPause: time.Millisecond, lastPause: 20 * time.Millisecond, steady: time.Hour,
	}, log
}

// eventually waits for something that another process does.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not in 10 s: ", what)
		}
	}
}

func TestServiceIsStartedAgain(t *testing.T) {
	t.Parallel()
	s, log := newTestService(t, "echo started; exec sleep 1000")
	s.start()
	defer s.halt()
	var last int
	for i := range 3 {
		eventually(t, "a new process", func() bool { pid := s.pid(); return pid != 0 && pid != last })
		last = s.pid()
		if h := s.health(); h.Restarts != int32(i) || h.Name != "test" {
			t.Errorf("health: %v after %d deaths", h, i)
		}
		syscall.Kill(last, syscall.SIGKILL)
		eventually(t, "its end", func() bool { return !alive(last) })
	}
	eventually(t, "its output", func() bool { text, _ := os.ReadFile(log); return strings.Contains(string(text), "started") })
}

func TestServiceHalts(t *testing.T) {
	t.Parallel()
	s, _ := newTestService(t, "exec sleep 1000")
	s.start()
	eventually(t, "the process", func() bool { return s.pid() != 0 })
	pid := s.pid()
	s.halt()
	if alive(pid) || s.pid() != 0 {
		t.Error("the process is still there")
	}
	// And comes again, as after a change of the engine id at a cold boot.
	s.start()
	eventually(t, "the process", func() bool { return s.pid() != 0 })
	s.halt()

	missing, _ := newTestService(t, "")
	missing.argv = []string{"/no/such/program"}
	missing.start()
	eventually(t, "attempts", func() bool { return missing.health().Restarts > 2 })
	missing.halt()
}

func TestServicePausesGrow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &service{argv: []string{"/no/such/program"}, processes: newProcesses(false), log: slog.New(slog.DiscardHandler),
			firstPause: time.Second, lastPause: 10 * time.Second, steady: time.Hour}
		s.start()
		var seen []int32
		for range 6 {
			time.Sleep(10 * time.Second)
			synctest.Wait()
			seen = append(seen, s.health().Restarts)
		}
		s.halt()
		// Starts at 0, 1, 3, 7, 15, 25, 35, 45, 55 s.
		if got, want := fmt.Sprint(seen), "[3 4 5 6 7 8]"; got != want {
			t.Errorf("restarts every 10 s: %s, want %s", got, want)
		}
	})
}

func TestLogFileIsBounded(t *testing.T) {
	t.Parallel()
	l := &logFile{path: filepath.Join(t.TempDir(), "log"), limit: 1000}
	for i := range 1000 {
		fmt.Fprintf(l, "line %03d\n", i)
	}
	text, err := os.ReadFile(l.path)
	old, err2 := os.ReadFile(l.path + ".1")
	if err != nil || err2 != nil || len(text) > 1000 || len(old) > 1000 || !strings.HasSuffix(string(text), "line 999\n") {
		t.Errorf("%v %v: %d and %d bytes", err, err2, len(text), len(old))
	}
	if all := lines(string(old) + string(text)); all[len(all)-1] != "line 999" || len(all) < 111 {
		t.Errorf("%d lines are kept", len(all))
	}
}
