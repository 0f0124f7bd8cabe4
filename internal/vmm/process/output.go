package process

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Output carries what a process prints to a Tail, for a process that outlives us and does not bear that nobody reads what it
// prints. What it inherits is a pipe that it could read from itself: so there is always a reader, and never a SIGPIPE or an EPIPE. When we
// are gone the pipe fills up, and what does not fit is lost (EAGAIN).
type Output struct {
	// Theirs is for the process to inherit. Close it when the process has been started, or has not been.
	Theirs *os.File

	drained chan struct{}
}

// NewOutput begins to carry to tail.
func NewOutput(tail *Tail) (*Output, error) { return newOutput(tail) }

func newOutput(to io.Writer) (*Output, error) {
	ours, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	// Opened once more, a pipe is open both ways, and whether writing waits is this opening's own affair.
	theirs, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		ours.Close()
		return nil, err
	}
	o := &Output{Theirs: theirs, drained: make(chan struct{})}
	go func() { // ends with the process, or when there is none
		_, _ = io.Copy(to, ours)
		ours.Close()
		close(o.drained)
	}()
	return o, nil
}

// Drained is closed when everything that the process has printed is in the tail. That is right after its end, if no child of
// it is left.
func (o *Output) Drained() <-chan struct{} { return o.drained }
