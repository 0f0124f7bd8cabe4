package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"warmboot"
	"warmboot/internal/agent"
	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
	"warmboot/internal/hostnet"
	"warmboot/internal/httpapi"
	"warmboot/internal/jobs"
	"warmboot/internal/rollback"
	"warmboot/internal/store"
	"warmboot/internal/telemetry"
	"warmboot/internal/vmm/qemu"
)

// serve is `warmboot serve`: manager and agent in one process on an embedded database, or on PostgreSQL. It returns when ctx ends; microVMs go on
// running, and the next serve takes charge of them.
func serve(ctx context.Context, o cli.ServeOptions) (err error) {
	log := telemetry.NewLog(os.Stderr, o.LogLevel)
	if o.LogFormat == "json" {
		log = telemetry.NewJSONLog(os.Stderr, o.LogLevel)
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()

	listener, err := listen(o, log)
	if err != nil {
		return err
	}
	undo.Push("close listener", func() error { closeQuietly(listener); return nil })
	host, err := openAgent(ctx, o, log)
	if err != nil {
		return err
	}
	undo.Push("close agent", host.Close)
	guard, err := guardHost(o, host, log)
	if err != nil {
		return err
	}
	undo.Push("end guard", func() error { return endGuard(guard, host) })
	db, err := store.Open(ctx, store.Config{URL: cmp.Or(o.DatabaseURL, filepath.Join(o.StorageRoot, "warmboot.db")), Log: log})
	if err != nil {
		return err
	}
	undo.Push("close database", db.Close)
	door, err := openDoor(ctx, o, db, log)
	if err != nil {
		return err
	}
	undo.Push("end access", func() error { door.keeper.Close(); return nil })
	metrics := telemetry.NewMetrics()
	svc, queue, err := startControlPlane(ctx, o, db, localHost{host}, metrics, log, &undo)
	if err != nil {
		return err
	}
	if err := host.SayHello(ctx, svc); err != nil {
		return err
	}
	reports, endReports := context.WithCancel(context.WithoutCancel(ctx))
	reporting := make(chan struct{})
	go func() { defer close(reporting); host.Run(reports, svc) }()
	undo.Push("end reports of the host", func() error { endReports(); <-reporting; return nil })
	if err := metrics.Watch(telemetry.Inventory{Service: svc, Slots: host.Slots, Jobs: queue.Depth, Log: log}); err != nil {
		return err
	}
	if o.Kernel != "" || o.Rootfs != "" {
		img := warmboot.Image{Name: "container-runtime", KernelPath: o.Kernel, InitrdPath: o.Initrd, RootfsPath: o.Rootfs}
		if _, err := svc.RegisterImage(ctx, img); err != nil {
			return err
		}
	}

	server := door.server(httpapi.Config{Service: svc, Version: version, Metrics: metrics})
	info, err := host.Inventory(ctx)
	if err != nil {
		return err
	}
	log.Info("warmboot "+version+" serves "+door.url(listener.Addr()), "storage_root", o.StorageRoot, "vmm", info.VMM, "why", info.VMMWhy)
	failed := make(chan error, 1)
	go func() { failed <- door.serve(server, listener) }()
	select {
	case err := <-failed:
		return &warmboot.Error{Code: warmboot.Internal, Op: "serve", Err: err}
	case err := <-svc.Lost():
		return err
	case <-ctx.Done():
	}
	log.Info("warmboot ends; containers go on running")
	// Log followers and waiters would keep the server from ending for ever: they get a moment, then their connections are closed.
	sctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if server.Shutdown(sctx) != nil {
		return server.Close()
	}
	return nil
}

// startControlPlane starts the control plane on a database; its end is on undo.
func startControlPlane(ctx context.Context, o cli.ServeOptions, db *store.Store, hosts controlplane.Hosts, observer controlplane.Observer, log *slog.Logger, undo *rollback.Stack) (*controlplane.Service, *jobs.Queue, error) {
	sql, postgres := db.SQL()
	queue, err := jobs.New(ctx, jobs.Config{DB: sql, Postgres: postgres, Log: log})
	if err != nil {
		return nil, nil, err
	}
	svc := controlplane.New(controlplane.Config{
		Store: db, Hosts: hosts, Queue: queue, Log: log, Name: o.Name, SnapshotWait: o.SnapshotWait, MaxSnapshots: o.MaxSnapshots,
		AutoSnapshot: o.AutoSnapshot, SnapshotTTL: o.SnapshotTTL, Observer: observer,
	})
	undo.Push("end background work", func() error {
		svc.Close() // first: jobs that end after it know that they are to be done again
		return queue.Close(context.WithoutCancel(ctx))
	})
	if err := svc.Start(ctx); err != nil {
		return nil, nil, err
	}
	return svc, queue, queue.Start(ctx, svc)
}

// localHost is the way to the one host that is in this process.
type localHost struct{ *agent.Agent }

// Host implements controlplane.Hosts.
func (l localHost) Host(h *warmboot.Host) (controlplane.Host, error) {
	if h.ID != l.ID {
		return nil, warmboot.Errorf(warmboot.Unavailable, "reach host", "host %s is inside another `warmboot serve`, which alone can command it (%w); use `warmboot manager` and `warmboot agent` for several hosts", h.Name, controlplane.ErrUnreachable)
	}
	return l.Agent, nil
}

// closeQuietly is for a listener that the HTTP server has closed already, if it ran.
func closeQuietly(l net.Listener) { _ = l.Close() }

func openAgent(ctx context.Context, o cli.ServeOptions, log *slog.Logger) (*agent.Agent, error) {
	driver := qemu.New(qemu.Config{StateDir: filepath.Join(o.StorageRoot, "vmm"), Log: log})
	roots := o.ImageRoots
	for _, path := range []string{o.Kernel, o.Rootfs, o.Initrd} {
		if path != "" {
			roots = append(roots, filepath.Dir(path)) // whoever sets it in our environment may
		}
	}
	base, err := ownerBase()
	if err != nil {
		return nil, err
	}
	return agent.Open(ctx, agent.Config{
		Root: o.StorageRoot, Driver: driver, Log: log, ImageRoots: roots, PlainHTTPRegistries: o.PlainHTTPRegistries,
		VCPUs: o.VCPUs, MemoryMiB: o.MemoryMiB, OwnerBase: base, Name: o.Name, Version: version, MaxVMs: o.MaxVMs,
	})
}

// ownerBase reads WARMBOOT_UID_BASE, with which two servers on one machine keep their VMMs apart. 0 means the default.
func ownerBase() (uint32, error) {
	text := os.Getenv("WARMBOOT_UID_BASE")
	if text == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n < 100_000 {
		return 0, warmboot.Errorf(warmboot.Invalid, "serve", "WARMBOOT_UID_BASE is %q; it must be a user id from 100000 on", text)
	}
	return uint32(n), nil
}

// guardHost keeps guests away from what listens on this machine.
func guardHost(o cli.ServeOptions, host *agent.Agent, log *slog.Logger) (*hostnet.Guard, error) {
	first, last := host.OwnerRange()
	var ports []uint16
	for _, registry := range o.PlainHTTPRegistries {
		if _, text, err := net.SplitHostPort(registry); err == nil {
			if port, err := strconv.ParseUint(text, 10, 16); err == nil {
				ports = append(ports, uint16(port))
			}
		}
	}
	guard, err := hostnet.NewGuard(hostnet.Config{FirstUID: first, LastUID: last, Ports: ports})
	if warmboot.CodeOf(err) == warmboot.Unavailable {
		log.Warn("Containers can reach every service that listens on this machine, because no network rule could be set", "err", err)
		return nil, nil
	}
	return guard, err
}

// endGuard takes the rule away unless microVMs go on running behind it.
func endGuard(guard *hostnet.Guard, host *agent.Agent) error {
	all, err := host.Containers(context.Background())
	for _, c := range all {
		if c.Running {
			return nil
		}
	}
	if guard == nil || err != nil {
		return err
	}
	return guard.Close()
}
