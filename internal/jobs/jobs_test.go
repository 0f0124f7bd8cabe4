package jobs

import (
	"context"
	"log/slog"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/store"
)

// TestMain fails if a test leaves a goroutine.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted is a Service that counts what it is asked for.
type counted struct {
	id                           warmboot.ID
	collections, scrubs, rebuilt *atomic.Int32
	noRoom                       int32 // how many of the first rebuilds find none
}

func newCounted() *counted {
	return &counted{warmboot.NewID(), new(atomic.Int32), new(atomic.Int32), new(atomic.Int32), 0}
}

func (c *counted) ID() warmboot.ID                                        { return c.id }
func (c *counted) RunBuild(context.Context, warmboot.ID) error            { return nil }
func (c *counted) RunRestart(context.Context, controlplane.Restart) error { return nil }
func (c *counted) Scrub(context.Context) error                            { c.scrubs.Add(1); return nil }

func (c *counted) CollectGarbage(_ context.Context, dryRun bool) ([]controlplane.Collected, error) {
	if !dryRun {
		c.collections.Add(1)
	}
	return nil, nil
}

func (c *counted) RunRebuild(context.Context, controlplane.Rebuild) error {
	if c.rebuilt.Add(1) <= c.noRoom {
		return warmboot.Errorf(warmboot.Conflict, "build snapshot", "%w", controlplane.ErrNoRoom)
	}
	return nil
}

// start starts queues for services on one SQLite database.
func start(t *testing.T, c Config, services ...*counted) []*Queue {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{URL: filepath.Join(t.TempDir(), "warmboot.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	c.DB, c.Postgres = st.SQL()
	c.Log = slog.New(slog.DiscardHandler)
	var all []*Queue
	for _, s := range services {
		q, err := New(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := q.Start(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := q.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		all = append(all, q)
	}
	return all
}

func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	for begin := time.Now(); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("%s: not after 30 s", what)
		}
	}
}

// The daily work is done, and once a day, however many managers there are.
func TestDailyWork(t *testing.T) {
	t.Parallel()
	const look = 1100 * time.Millisecond
	one, other := newCounted(), newCounted()
	start(t, Config{DailyLook: look}, one, other)
	total := func() (int32, int32) {
		return one.collections.Load() + other.collections.Load(), one.scrubs.Load() + other.scrubs.Load()
	}
	soon(t, "garbage is collected and snapshots are scrubbed", func() bool {
		collections, scrubs := total()
		return collections > 0 && scrubs > 0
	})
	time.Sleep(3 * look) // nothing tells that nothing happens
	if collections, scrubs := total(); collections != 1 || scrubs != 1 {
		t.Errorf("%d collections of garbage and %d scrubbings on one day", collections, scrubs)
	}
}

// A rebuild for which there is no room waits for some, as long as it takes.
func TestARebuildWaitsForRoom(t *testing.T) {
	t.Parallel()
	s := newCounted()
	s.noRoom = 2
	q := start(t, Config{RoomLook: 10 * time.Millisecond}, s)[0]
	if err := q.Rebuild(t.Context(), controlplane.Rebuild{Image: warmboot.NewID(), Platform: "p", Attempt: 1, Snapshot: warmboot.NewID()}, 0); err != nil {
		t.Fatal(err)
	}
	soon(t, "it is built in the end", func() bool { return s.rebuilt.Load() == 3 })
}
