package agent

import (
	"context"
	"runtime"
)

// A boot has a limit, which tells a machine that hangs from one that works. It says nothing where boots only wait for each other's processor: a
// host that starts all its containers at once, after it was booted, would see restores fail, count that against their snapshot, and boot cold
// instead, which takes more of what there is too little of. So a host begins no more at once than its processors bear, and a boot's time runs from its turn.
const (
	warmTurns = 4 // per processor. A restore's time is mostly the guest's waking up
	coldTurns = 2 // per processor, builds of snapshots included
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
