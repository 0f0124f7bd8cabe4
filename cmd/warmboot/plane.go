package main

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"warmboot"
	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
	"warmboot/internal/httpapi"
	"warmboot/internal/jobs"
	"warmboot/internal/rollback"
	"warmboot/internal/store"
	"warmboot/internal/telemetry"
)

func newLog(o cli.ServerOptions) *slog.Logger {
	if o.LogFormat == "json" {
		return telemetry.NewJSONLog(os.Stderr, o.LogLevel)
	}
	return telemetry.NewLog(os.Stderr, o.LogLevel)
}

// plane is a control plane and its API: what `serve` and `manager` have in common.
type plane struct {
	log      *slog.Logger
	undo     *rollback.Stack // whatever is made goes here
	listener net.Listener
	door     *door
	store    *store.Store
	queue    *jobs.Queue
	service  *controlplane.Service
	config   controlplane.Config // what the options do not say
	metrics  *telemetry.Metrics
	tracing  *telemetry.Tracing
}

// trace begins tracing, if the environment asks for it. name is this server's, the machine's if empty.
func trace(ctx context.Context, name string, log *slog.Logger, undo *rollback.Stack) (*telemetry.Tracing, error) {
	tracing, err := telemetry.NewTracing(ctx, telemetry.TracingConfig{Version: version, Instance: managerName(name), Log: log})
	if err != nil {
		return nil, err
	}
	undo.Push("end tracing", func() error { tracing.Close(); return nil })
	return tracing, nil
}

// openStore opens the database, and what stands between the API and those who want in.
func (p *plane) openStore(ctx context.Context, server cli.ServerOptions, o cli.ControlOptions) error {
	var err error
	if p.tracing, err = trace(ctx, server.Name, p.log, p.undo); err != nil {
		return err
	}
	if p.store, err = store.Open(ctx, store.Config{URL: cmp.Or(o.DatabaseURL, filepath.Join(server.StorageRoot, "warmboot.db")), Log: p.log}); err != nil {
		return err
	}
	p.undo.Push("close database", p.store.Close)
	if p.door, err = openDoor(ctx, server.StorageRoot, managerName(server.Name), o, p.store, p.log); err != nil {
		return err
	}
	p.undo.Push("end access", func() error { p.door.keeper.Close(); return nil })
	return nil
}

// listen binds the API's address, first of all: what cannot be had should be said before anything is taken up.
func (p *plane) listen(o cli.ControlOptions) error {
	var err error
	if p.listener, err = listen(o, p.log); err != nil {
		return err
	}
	p.undo.Push("close listener", func() error { closeQuietly(p.listener); return nil })
	return nil
}

// start starts the control plane.
func (p *plane) start(ctx context.Context, server cli.ServerOptions, o cli.ControlOptions, hosts controlplane.Hosts) error {
	sql, postgres := p.store.SQL()
	var err error
	if p.queue, err = jobs.New(ctx, jobs.Config{DB: sql, Postgres: postgres, Log: p.log, Tracing: p.tracing}); err != nil {
		return err
	}
	p.metrics = telemetry.NewMetrics()
	c := p.config
	c.Store, c.Hosts, c.Queue, c.Log, c.Observer, c.Name = p.store, hosts, p.queue, p.log, p.metrics, managerName(server.Name)
	setSnapshots(&c, o)
	p.service = controlplane.New(c)
	p.undo.Push("end background work", func() error {
		p.service.Close() // first: jobs that end after it know that they are to be done again
		return p.queue.Close(context.WithoutCancel(ctx))
	})
	if err := p.service.Start(ctx); err != nil {
		return err
	}
	return p.queue.Start(ctx, p.service)
}

// setSnapshots takes over what the options say of snapshots.
func setSnapshots(c *controlplane.Config, o cli.ControlOptions) {
	c.SnapshotWait, c.MaxSnapshots, c.AutoSnapshot, c.SnapshotTTL = o.SnapshotWait, o.MaxSnapshots, o.AutoSnapshot, o.SnapshotTTL
}

// managerName is a manager's among those that share a database: the machine's, if it has none of its own.
func managerName(name string) string {
	if name == "" {
		name, _ = os.Hostname() // a machine without a name has an empty one
	}
	return name
}

// serveAPI serves the API until ctx ends, or others have taken over. what says in the log what is served.
func (p *plane) serveAPI(ctx context.Context, c httpapi.Config, what ...any) error {
	c.Service, c.Version, c.Metrics, c.Tracing = p.service, version, p.metrics, p.tracing
	server := p.door.server(c)
	p.log.Info("warmboot "+version+" serves "+p.door.url(p.listener.Addr()), what...)
	failed := make(chan error, 1)
	go func() { failed <- p.door.serve(server, p.listener) }()
	select {
	case err := <-failed:
		return &warmboot.Error{Code: warmboot.Internal, Op: "serve", Err: err}
	case err := <-p.service.Lost():
		return err
	case <-ctx.Done():
	}
	p.log.Info("warmboot ends; containers go on running")
	return shutdown(ctx, server)
}

// shutdown ends a server. Log followers and waiters would keep it from ending for ever: they get a moment, then their connections are
// closed.
func shutdown(ctx context.Context, server *http.Server) error {
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if server.Shutdown(sctx) != nil {
		return server.Close()
	}
	return nil
}

// closeQuietly is for a listener that the HTTP server has closed already, if it ran.
func closeQuietly(l net.Listener) { _ = l.Close() }
