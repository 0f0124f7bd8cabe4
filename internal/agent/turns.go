package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
)

// Boots that take each other's processor are all late: a host that starts all its containers at once, after it was booted, would have none of them
// for a long time. So a host begins no more at once than its processors bear, and a boot's limit (see patience) runs from its turn.
const (
	warmTurns = 4 // per processor. A restore's time is mostly the guest's waking up
	coldTurns = 2 // per processor, builds of snapshots included
)

// What follows a boot, the pull of the image and the start of the command, waits for others as well: for a registry, and for the guest's own Docker. It
// takes a turn only while the host is short of processors, and has it only as long as its machine makes use of it, so that a registry or a
// Docker that never answers keeps nobody else's container from starting.
const (
	startTurns = 2 // per processor
	// shortage is the share of time, in percent, in which something on the host has waited for a processor, from which on the host is short of them.
	shortage  = 50
	lookEvery = time.Second     // at the host, and at who has a turn
	turnIdle  = 2 * time.Second // in which its machine may want no processor
	turnLimit = 5 * time.Minute // for a guest that spins
)

// turns are what boots take one of each.
type turns chan struct{}

func newTurns(perCPU int) turns { return make(turns, perCPU*runtime.NumCPU()) }

// take waits for a turn, which ends with done.
func (t turns) take(ctx context.Context) (done func(), err error) {
	select {
	case t <- struct{}{}:
		return func() { <-t }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// errNotShort is the cause of a context that whileShort ended.
var errNotShort = errors.New("the host has processors to spare")

// takeWhileShort waits for a turn as long as the host is short of processors, and goes on without one if it is not. wanted is for how long in all the machine
// has wanted a processor.
func (t turns) takeWhileShort(ctx context.Context, short func() bool, wanted func() time.Duration) (done func(), err error) {
	if !short() {
		return func() {}, nil
	}
	waiting, stop := whileShort(ctx, short)
	defer stop()
	end, err := t.take(waiting)
	switch {
	case errors.Is(err, errNotShort):
		return func() {}, nil
	case err != nil:
		return nil, err
	}
	return endUnused(end, wanted), nil
}

// whileShort derives a context that ends when the host is not short of processors any more.
func whileShort(ctx context.Context, short func() bool) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for short() {
			select {
			case <-time.After(lookEvery):
			case <-ctx.Done():
				return
			}
		}
		cancel(errNotShort)
	}()
	return ctx, func() { cancel(nil) }
}

// endUnused ends a turn with done, or before if its machine makes no use of it.
func endUnused(end func(), wanted func() time.Duration) (done func()) {
	end = sync.OnceFunc(end)
	over := make(chan struct{})
	go func() {
		defer end()
		began, before := time.Now(), wanted()
		for took := time.Duration(0); took < turnLimit && took-(wanted()-before) < turnIdle; took = time.Since(began) {
			select {
			case <-time.After(lookEvery):
			case <-over:
				return
			}
		}
	}()
	return sync.OnceFunc(func() { close(over); end() })
}

// shortOfProcessors tells whether this host has too much to do. Where its kernel does not tell (https://docs.kernel.org/accounting/psi.html) it has not.
func shortOfProcessors() bool {
	text, err := os.ReadFile("/proc/pressure/cpu")
	if err != nil {
		return false
	}
	var share float64
	_, err = fmt.Sscanf(string(text), "some avg10=%f", &share)
	return err == nil && share >= shortage
}
