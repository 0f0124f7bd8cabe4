package qemu

import (
	"strings"
	"sync"
)

// tailLimit is how much of the end of an output is kept.
const tailLimit = 16 << 10

// tail is a writer that keeps the end of what is written to it: what a guest or QEMU prints is never allowed to fill a
// disk. It is safe for concurrent use.
type tail struct {
	mu      sync.Mutex
	bytes   []byte
	changed chan struct{} // closed at the next write, if somebody waits for it
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bytes = append(t.bytes, p...)
	if extra := len(t.bytes) - tailLimit; extra > 0 {
		t.bytes = append(t.bytes[:0], t.bytes[extra:]...)
	}
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
	return len(p), nil
}

// String is what is kept.
func (t *tail) String() string {
	text, _ := t.watch()
	return text
}

// watch returns what is kept, and a channel that is closed as soon as there is more.
func (t *tail) watch() (string, <-chan struct{}) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.changed == nil {
		t.changed = make(chan struct{})
	}
	return string(t.bytes), t.changed
}

// lines are the last n lines that have something in them, on one line, for an error text.
func lines(text string, n int) string {
	var kept []string
	for l := range strings.Lines(text) {
		if l = strings.TrimSpace(l); l != "" {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept[max(0, len(kept)-n):], "; ")
}
