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
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/install"
)

// openHost opens this machine's agent. c has what the options do not.
func openHost(ctx context.Context, server cli.ServerOptions, o cli.HostOptions, c agent.Config, log *slog.Logger, undo *rollback.Stack) (*agent.Agent, error) {
	base, err := ownerBase()
	if err != nil {
		return nil, err
	}
	c.Root, c.Name, c.Version, c.Log = server.StorageRoot, server.Name, version, log
	if err := chooseVMM(ctx, server, o, &c, log); err != nil {
		return nil, err
	}
	c.ImageRoots, c.PlainHTTPRegistries = o.ImageRoots, o.PlainHTTPRegistries
	c.VCPUs, c.MemoryMiB, c.MaxVMs, c.OwnerBase, c.KernelArgs = o.VCPUs, o.MemoryMiB, o.MaxVMs, base, o.KernelArgs
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

// chooseVMM decides which VMM the host's microVMs run under, and says which and why.
func chooseVMM(ctx context.Context, server cli.ServerOptions, o cli.HostOptions, c *agent.Config, log *slog.Logger) error {
	// What drivers find out is kept below the root, which is made as the agent would.
	if err := os.MkdirAll(server.StorageRoot, 0o711); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "open storage root", Msg: "set MANAGER_STORAGE_ROOT to a directory that can be written", Err: err}
	}
	config := vmmConfig(o.VMM)
	config.StateDir, config.Log = filepath.Join(server.StorageRoot, "vmm"), log
	config.TAPs = func(ctx context.Context) error { return hostnet.CanTAP(ctx, hostnet.Mode(o.Network), o.NetworkCIDR) }
	chosen, err := choice.Make(ctx, config)
	if err != nil {
		return err
	}
	takeVMM(chosen, c, log)
	return nil
}

// takeVMM makes a choice the host's, and says what was chosen and what is wrong with it.
func takeVMM(chosen *choice.Choice, c *agent.Config, log *slog.Logger) {
	c.Driver, c.Other, c.VMMWhy, c.VMMWarning = chosen.Driver, chosen.Other, chosen.Why, chosen.Warning
	log.Info("MicroVMs run under "+chosen.Summary(), "binary", chosen.Found.Binary)
	if chosen.Warning != "" {
		log.Warn(chosen.Warning)
	}
}

// vmmConfig is what there is to choose from.
func vmmConfig(o cli.VMMOptions) choice.Config {
	return choice.Config{Want: o.Want, Firecracker: o.Firecracker, Places: install.Binaries(install.Dir), Jailer: o.Jailer, Unjailed: o.NoJailer}
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
