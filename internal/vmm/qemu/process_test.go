package qemu

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot/internal/vmm"
)

func TestFindProcess(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "60")
	p, err := spawn(cmd, vmm.Owner{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer p.signal(unix.SIGKILL)
	for name, who := range map[string]struct {
		pid int
		at  uint64
	}{
		"another start time": {p.pid, p.startTime + 1},
		"another process":    {os.Getpid(), p.startTime},
		"no process":         {1 << 30, p.startTime},
		"init":               {1, 0},
		"no number":          {0, 0},
	} {
		if _, err := findProcess(who.pid, who.at); !errors.Is(err, errGone) {
			t.Errorf("%s: got %v, want that it is gone", name, err)
		}
	}
	found, err := findProcess(p.pid, p.startTime)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if found.wait(short) {
		t.Error("a running process counts as ended")
	}
	if err := found.signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*process{found, p} {
		if !x.wait(t.Context()) {
			t.Error("the process does not end")
		}
		if err := x.signal(unix.SIGTERM); err != nil {
			t.Errorf("a signal to a process that has ended: %v", err)
		}
	}
	if _, err := findProcess(p.pid, p.startTime); !errors.Is(err, errGone) {
		t.Errorf("after its end: %v", err)
	}
}
