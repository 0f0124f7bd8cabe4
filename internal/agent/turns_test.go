package agent

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// However many boots there are, no more run at once than there are turns, none is left out, and one that is not wanted any more takes none.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		turns := make(turns, 3)
		var mu sync.Mutex
		var running, most, ran int
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				done, err := turns.take(t.Context())
				if err != nil {
					t.Error(err)
					return
				}
				defer done()
				mu.Lock()
				running++
				most, ran = max(most, running), ran+1
				mu.Unlock()
				time.Sleep(time.Second)
				mu.Lock()
				running--
				mu.Unlock()
			})
		}
		synctest.Wait()
		unwanted, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := turns.take(unwanted); !errors.Is(err, context.Canceled) {
			t.Errorf("a boot that nobody wants gets %v", err)
		}
		start := time.Now()
		all.Wait()
		if ran != 20 || most != 3 || time.Since(start) != 7*time.Second {
			t.Errorf("%d ran, %d at once, in %v", ran, most, time.Since(start))
		}
	})
}

// Starts wait for each other while the host is short of processors, and only for those whose machines want one.
func TestStartsTakeTurnsWhileTheHostIsShort(t *testing.T) {
	t.Parallel()
	var short atomic.Bool
	isShort := short.Load
	idle := func() time.Duration { return 0 }
	// always is what a machine says that wants a processor all the time.
	always := func() func() time.Duration {
		start := time.Now()
		return func() time.Duration { return time.Since(start) }
	}
	waits := func(t *testing.T, turns turns, wanted func() time.Duration) (took time.Duration, done func()) {
		t.Helper()
		start := time.Now()
		done, err := turns.takeWhileShort(t.Context(), isShort, wanted)
		if err != nil {
			t.Fatal(err)
		}
		return time.Since(start), done
	}
	for _, tt := range []struct {
		name  string
		short bool
		first func() func() time.Duration // what the machine before wants
		ends  time.Duration               // when its start is done; 0: never
		eases time.Duration               // when the host is not short any more; 0: never
		want  time.Duration
	}{
		{"the host has time", false, always, 0, 0, 0},
		{"the one before is done", true, always, 30 * time.Second, 0, 30 * time.Second},
		{"the one before waits for its registry", true, func() func() time.Duration { return idle }, 0, 0, turnIdle},
		{"the one before is done at once", true, func() func() time.Duration { return idle }, time.Millisecond, 0, time.Millisecond},
		{"the one before spins", true, always, 0, 0, turnLimit},
		{"the host has time again", true, always, 0, 10*time.Second - 1, 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				short.Store(tt.short)
				turns := make(turns, 1)
				_, first := waits(t, turns, tt.first())
				if tt.ends > 0 {
					time.AfterFunc(tt.ends, first)
				}
				if tt.eases > 0 {
					time.AfterFunc(tt.eases, func() { short.Store(false) })
				}
				took, done := waits(t, turns, idle)
				if took != tt.want {
					t.Errorf("the second waits %v, want %v", took, tt.want)
				}
				first()
				done()
				done() // as often as one likes
				if synctest.Wait(); len(turns) != 0 {
					t.Errorf("at the end %d turns are taken", len(turns))
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		short.Store(true)
		turns := make(turns, 1)
		_, done := waits(t, turns, always())
		defer done()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := turns.takeWhileShort(ctx, isShort, idle); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that nobody waits for any more gets %v", err)
		}
	})
}

// A host is short of processors when more want one than there are, and the kernel tells so.
func TestAHostIsShortOfProcessors(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("/proc/pressure/cpu"); err != nil {
		t.Skipf("SKIPPED: whether a host is short of processors; needs a kernel with pressure stall information: %v", err)
	}
	for range 2 { // on the same processor, so that one of them always waits
		busy(t)
	}
	for start := time.Now(); !shortOfProcessors(); {
		if time.Since(start) > time.Minute {
			text, err := os.ReadFile("/proc/pressure/cpu")
			t.Fatalf("a host where one always waits is not short of processors: %s (%v)", text, err)
		}
		time.Sleep(lookEvery)
	}
}
