// Package controlplane holds the use cases: what happens when somebody registers an image, builds a snapshot, creates or
// stops a container. It decides between a warm and a cold boot, tracks the health of snapshots, and knows neither HTTP
// nor SQL nor how a microVM is run: those are the Store, the Hosts and the Queue it is given.
//
// Several Services, each in a manager of its own, may work on one store. Whoever does something to a container or builds a snapshot
// holds its lease (lease.go); when a manager dies, the others find out (members.go) and take up what it was doing (recover.go).
package controlplane

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"warmboot"
)

// Config is what a Service needs.
type Config struct {
	Store warmboot.Store
	Hosts Hosts
	Queue Queue
	Log   *slog.Logger
	// Name is this manager's among those that share the store; "" means "manager". The next start of the same manager has the same.
	Name string
	// SnapshotWait is how long a create waits for a snapshot that is being built; 0 means DefaultSnapshotWait.
	SnapshotWait time.Duration
	// MaxSnapshots is how many snapshots may exist that are not deleted; 0 means DefaultMaxSnapshots.
	MaxSnapshots int
	// Observer counts what happens; nil: nobody does.
	Observer Observer
	// AutoSnapshot builds a snapshot of every runtime image when it is registered, and of every image for a host that joins with another
	// platform.
	AutoSnapshot bool
	// RebuildDelays are the waits before the first, second, … automatic build of an image's snapshot without a warm boot between
	// them; nil means at once, 1 m, 5 m, 30 m and 2 h.
	RebuildDelays []time.Duration
	// SnapshotTTL is how long a snapshot may be unused before garbage collection deletes it; 0 means DefaultSnapshotTTL.
	SnapshotTTL time.Duration
	// Beat is how often this manager gives a sign of life and looks for those of the others; 0 means DefaultBeat.
	Beat time.Duration
	// DeadAfter is how long another manager's signs of life may stay away before its work is taken over; 0 means DefaultDeadAfter.
	DeadAfter time.Duration
	// HostDownAfter is the same of a host; 0 means DefaultHostDownAfter.
	HostDownAfter time.Duration
	// Step is called at each labelled step of a create, build, rebuild or delete, so that a test can end the process there; nil: nothing is.
	Step func(label string)
}

// What the founding document sets where the operator does not, and how soon the dead are missed.
const (
	DefaultSnapshotWait  = 60 * time.Second
	DefaultMaxSnapshots  = 10
	DefaultSnapshotTTL   = 30 * 24 * time.Hour
	DefaultBeat          = time.Second
	DefaultDeadAfter     = 5 * time.Second
	DefaultHostDownAfter = 30 * time.Second
)

// Service is the control plane. It is safe for concurrent use.
//
// A create, build, start or stop outlives the request that asked for it: it runs under the Service's own context, and
// whoever is interested waits for the entity to change.
type Service struct {
	Config
	me     warmboot.ID // this manager, from its start to its end
	store  *announced
	log    *slog.Logger
	ctx    context.Context // ends when the Service closes, or is no member of the managers any more
	cancel context.CancelFunc
	lost   chan error
	joined bool // by Start

	work    work
	changes changes
	events  *events
	feed    feed
	tasks   tasks
	builds  builds
	hosts   hosts
	members members
	uses    uses
	cold    coldTimes

	gc         sync.Mutex  // one garbage collection at a time
	collecting atomic.Bool // collect is about to run
}

// New returns a Service. Start must be called before anything else.
func New(c Config) *Service {
	setDefaults(&c)
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{
		Config: c, me: warmboot.NewID(), log: c.Log, events: newEvents(), ctx: ctx, cancel: cancel, lost: make(chan error, 1),
		members: members{seen: map[warmboot.ID]sighting{}},
		hosts:   hosts{known: map[warmboot.ID]*warmboot.Host{}, placing: map[*placing]bool{}, beating: map[warmboot.ID]bool{}, seen: map[warmboot.ID]sighting{}, greeted: map[warmboot.ID]bool{}},
	}
	s.store = &announced{Store: c.Store, tell: s.tell}
	s.feed.pending = make(chan struct{}, 1)
	return s
}

func setDefaults(c *Config) {
	orDefault(&c.Name, "manager")
	orDefault(&c.SnapshotWait, DefaultSnapshotWait)
	orDefault(&c.MaxSnapshots, DefaultMaxSnapshots)
	orDefault(&c.SnapshotTTL, DefaultSnapshotTTL)
	orDefault(&c.Beat, DefaultBeat)
	orDefault(&c.DeadAfter, DefaultDeadAfter)
	orDefault(&c.HostDownAfter, DefaultHostDownAfter)
	if c.Observer == nil {
		c.Observer = unobserved{}
	}
	if c.RebuildDelays == nil {
		c.RebuildDelays = defaultRebuildDelays
	}
	if c.Step == nil {
		c.Step = func(string) {}
	}
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Start joins the managers and takes up what earlier ones have left. The hosts that this process has inside itself say HostHello after
// that.
func (s *Service) Start(ctx context.Context) error {
	if err := s.join(ctx); err != nil {
		return err
	}
	s.joined = true
	if err := s.refreshHosts(ctx); err != nil {
		return err
	}
	for _, f := range []func(){s.live, s.follow, s.publish} {
		if err := s.work.start(f); err != nil {
			return err
		}
	}
	return s.takeOver(ctx, true)
}

// Close ends what runs in the background and waits for it. Containers go on running; a build or create that has not finished is undone on
// its host, and taken up by another manager or by the next start.
func (s *Service) Close() {
	s.cancel()
	s.work.close()
	if s.joined {
		s.leave()
	}
}

// ID is this manager's among those that share the store, from its start to its end.
func (s *Service) ID() warmboot.ID { return s.me }

// Lost gives an error once this manager was taken for dead and others do its work: it has to end.
func (s *Service) Lost() <-chan error { return s.lost }

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

// enter is start for work that has a goroutine already: done must be called at its end.
func (w *work) enter() (done func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		return nil, errClosing
	}
	w.running.Add(1)
	return w.running.Done, nil
}

// close lets nothing more start and waits for the rest.
func (w *work) close() {
	w.mu.Lock()
	w.closing = true
	w.mu.Unlock()
	w.running.Wait()
}

// wait returns after d, or as soon as the Service closes; then it is false.
func (s *Service) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-s.ctx.Done():
		return false
	}
}
