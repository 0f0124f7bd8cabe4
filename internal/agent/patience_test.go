package agent

import (
	"context"
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// busy starts a process that wants a processor all the time, and that may use only the first.
func busy(t *testing.T) (pid int) {
	t.Helper()
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	var first, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &first); err != nil {
		t.Fatal(err)
	}
	for cpu := 0; ; cpu++ {
		if first.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(cmd.Process.Pid, &one); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid
}

// A machine is given its limit in time that it could use: what it waited for a processor is added.
func TestPatience(t *testing.T) {
	t.Parallel()
	const limit = time.Second // longer than one wait for a processor, which the kernel adds when it ends
	waits := func(pid int) (took time.Duration) {
		t.Helper()
		start := time.Now()
		ctx, stop := patience(t.Context(), pid, start, 0, limit)
		defer stop()
		var waited time.Duration // when it had not ended yet
		for now := starved(pid); ctx.Err() == nil; now = starved(pid) {
			waited = now
			select {
			case <-time.After(5 * time.Millisecond):
			case <-ctx.Done():
			}
		}
		took = time.Since(start)
		if !errors.Is(context.Cause(ctx), context.DeadlineExceeded) {
			t.Errorf("it ended with %v", context.Cause(ctx))
		}
		if took < limit+waited && took < maxPatience*limit {
			t.Errorf("it ended after %v, of which the process waited %v", took, waited)
		}
		return took
	}

	idle := exec.Command("sleep", "1000")
	if err := idle.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = idle.Process.Kill(); _ = idle.Wait() })
	if took := waits(idle.Process.Pid); took < limit || took >= maxPatience*limit {
		t.Errorf("a process that wants nothing was given %v", took)
	}
	started := wanted(idle.Process.Pid)
	var pid int
	for range 4 {
		pid = busy(t)
	}
	before, start := wanted(pid), time.Now()
	if took := waits(pid); took < 2*limit { // it has a quarter of a processor
		t.Errorf("a process without a processor was given %v only", took)
	}
	if got, took := wanted(pid)-before, time.Since(start); got < took/2 {
		t.Errorf("a process that always wants a processor wanted one for %v of %v", got, took)
	}
	if got := wanted(idle.Process.Pid) - started; got > limit/10 {
		t.Errorf("a process that sleeps wanted a processor for %v", got)
	}

	// The time before is part of it, a process that is gone has none, and nobody waits longer than he wants to.
	ctx, stop := patience(t.Context(), 0, time.Now().Add(-time.Hour), 0, limit)
	defer stop()
	<-ctx.Done()
	parent, cancel := context.WithCancel(t.Context())
	ctx, stop = patience(parent, 0, time.Now(), 0, time.Hour)
	defer stop()
	if at, ok := ctx.Deadline(); !ok || time.Until(at) < 9*time.Hour {
		t.Errorf("its end at the latest is %v, %v", at, ok)
	}
	cancel()
	<-ctx.Done()
	if !errors.Is(context.Cause(ctx), context.Canceled) {
		t.Errorf("it ended with %v", context.Cause(ctx))
	}
}
