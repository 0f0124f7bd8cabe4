package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// A limit on how long a machine boots is to tell one that hangs from one that works. On a host with too much to do every machine is slow, and to give
// up on one helps nobody: its snapshot would be blamed, and a cold boot takes more of what there is too little of. So time in which a machine
// wanted a processor and did not get one does not count.
//
// maxPatience is how many times the limit a boot may take all the same.
const maxPatience = 10

// patience derives a context for what is waited for from the guest of process pid, which has begun at start: it ends, with
// context.DeadlineExceeded as its cause, when the machine has had limit to itself. Its deadline is when it ends at the latest.
func patience(ctx context.Context, pid int, start time.Time, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancelAtLatest := context.WithDeadline(ctx, start.Add(maxPatience*limit))
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for left := time.Until(start.Add(limit)); left > 0; left = time.Until(start.Add(limit + starved(pid))) {
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
// time. It is 0 where the kernel does not tell (https://docs.kernel.org/scheduler/sched-stats.html, /proc/PID/schedstat).
func starved(pid int) time.Duration {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/[0-9]*/schedstat", pid)) // fails for a bad pattern only
	var longest time.Duration
	for _, t := range threads {
		text, err := os.ReadFile(t)
		fields := bytes.Fields(text)
		if err != nil || len(fields) < 2 {
			continue // it has just ended
		}
		ns, err := strconv.ParseInt(string(fields[1]), 10, 64)
		if err == nil {
			longest = max(longest, time.Duration(ns))
		}
	}
	return longest
}
