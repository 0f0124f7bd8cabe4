// Package planetest starts a control plane in which everything is real but the machines: the store, the job queue, and hosts in memory
// (hosttest). The tests of what stands above the control plane, and its own, use it.
package planetest

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/jobs"
	"warmboot/internal/rollback"
	"warmboot/internal/store"
	"warmboot/internal/telemetry"
)

// Config says what to start.
type Config struct {
	URL   string           // of the database, as store.Config has it
	Hosts []*hosttest.Host // that join; nil: one that Start makes
	// Reach, if set, is the way to hosts that join by themselves, and nobody else joins.
	Reach controlplane.Hosts
	Log   *slog.Logger // nil: nothing is logged
	// Tracing traces the jobs; nil: nothing is traced.
	Tracing *telemetry.Tracing
	// Shape changes the control plane's configuration; may be nil.
	Shape func(*controlplane.Config)
}

// Plane is a control plane. Close ends it; the hosts and the database stay, and another Plane can take them over.
type Plane struct {
	Service *controlplane.Service
	Store   *store.Store
	Queue   *jobs.Queue
	Hosts   []*hosttest.Host

	undo *rollback.Stack
	once sync.Once
	err  error
}

// Start starts a control plane and lets the hosts join it.
func Start(ctx context.Context, c Config) (*Plane, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Hosts == nil && c.Reach == nil {
		c.Hosts = []*hosttest.Host{hosttest.New()}
	}
	p := &Plane{Hosts: c.Hosts}
	var undo rollback.Stack
	defer undo.Unwind()
	var err error
	if p.Store, err = store.Open(ctx, store.Config{URL: c.URL, Log: c.Log}); err != nil {
		return nil, err
	}
	undo.Push("close store", p.Store.Close)
	db, postgres := p.Store.SQL()
	if p.Queue, err = jobs.New(ctx, jobs.Config{DB: db, Postgres: postgres, Log: c.Log, Tracing: c.Tracing}); err != nil {
		return nil, err
	}
	if c.Reach == nil {
		c.Reach = hosttest.Hosts(c.Hosts)
	}
	// The hosts say hello and give no signs of life after that: a test that takes long must not find them down.
	config := controlplane.Config{Store: p.Store, Hosts: c.Reach, Queue: p.Queue, Log: c.Log, HostDownAfter: time.Hour}
	if c.Shape != nil {
		c.Shape(&config)
	}
	p.Service = controlplane.New(config)
	undo.Push("end background work", func() error {
		p.Service.Close() // first: jobs that end after it know that they are to be done again
		return p.Queue.Close(context.WithoutCancel(ctx))
	})
	if err := p.Service.Start(ctx); err != nil {
		return nil, err
	}
	if err := p.Queue.Start(ctx, p.Service); err != nil {
		return nil, err
	}
	for _, h := range c.Hosts {
		if err := h.Join(ctx, func() controlplane.Reports { return p.Service }); err != nil {
			return nil, err
		}
	}
	p.undo = undo.Move()
	return p, nil
}

// Close ends the control plane. What it has done stays.
func (p *Plane) Close() error {
	p.once.Do(func() { p.err = p.undo.Unwind() })
	return p.err
}
