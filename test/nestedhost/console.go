package nestedhost

import (
	"bytes"
	"strings"
	"sync"
)

// consoleLimit is how much of the end of an output is kept, in bytes.
const consoleLimit = 64 << 10

// What a kernel prints in any case.
const (
	panicMark   = "end Kernel panic - not syncing" // the last line of all that it then says
	restartMark = "reboot: Restarting system"
)

// console keeps the end of what is written to it. It is safe for concurrent use.
type console struct {
	mu    sync.Mutex
	text  []byte
	waits []wait
}

type wait struct {
	mark []byte
	seen chan struct{}
}

// next returns a channel that is closed when mark is written from now on.
func (c *console) next(mark string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := wait{[]byte(mark), make(chan struct{})}
	c.waits = append(c.waits, w)
	return w.seen
}

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := len(c.text)
	c.text = append(c.text, p...)
	var left []wait
	for _, w := range c.waits {
		// The mark may come in pieces, but not all of it has been there before.
		if bytes.Contains(c.text[max(0, before-len(w.mark)+1):], w.mark) {
			close(w.seen)
		} else {
			left = append(left, w)
		}
	}
	c.waits = left
	if extra := len(c.text) - consoleLimit; extra > 0 {
		c.text = append(c.text[:0], c.text[extra:]...)
	}
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.text)
}

// end is the last n lines that have something in them.
func end(text string, n int) string {
	var kept []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept[max(0, len(kept)-n):], "\n")
}
