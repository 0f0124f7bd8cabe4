package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"path/filepath"

	"warmboot"
	"warmboot/internal/agent"
	"warmboot/internal/agentrpc"
	"warmboot/internal/authority"
	"warmboot/internal/cli"
	"warmboot/internal/rollback"
)

// runAgent is `warmboot agent`: this machine's microVMs, for managers elsewhere.
func runAgent(ctx context.Context, o cli.AgentOptions) (err error) {
	log := newLog(o.ServerOptions)
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	tracing, err := trace(ctx, o.Name, log, &undo)
	if err != nil {
		return err
	}
	listener, err := listenCluster(o.Listen, "--listen")
	if err != nil {
		return err
	}
	undo.Push("close listener", func() error { closeQuietly(listener); return nil })
	address := o.Advertise
	if address == "" {
		if address, err = advertised(ctx, o.Managers, listener.Addr()); err != nil {
			return err
		}
	}
	managers := agentrpc.NewManagers(o.Managers)
	undo.Push("close connections to managers", managers.Close)
	credentials, id, err := enter(ctx, filepath.Join(o.StorageRoot, "agent"), o.JoinToken, managers)
	if err != nil {
		return err
	}
	managers.Use(credentials)
	peers := agentrpc.NewPeers(credentials)
	undo.Push("close connections to other hosts", peers.Close)
	host, err := openHost(ctx, o.ServerOptions, o.HostOptions, agent.Config{ID: id, Address: address, Peers: peers}, log, &undo)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/artifacts/", agentrpc.ArtifactHandler(host))
	mux.Handle("/", agentrpc.ManagersOnly(agentrpc.HostHandler(host)))
	serveCluster(agentrpc.NewServer(tracing.Handler(mux), credentials.Server()), listener, log, &undo)
	log.Info("warmboot "+version+" runs microVMs for "+o.Managers[0], "name", host.Name, "host_id", id, "address", address, "storage_root", o.StorageRoot)
	report(ctx, host, managers, &undo)
	<-ctx.Done()
	log.Info("warmboot ends; containers go on running")
	return nil
}

// enter reads this host's credentials, or gets them for a join token. Those that are there win: a token may stay where it was written.
func enter(ctx context.Context, dir, token string, managers *agentrpc.Managers) (*authority.Credentials, warmboot.ID, error) {
	c, id, err := authority.LoadHost(dir, managers)
	if token == "" || err == nil {
		return c, id, err
	}
	return authority.JoinHost(ctx, dir, token, managers)
}

// advertised is the address under which this agent can be reached from where the first manager that answers is.
func advertised(ctx context.Context, managers []string, bound net.Addr) (string, error) {
	host, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return "", &warmboot.Error{Code: warmboot.Internal, Op: "find own address", Err: err}
	}
	if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
		return bound.String(), nil
	}
	var last error
	for _, m := range managers {
		conn, err := (&net.Dialer{}).DialContext(ctx, "udp", m) // nothing is sent: this asks for the route
		if err != nil {
			last = err
			continue
		}
		defer conn.Close()
		own, _, err := net.SplitHostPort(conn.LocalAddr().String())
		return net.JoinHostPort(own, port), err
	}
	return "", &warmboot.Error{Code: warmboot.Unavailable, Op: "find own address", Msg: "no manager's address can be reached; check --manager, or say how others reach this machine with --advertise", Err: last}
}
