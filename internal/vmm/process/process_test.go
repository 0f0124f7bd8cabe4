package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot/internal/vmm"
)

func TestFind(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "60")
	p, err := Start(cmd, vmm.Owner{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Signal(unix.SIGKILL)
	for name, who := range map[string]struct {
		pid int
		at  uint64
	}{
		"another start time": {p.PID, p.StartTime + 1},
		"another process":    {os.Getppid(), p.StartTime},
		"no process":         {1 << 30, p.StartTime},
		"init":               {1, 0},
		"no number":          {0, 0},
	} {
		if _, err := Find(who.pid, who.at); !errors.Is(err, ErrGone) {
			t.Errorf("%s: got %v, want that it is gone", name, err)
		}
	}
	found, err := Find(p.PID, p.StartTime)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if found.Wait(short) {
		t.Error("a running process counts as ended")
	}
	if err := found.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*Process{found, p} {
		if !x.Wait(t.Context()) {
			t.Error("the process does not end")
		}
		if err := x.Signal(unix.SIGTERM); err != nil {
			t.Errorf("a signal to a process that has ended: %v", err)
		}
	}
	if _, err := Find(p.PID, p.StartTime); !errors.Is(err, ErrGone) {
		t.Errorf("after its end: %v", err)
	}
	if how := p.State(); how == nil || how.String() != "signal: terminated" {
		t.Errorf("our child ended with %v", how)
	}
	if how := found.State(); how != nil {
		t.Errorf("who is not a child's parent knows that it ended with %v", how)
	}
}

func TestKill(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sh", "-c", "trap '' TERM; echo; while :; do sleep 1; done")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(cmd, vmm.Owner{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // once it has said something it ignores SIGTERM
		t.Fatal(err)
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, which := range []string{"that runs", "that has ended"} {
		if err := p.Kill("test"); err != nil || !p.Ended() {
			t.Errorf("a process %s: %v, ended: %v", which, err, p.Ended())
		}
	}
	if how := p.State(); !Killed(how) {
		t.Errorf("it ended with %v", how)
	}
}

// A process that ends at once is started all the same: how it ended is what matters then.
func TestStartOfAProcessThatEndsAtOnce(t *testing.T) {
	t.Parallel()
	for range 50 {
		p, err := Start(exec.Command("false"), vmm.Owner{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !p.Wait(t.Context()) || p.State().ExitCode() != 1 || Killed(p.State()) {
			t.Fatalf("it ended with %v", p.State())
		}
	}
}

// Whatever protects us from the kernel's lack of memory does not protect what we start.
func TestProcessMayBeKilledForMemory(t *testing.T) {
	const ours = "/proc/self/oom_score_adj"
	before, err := os.ReadFile(ours)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(ours, []byte("-500"), 0); errors.Is(err, os.ErrPermission) {
		t.Skip("SKIPPED: only root can protect a process")
	} else if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.WriteFile(ours, bytes.TrimSpace(before), 0); err != nil {
			t.Error(err)
		}
	}()
	p, err := Start(exec.Command("sleep", "60"), vmm.Owner{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Wait(t.Context())
	defer p.Signal(unix.SIGKILL)
	if got, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.PID)); string(got) != "0\n" {
		t.Errorf("it is protected: %q, %v", got, err)
	}
	for range 20 { // one that is gone already is no obstacle
		p, err := Start(exec.Command("true"), vmm.Owner{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.Wait(t.Context())
	}
}
