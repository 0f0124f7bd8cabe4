package process

import (
	"errors"
	"io"
	"strings"
	"sync"
	"time"
)

// TailLimit is how much of the end of an output is kept.
const TailLimit = 16 << 10

// Tail is a writer that keeps the end of what is written to it: what a guest or a VMM prints is never allowed to fill a
// disk. It is safe for concurrent use.
type Tail struct {
	mu      sync.Mutex
	bytes   []byte
	changed chan struct{} // closed at the next write, if somebody waits for it
}

func (t *Tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes = append(t.bytes, p...)
	if extra := len(t.bytes) - TailLimit; extra > 0 {
		t.bytes = append(t.bytes[:0], t.bytes[extra:]...)
	}
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
	return len(p), nil
}

// rest is how long ReadFrom reads nothing after it has read something.
const rest = 10 * time.Millisecond

// ReadFrom keeps the end of what r has to say. A guest may print one character after the other without end, and we would wake up for each: so it reads 100 times a
// second at most, up to TailLimit at a time.
func (t *Tail) ReadFrom(r io.Reader) (n int64, err error) {
	for b := make([]byte, TailLimit); ; time.Sleep(rest) {
		got, err := r.Read(b)
		if n += int64(got); got > 0 {
			_, _ = t.Write(b[:got])
		}
		switch {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return n, err
		}
	}
}

// String is what is kept.
func (t *Tail) String() string {
	text, _ := t.Watch()
	return text
}

// Watch returns what is kept, and a channel that is closed as soon as there is more.
func (t *Tail) Watch() (string, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return string(t.bytes), t.changed
}

// Lines are the last n lines that have something in them, on one line, for an error text.
func Lines(text string, n int) string {
	var kept []string
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept[max(0, len(kept)-n):], "; ")
}
