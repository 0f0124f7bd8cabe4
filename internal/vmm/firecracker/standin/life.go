package standin

import (
	"context"
	"io"
	"runtime"
	"sync"
	"time"
)

// life is what a machine lives in: a process of its own, which does not outlive it, or a part of one that does (Server).
type life struct {
	context.Context                  // done when it has ended; never in a process of its own
	end             func(status int) // ends it, and does not return. It is as if killed if status is negative.
	work            sync.WaitGroup
}

// run runs f beside the rest.
func (l *life) run(f func()) { l.work.Go(f) }

// check ends what calls it if this life has ended.
func (l *life) check() {
	if l.Err() != nil {
		runtime.Goexit()
	}
}

// idle does nothing until this life ends, and does not return.
func (l *life) idle() {
	<-l.Done()
	runtime.Goexit()
}

func (l *life) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-l.Done():
		runtime.Goexit()
	}
}

// closeAtEnd closes c when this life ends, or when what it returns is called.
func (l *life) closeAtEnd(c io.Closer) (now func()) {
	stop := context.AfterFunc(l, func() { c.Close() })
	return func() {
		stop()
		c.Close()
	}
}
