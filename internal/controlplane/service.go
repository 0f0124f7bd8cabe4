// Package controlplane holds the use cases: what happens when somebody registers an image, builds a snapshot, creates or
// stops a container. It decides between a warm and a cold boot, tracks the health of snapshots, and knows neither HTTP
// nor SQL nor how a microVM is run: those are the Store and the Host it is given.
package controlplane

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"warmboot"
)

// Config is what a Service needs.
type Config struct {
	Store warmboot.Store
	Host  Host
	Log   *slog.Logger
	// SnapshotWait is how long a create waits for a snapshot that is being built; 0 means DefaultSnapshotWait.
	SnapshotWait time.Duration
	// MaxSnapshots is how many snapshots may exist that are not deleted; 0 means DefaultMaxSnapshots.
	MaxSnapshots int
	// Observer counts what happens; nil: nobody does.
	Observer Observer
	// AutoSnapshot builds a snapshot of every runtime image when it is registered.
	AutoSnapshot bool
	// RebuildDelays are the waits before the first, second, … automatic build of an image's snapshot without a warm boot between
	// them; nil means at once, 1 m, 5 m, 30 m and 2 h.
	RebuildDelays []time.Duration
	// SnapshotTTL is how long a snapshot may be unused before garbage collection deletes it; 0 means DefaultSnapshotTTL.
	SnapshotTTL time.Duration
}

// What the founding document sets where the operator does not.
const (
	DefaultSnapshotWait = 60 * time.Second
	DefaultMaxSnapshots = 10
	DefaultSnapshotTTL  = 30 * 24 * time.Hour
)

// Service is the control plane. It is safe for concurrent use.
//
// A create, build, start or stop outlives the request that asked for it: it runs under the Service's own context, and
// whoever is interested waits for the entity to change.
type Service struct {
	store        warmboot.Store
	host         Host
	log          *slog.Logger
	snapshotWait time.Duration
	maxSnapshots int
	observer     Observer

	autoSnapshot  bool
	rebuildDelays []time.Duration
	snapshotTTL   time.Duration

	ctx      context.Context // ends when the Service closes
	cancel   context.CancelFunc
	work     work
	changes  changes
	events   *events
	tasks    tasks
	builds   builds
	rebuilds rebuilds
	gc       sync.Mutex // one garbage collection at a time
	cold     coldTimes
}

// New returns a Service. Start must be called before anything else.
func New(c Config) *Service {
	if c.SnapshotWait == 0 {
		c.SnapshotWait = DefaultSnapshotWait
	}
	if c.MaxSnapshots == 0 {
		c.MaxSnapshots = DefaultMaxSnapshots
	}
	if c.Observer == nil {
		c.Observer = unobserved{}
	}
	if c.RebuildDelays == nil {
		c.RebuildDelays = defaultRebuildDelays
	}
	if c.SnapshotTTL == 0 {
		c.SnapshotTTL = DefaultSnapshotTTL
	}
	ctx, cancel := context.WithCancel(context.Background())
	ev := newEvents()
	return &Service{
		store: &announced{Store: c.Store, events: ev}, events: ev, host: c.Host, log: c.Log, snapshotWait: c.SnapshotWait, maxSnapshots: c.MaxSnapshots, observer: c.Observer,
		autoSnapshot: c.AutoSnapshot, rebuildDelays: c.RebuildDelays, snapshotTTL: c.SnapshotTTL,
		ctx: ctx, cancel: cancel,
	}
}

// Close ends what runs in the background and waits for it. Containers go on running; a build is undone, and so is a create
// that has not finished.
func (s *Service) Close() {
	s.cancel()
	s.work.close()
}

// work is what runs in the background. The zero value is ready.
type work struct {
	mu      sync.Mutex
	closing bool
	running sync.WaitGroup
}

// errClosing is for whoever asks for work while the Service closes. What the store already says of that work is taken up by the next
// Start.
var errClosing = warmboot.Errorf(warmboot.Unavailable, "control plane", "warmboot is ending; try again when it is back")

// start runs f in the background, or is errClosing.
func (w *work) start(f func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return errClosing
	}
	w.running.Go(f)
	return nil
}

// close lets nothing more start and waits for the rest.
func (w *work) close() {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	w.running.Wait()
}

// HostInfo tells what the host runs microVMs with.
func (s *Service) HostInfo(ctx context.Context) (HostInfo, error) { return s.host.Info(ctx) }
