package process

import (
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"warmboot/internal/vmm"
)

func TestOutputIsCarriedToItsEnd(t *testing.T) {
	t.Parallel()
	var kept Tail
	o, err := NewOutput(&kept)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "echo first; echo last >&2")
	cmd.Stdout, cmd.Stderr = o.Theirs, o.Theirs
	p, err := Start(cmd, vmm.Owner{}, nil)
	o.Theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	p.Wait(t.Context())
	<-o.Drained()
	if got := kept.String(); got != "first\nlast\n" {
		t.Errorf("kept %q", got)
	}
}

// Without a reader a process loses what it prints, and nothing else happens to it.
func TestOutputThatNobodyReads(t *testing.T) {
	t.Parallel()
	stuck := make(chan struct{})
	o, err := newOutput(writerFunc(func(p []byte) (int, error) { <-stuck; return len(p), nil }))
	if err != nil {
		t.Fatal(err)
	}
	// dd ends at the first write that fails, with the error's text, or by the signal.
	cmd := exec.Command("dd", "if=/dev/zero", "bs=4096", "count=1000")
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = o.Theirs, &said
	p, err := Start(cmd, vmm.Owner{}, nil)
	o.Theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	p.Wait(t.Context())
	close(stuck)
	<-o.Drained()
	if how := p.State(); how.ExitCode() != 1 || !strings.Contains(said.String(), unix.EAGAIN.Error()) && !strings.Contains(said.String(), "Resource temporarily unavailable") {
		t.Errorf("it ended with %v: %s", how, said.String())
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
