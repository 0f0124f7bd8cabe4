package agent

import (
	"context"
	"runtime"
)

// Boots that take each other's processor are all late: a host that starts all its containers at once, after it was booted, would have none of them
// for a long time. So a host begins no more at once than its processors bear, and a boot's limit (see patience) runs from its turn.
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
