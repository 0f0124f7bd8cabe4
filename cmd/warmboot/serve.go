package main

import (
	"context"
	"errors"
	"path/filepath"

	"warmboot"
	"warmboot/internal/agent"
	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
	"warmboot/internal/httpapi"
	"warmboot/internal/rollback"
	"warmboot/internal/telemetry"
)

// serve is `warmboot serve`: manager and agent in one process on an embedded database, or on PostgreSQL. It returns when ctx ends; microVMs go on
// running, and the next serve takes charge of them.
func serve(ctx context.Context, o cli.ServeOptions) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	p := &plane{log: newLog(o.ServerOptions), undo: &undo}
	if err := p.listen(o.ControlOptions); err != nil {
		return err
	}
	for _, path := range []string{o.Kernel, o.Rootfs, o.Initrd} {
		if path != "" {
			o.ImageRoots = append(o.ImageRoots, filepath.Dir(path)) // whoever sets it in our environment may
		}
	}
	host, err := openHost(ctx, o.ServerOptions, o.HostOptions, agent.Config{}, p.log, &undo)
	if err != nil {
		return err
	}
	if err := p.openStore(ctx, o.ServerOptions, o.ControlOptions); err != nil {
		return err
	}
	if err := p.start(ctx, o.ServerOptions, o.ControlOptions, localHost{host}); err != nil {
		return err
	}
	if err := host.SayHello(ctx, p.service); err != nil {
		return err
	}
	report(ctx, host, p.service, &undo)
	if err := p.metrics.Watch(telemetry.Inventory{Service: p.service, Slots: host.Slots, Jobs: p.queue.Depth, Log: p.log}); err != nil {
		return err
	}
	if o.Kernel != "" {
		img := warmboot.Image{Name: "container-runtime", KernelPath: o.Kernel, InitrdPath: o.Initrd, RootfsPath: o.Rootfs}
		if _, err := p.service.RegisterImage(ctx, img); err != nil {
			return err
		}
	}
	return p.serveAPI(ctx, httpapi.Config{}, "storage_root", o.StorageRoot)
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
