package main

import (
	"context"
	"log/slog"
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

// openHost opens this machine's agent. c has what the options do not.
func openHost(ctx context.Context, server cli.ServerOptions, o cli.HostOptions, c agent.Config, log *slog.Logger, undo *rollback.Stack) (*agent.Agent, error) {
	base, err := ownerBase()
	if err != nil {
		return nil, err
	}
	c.Root, c.Name, c.Version, c.Log = server.StorageRoot, server.Name, version, log
	c.Driver = qemu.New(qemu.Config{StateDir: filepath.Join(server.StorageRoot, "vmm"), Log: log})
	c.ImageRoots, c.PlainHTTPRegistries = o.ImageRoots, o.PlainHTTPRegistries
	c.VCPUs, c.MemoryMiB, c.MaxVMs, c.OwnerBase = o.VCPUs, o.MemoryMiB, o.MaxVMs, base
	c.Network = hostnet.Config{Mode: hostnet.Mode(o.Network), CIDR: o.NetworkCIDR}
	host, err := agent.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	if mode, why := host.Connected(); mode == hostnet.User && why != "" {
		log.Info("MicroVMs are connected in user mode, without egress policies", "why", why)
	}
	undo.Push("close agent", host.Close)
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
