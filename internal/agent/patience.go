package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// A limit on how long a machine boots is to tell one that hangs from one that works. On a host with too much to do every machine is slow, and to give
// up on one helps nobody: its snapshot would be blamed, and a cold boot takes more of what there is too little of. So time in which a machine
// wanted a processor and did not get one does not count.
//
// maxPatience is how many times the limit a boot may take all the same.
const maxPatience = 10

// patience derives a context for what is waited for from the guest of process pid since start, when it had been without a processor for before in all: it
// ends, with context.DeadlineExceeded as its cause, when the machine has had limit to itself. Its deadline is when it ends at the latest.
func patience(ctx context.Context, pid int, start time.Time, before, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancelAtLatest := context.WithDeadline(ctx, start.Add(maxPatience*limit))
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for left := time.Until(start.Add(limit)); left > 0; left = time.Until(start.Add(limit + starved(pid) - before)) {
			select {
			case <-time.After(left):
			case <-ctx.Done():
				return
			}
		}
		cancel(context.DeadlineExceeded)
	}()
	return ctx, func() { cancel(nil); cancelAtLatest() }
}

// starved is how long a process was ready to run and had no processor: the longest that one of its threads was, since several wait at the same
// time. It is 0 where the kernel does not tell.
func starved(pid int) time.Duration {
	return longest(pid, func(_, waited time.Duration) time.Duration { return waited })
}

// wanted is how long a process wanted a processor, whether it had one or not: the longest that one of its threads did.
func wanted(pid int) time.Duration {
	return longest(pid, func(ran, waited time.Duration) time.Duration { return ran + waited })
}

// longest is the greatest of what of says of a process's threads: how long each has run, and how long it was ready to run and did not
// (https://docs.kernel.org/scheduler/sched-stats.html, /proc/PID/schedstat).
func longest(pid int, of func(ran, waited time.Duration) time.Duration) (most time.Duration) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/schedstat", pid)) // fails for a bad pattern only
	for _, t := range threads {
		text, err := os.ReadFile(t)
		if err != nil {
			continue // it has just ended
		}
		var ran, waited time.Duration // the kernel counts nanoseconds
		if _, err := fmt.Sscan(string(text), &ran, &waited); err == nil {
			most = max(most, of(ran, waited))
		}
	}
	return most
}
