package crash

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane"
	"warmboot/internal/expect"
	"warmboot/internal/store/pgtest"
)

// outage is how long the database is gone.
const outage = 30 * time.Second

// TestDatabaseGoneInTheMiddleOfCreates asks for 50 containers and takes the database away while they are being made. Who asks meanwhile is
// told, and asks again; in the end there is what was asked for, once.
func TestDatabaseGoneInTheMiddleOfCreates(t *testing.T) {
	for name, database := range map[string]func(t *testing.T) (url string, gone, back func()){
		"crashed": func(t *testing.T) (string, func(), func()) {
			postgres.Need(t)
			own, err := pgtest.Start()
			expect.NoError(t, err)
			t.Cleanup(func() { expect.NoError(t, own.Close()) })
			return own.Database(t), func() { expect.NoError(t, own.Crash()) }, func() { expect.NoError(t, own.Resume()) }
		},
		"cut off": func(t *testing.T) (string, func(), func()) {
			link := postgres.Link(t, postgres.Database(t))
			return link.URL, link.Cut, link.Mend
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url, gone, back := database(t)
			createThrough(t, url, gone, back)
		})
	}
}

func createThrough(t *testing.T, url string, gone, back func()) {
	const creates = 50
	p := newPlant(t, url)
	p.host.OnWarm = func(ctx context.Context, _ controlplane.MachineSpec, _ warmboot.RuntimeSnapshot) error {
		select { // so that many are half-made
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
		return ctx.Err()
	}
	var refused, slowest atomic.Int64
	halfway := make(chan struct{}, creates)
	var all sync.WaitGroup
	for i := range creates {
		name := fmt.Sprintf("c%d", i)
		all.Go(func() {
			time.Sleep(time.Duration(i) * 10 * time.Millisecond) // one after the other, as people ask
			for {
				asked := time.Now()
				_, err := p.CreateContainer(t.Context(), api.CreateContainer{Name: name, Image: "debian:trixie"})
				slowest.Store(max(slowest.Load(), int64(time.Since(asked))))
				switch {
				case err == nil || warmboot.CodeOf(err) == warmboot.Conflict: // it had been stored although the answer said that nobody knows
					halfway <- struct{}{}
					return
				case warmboot.CodeOf(err) != warmboot.Unavailable:
					t.Errorf("create %s: %v", name, err)
					return
				}
				refused.Add(1)
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	for range creates / 3 {
		<-halfway
	}
	gone()
	time.Sleep(outage) // a network, or a database, that is away for so long
	back()
	all.Wait()
	want := map[string]string{}
	for i := range creates {
		want[fmt.Sprintf("c%d", i)] = "running"
	}
	p.settled("after the outage", func() error { return p.containers(want) })
	if warm, cold, _ := p.host.Counts(); warm+cold < creates || refused.Load() == 0 {
		t.Errorf("%d warm and %d cold boots; %d requests were refused", warm, cold, refused.Load())
	}
	t.Logf("%d requests were told to ask again, the slowest answer took %v", refused.Load(), time.Duration(slowest.Load()).Round(time.Millisecond))
}
