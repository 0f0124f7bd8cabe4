package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"warmboot"
	"warmboot/internal/agent"
	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
	"warmboot/internal/hostnet"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm/qemu"
)

// openHost opens this machine's agent and keeps its guests away from what listens here. c has what the options do not.
func openHost(ctx context.Context, server cli.ServerOptions, o cli.HostOptions, c agent.Config, log *slog.Logger, undo *rollback.Stack) (*agent.Agent, error) {
	base, err := ownerBase()
	if err != nil {
		return nil, err
	}
	c.Root, c.Name, c.Version, c.Log = server.StorageRoot, server.Name, version, log
	c.Driver = qemu.New(qemu.Config{StateDir: filepath.Join(server.StorageRoot, "vmm"), Log: log})
	c.ImageRoots, c.PlainHTTPRegistries = o.ImageRoots, o.PlainHTTPRegistries
	c.VCPUs, c.MemoryMiB, c.MaxVMs, c.OwnerBase = o.VCPUs, o.MemoryMiB, o.MaxVMs, base
	host, err := agent.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	undo.Push("close agent", host.Close)
	guard, err := guardHost(o, host, log)
	if err != nil {
		return nil, err
	}
	undo.Push("end guard", func() error { return endGuard(guard, host) })
	return host, nil
}

// report lets a host tell what happens on it, until undo.
func report(ctx context.Context, host *agent.Agent, to controlplane.Reports, undo *rollback.Stack) {
	rctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		host.Run(rctx, to)
	}()
	undo.Push("end reports of the host", func() error {
		cancel()
		<-ended
		return nil
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
func guardHost(o cli.HostOptions, host *agent.Agent, log *slog.Logger) (*hostnet.Guard, error) {
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
