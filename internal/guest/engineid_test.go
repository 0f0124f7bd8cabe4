package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"warmboot"
)

// engine is a running process that keeps an id as dockerd does.
type engine struct {
	mu  sync.Mutex
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Scanner
}

func startEngine(t *testing.T, id string) *engine {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id")
	if err := os.WriteFile(file, []byte(id), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := play("engine", file)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	e := &engine{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	if got, err := e.ask(t.Context()); got != id || err != nil { // it has read its file then
		t.Fatal(got, err)
	}
	return e
}

func (e *engine) ask(context.Context) (string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, err := io.WriteString(e.in, "\n"); err != nil {
		return "", err
	}
	if !e.out.Scan() {
		return "", io.ErrUnexpectedEOF
	}
	var answer struct{ ID string }
	return answer.ID, json.Unmarshal(e.out.Bytes(), &answer)
}

func TestEngineIDIsReplacedInARunningProcess(t *testing.T) {
	t.Parallel()
	needRoot(t)
	old, next := string(warmboot.NewID()), string(warmboot.NewID())
	e := startEngine(t, old)
	m, err := findEngineID(t.Context(), e.cmd.Process.Pid, old, e.ask)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := e.ask(t.Context()); got != old || err != nil {
		t.Fatalf("the search left %q, %v", got, err)
	}
	for _, id := range []string{next, old, next} { // again and again, over garbage collections
		if err := m.replace(id); err != nil {
			t.Fatal(err)
		}
		if got, err := e.ask(t.Context()); got != id || err != nil {
			t.Fatalf("the process says %q (%v), want %q", got, err, id)
		}
	}
	if err := m.replace("short"); err == nil {
		t.Error("an id of another length was written")
	}
	// Memory that is no longer what it was is not touched.
	m.id = old
	if err := m.replace(string(warmboot.NewID())); err == nil {
		t.Error("something else was overwritten")
	}
	e.cmd.Process.Kill()
	e.cmd.Wait()
	m.id = next
	if err := m.replace(old); err == nil {
		t.Error("a process that is gone was changed")
	}
}

func TestEngineIDThatIsNotThere(t *testing.T) {
	t.Parallel()
	needRoot(t)
	e := startEngine(t, string(warmboot.NewID()))
	if _, err := findEngineID(t.Context(), e.cmd.Process.Pid, string(warmboot.NewID()), e.ask); err == nil {
		t.Error("found an id that the process does not have")
	}
}

func TestAnonymousRange(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		"c000000000-c000400000 rw-p 00000000 00:00 0 ":                           true,
		"c000000000-c000400000 rw-p 00000000 00:00 0                     [heap]": true,
		"c000400000-c004000000 ---p 00000000 00:00 0 ":                           false,
		"00400000-01e00000 r-xp 00000000 fe:00 1234 /usr/sbin/dockerd":           false,
		"03e00000-03f00000 rw-p 03a00000 fe:00 1234 /usr/sbin/dockerd":           false,
		"7ffd5c5f3000-7ffd5c5f7000 r--p 00000000 00:00 0 [vvar]":                 false,
		"": false,
	} {
		if begin, end, ok := anonymousRange(line); ok != want || ok && (begin != 0xc000000000 || end != 0xc000400000) {
			t.Errorf("%q: %x %x %v", line, begin, end, ok)
		}
	}
}

// TestEngineIDWithoutQuiesce: nothing is done about an id that is right, and one that is wrong is not passed off as changed.
func TestEngineIDWithoutQuiesce(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	if got, err := g.setEngineID(""); got != "" || err != nil {
		t.Errorf("a Docker that never ran: %q %v", got, err)
	}
	id := string(warmboot.NewID())
	if err := g.writeEngineID(id); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"", id} {
		if got, err := g.setEngineID(want); got != id || err != nil {
			t.Errorf("%q: %q %v", want, got, err)
		}
	}
	if _, err := g.setEngineID(string(warmboot.NewID())); warmboot.CodeOf(err) != warmboot.Conflict {
		t.Errorf("a Docker that is not ours: %v", err)
	}
}
