package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"

	"warmboot"
	"warmboot/internal/agentrpc"
	"warmboot/internal/authority"
	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
	"warmboot/internal/httpapi"
	"warmboot/internal/rollback"
	"warmboot/internal/telemetry"
)

// manager is `warmboot manager`: a control plane whose hosts are elsewhere.
func manager(ctx context.Context, o cli.ManagerOptions) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	p := &plane{log: newLog(o.ServerOptions), undo: &undo, config: controlplane.Config{HostDownAfter: o.HostDownAfter}}
	if err := p.listen(o.ControlOptions); err != nil {
		return err
	}
	cluster, err := listenCluster(o.ClusterListen, "--cluster-listen")
	if err != nil {
		return err
	}
	undo.Push("close cluster listener", func() error { closeQuietly(cluster); return nil })
	if err := p.openStore(ctx, o.ServerOptions, o.ControlOptions); err != nil {
		return err
	}
	ca, err := authority.Open(ctx, p.store)
	if err != nil {
		return err
	}
	credentials := ca.Manager()
	hosts := agentrpc.NewHosts(credentials)
	undo.Push("close connections to hosts", hosts.Close)
	if err := p.start(ctx, o.ServerOptions, o.ControlOptions, hosts); err != nil {
		return err
	}
	serveCluster(agentrpc.NewServer(agentrpc.ManagerHandler(agentrpc.ManagerConfig{
		Reports: p.service, Authority: ca, Store: p.store, Log: p.log,
	}), credentials.Server()), cluster, p.log, &undo)
	if err := p.metrics.Watch(telemetry.Inventory{Service: p.service, Log: p.log}); err != nil {
		return err
	}
	return p.serveAPI(ctx, httpapi.Config{Joins: &httpapi.Joins{Authority: ca, Store: p.store}}, "name", managerName(o.Name), "cluster", cluster.Addr().String(), "authority", ca.Pin()[:12])
}

// listenCluster binds an address for others of the cluster. flag is what sets it.
func listenCluster(address, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Conflict, Op: "serve cluster", Msg: "choose another address with " + flag + ", or end what uses this one", Err: err}
	}
	return l, nil
}

// serveCluster serves others of the cluster in the background, until undo.
func serveCluster(s *http.Server, l net.Listener, log *slog.Logger, undo *rollback.Stack) {
	s.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelDebug)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.ServeTLS(l, "", "") // it ends by Close
	}()
	undo.Push("end cluster server", func() error {
		err := s.Close()
		<-ended
		return err
	})
}
