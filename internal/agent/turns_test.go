package agent

import (
	"context"
	"errors"
	"sync"
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
