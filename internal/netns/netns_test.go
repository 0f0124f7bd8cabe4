package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("WARMBOOT_E2E") != "" {
		t.Fatal("network namespaces need root, and WARMBOOT_E2E asks for them")
	}
	t.Skip("SKIPPED: needs root to make network namespaces")
}

func fresh(t *testing.T) *os.File {
	t.Helper()
	ns, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// names are the interfaces that whoever asks can see.
func names() (string, error) {
	all, err := net.Interfaces()
	var names []string
	for _, i := range all {
		names = append(names, i.Name)
	}
	return strings.Join(names, " "), err
}

func TestDoRunsThereAndNothingElseDoes(t *testing.T) {
	needRoot(t)
	t.Parallel()
	ns := fresh(t)
	ours, err := os.Open(current)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	if same, err := Is(ns, ours); err != nil || same {
		t.Fatalf("a new namespace is ours: %v, %v", same, err)
	}
	var child *exec.Cmd
	if err := Do(Path(ns), func() error {
		got, err := names()
		if err != nil || got != "lo" {
			t.Errorf("a new namespace has %q, %v", got, err)
		}
		child = exec.Command("sleep", "60")
		return child.Start()
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { child.Process.Kill(); child.Wait() }()
	theirs, err := OfProcess(child.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if same, err := Is(ns, theirs); err != nil || !same {
		t.Errorf("a process that was started there is elsewhere: %v", err)
	}
	for range 100 { // on whatever thread
		back, err := os.Open(current)
		if err != nil {
			t.Fatal(err)
		}
		if same, err := Is(ours, back); err != nil || !same {
			t.Fatalf("a goroutine has stayed there: %v", err)
		}
		back.Close()
	}
}

func TestDoFails(t *testing.T) {
	needRoot(t)
	t.Parallel()
	ran := false
	f := func() error { ran = true; return nil }
	if err := Do("/no/such/namespace", f); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no namespace: %v", err)
	}
	if err := Do("/proc/self/ns/uts", f); err == nil || ran {
		t.Errorf("a namespace of another kind: %v, and f has run: %v", err, ran)
	}
	want := errors.New("of f")
	if err := Do(Path(fresh(t)), func() error { return want }); !errors.Is(err, want) {
		t.Errorf("got %v, want f's own error", err)
	}
}

func TestTAP(t *testing.T) {
	needRoot(t)
	t.Parallel()
	ns := fresh(t)
	if _, err := OpenTAP(Path(ns), "tap0"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a TAP that is not there: %v", err)
	}
	if err := In(ns, func() error { return MakeTAP("tap0", 12345) }); err != nil {
		t.Fatal(err)
	}
	first, err := OpenTAP(Path(ns), "tap0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTAP(Path(ns), "tap0"); !errors.Is(err, ErrBusy) {
		t.Errorf("a TAP that is open: %v", err)
	}
	first.Close()
	if err := In(ns, func() error { return MakeTAP("a-name-that-is-too-long", 0) }); err == nil {
		t.Error("a TAP with a name that is too long")
	}
}

// A TAP can be opened as soon as it is made or closed, however many processes are being started.
func TestTAPBesideForks(t *testing.T) {
	needRoot(t)
	t.Parallel()
	var starts sync.WaitGroup
	defer starts.Wait()
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	for range 4 {
		starts.Go(func() {
			for ctx.Err() == nil {
				if err := exec.Command("true").Run(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	ns := fresh(t)
	for i := range 50 {
		name := fmt.Sprintf("tap%d", i)
		if err := In(ns, func() error {
			if err := MakeTAP(name, 0); err != nil {
				return err
			}
			f, err := attach(name) // as a VMM does it, without a second try
			if err != nil {
				return err
			}
			return f.Close()
		}); err != nil {
			t.Fatal(err)
		}
		f, err := OpenTAP(Path(ns), name)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}
