package cli

import (
	"context"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"warmboot/internal/preflight"
)

// ServeOptions are the settings of `warmboot serve`.
type ServeOptions struct {
	ServerOptions
	ControlOptions
	HostOptions
	// Kernel, Rootfs and Initrd, if set, are registered as a runtime image at the start. Initrd may be empty.
	Kernel, Rootfs, Initrd string
}

func (a *app) serveCmd() *cobra.Command {
	var o ServeOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: the API, and the microVMs of this machine",
		Long: `Run the server: the API, and the microVMs of this machine.

An interruption ends the server; containers go on running, and the next server takes charge of them.`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	server, control, host := a.newServerFlags(f, &o.ServerOptions, "host"), a.newControlFlags(f, &o.ControlOptions), a.newHostFlags(f, &o.HostOptions)
	f.StringVar(&o.Kernel, "kernel", a.Env("CONTAINER_RUNTIME_KERNEL"), "kernel `file` of a runtime image to register (CONTAINER_RUNTIME_KERNEL)")
	f.StringVar(&o.Rootfs, "rootfs", a.Env("CONTAINER_RUNTIME_ROOTFS"), "root disk `file` of that image, ext4 (CONTAINER_RUNTIME_ROOTFS)")
	f.StringVar(&o.Initrd, "initrd", a.Env("CONTAINER_RUNTIME_INITRD"), "initrd `file` of that image, if it needs one (CONTAINER_RUNTIME_INITRD)")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if err := firstError(control.read, server.read, host.read); err != nil {
			return err
		}
		if (o.Kernel == "") != (o.Rootfs == "") || o.Initrd != "" && o.Kernel == "" {
			return invalid("--kernel and --rootfs (CONTAINER_RUNTIME_KERNEL and CONTAINER_RUNTIME_ROOTFS) go together: a runtime image needs both, and may have an initrd")
		}
		return a.Serve(ctx, o)
	})
	return cmd
}

// ManagerOptions are the settings of `warmboot manager`.
type ManagerOptions struct {
	ServerOptions
	ControlOptions
	ClusterListen string // host:port at which hosts reach this manager
	HostDownAfter time.Duration
}

// minHostDown is two signs of life of an agent.
const minHostDown = 10 * time.Second

func (a *app) managerCmd() *cobra.Command {
	var o ManagerOptions
	cmd := &cobra.Command{
		Use:   "manager",
		Short: "Run a control plane for several hosts",
		Long: `Run a control plane for several hosts, each of which runs a warmboot agent.

Several managers may share one PostgreSQL database: they are each other's equals, and take over from one that dies. Give each a name of
its own. The machine of a manager runs no microVMs, unless an agent runs there too.`,
		Example: `  DATABASE_URL=postgres://warmboot@db/warmboot warmboot manager --name m1 --cluster-listen 10.0.0.1:18081
  warmboot host token     # prints what a host needs to join`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	server, control := a.newServerFlags(f, &o.ServerOptions, "manager"), a.newControlFlags(f, &o.ControlOptions)
	f.StringVar(&o.ClusterListen, "cluster-listen", a.env("MANAGER_CLUSTER_LISTEN", ":18081"), "`address` at which hosts reach this manager, always with TLS (MANAGER_CLUSTER_LISTEN)")
	f.DurationVar(&o.HostDownAfter, "host-down-after", 30*time.Second, "`time` after which a host that gives no sign of life counts as down")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if err := firstError(control.read, server.read); err != nil {
			return err
		}
		if o.HostDownAfter < minHostDown {
			return invalid("--host-down-after must be at least %s: a host gives a sign of life every five seconds", minHostDown)
		}
		return a.Manager(ctx, o)
	})
	return cmd
}

// AgentOptions are the settings of `warmboot agent`.
type AgentOptions struct {
	ServerOptions
	HostOptions
	Managers  []string // host:port of managers' cluster addresses
	JoinToken string   // empty: the host has joined before
	Listen    string   // host:port at which managers and other hosts reach this agent
	Advertise string   // the same as they see it; empty: found out
}

func (a *app) agentCmd() *cobra.Command {
	var o AgentOptions
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the microVMs of this machine for managers elsewhere",
		Long: `Run the microVMs of this machine for managers elsewhere.

A host joins once, with the token that "warmboot host token" prints on a manager; after that it is known by its certificate, which
renews itself. An interruption ends the agent; containers go on running, and the next agent takes charge of them.`,
		Example: `  warmboot agent --manager m1:18081,m2:18081 --join wbj_…   # the first time
  warmboot agent --manager m1:18081,m2:18081`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	server, host := a.newServerFlags(f, &o.ServerOptions, "host"), a.newHostFlags(f, &o.HostOptions)
	managers := f.String("manager", a.Env("WARMBOOT_MANAGERS"), "`addresses` of managers, host:port, with commas between them (WARMBOOT_MANAGERS)")
	join := f.String("join", "", "join `token`, needed the first time; or @FILE that has it (WARMBOOT_JOIN_TOKEN)")
	f.StringVar(&o.Listen, "listen", a.env("WARMBOOT_AGENT_LISTEN", ":18082"), "`address` at which managers and other hosts reach this agent, always with TLS (WARMBOOT_AGENT_LISTEN)")
	f.StringVar(&o.Advertise, "advertise", a.Env("WARMBOOT_AGENT_ADVERTISE"), "that `address` as the others see it; if left out, the one from which this machine speaks to the manager (WARMBOOT_AGENT_ADVERTISE)")
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if err := firstError(server.read, host.read); err != nil {
			return err
		}
		for m := range strings.SplitSeq(*managers, ",") {
			if m = strings.TrimSpace(m); m != "" {
				o.Managers = append(o.Managers, m)
			}
		}
		if len(o.Managers) == 0 {
			return invalid("no manager is named; give its address with --manager host:18081 (WARMBOOT_MANAGERS)")
		}
		var err error
		if o.JoinToken, err = a.secret(*join, "WARMBOOT_JOIN_TOKEN"); err != nil {
			return err
		}
		return a.Agent(ctx, o)
	})
	return cmd
}

// secret reads a secret out of a flag, which may name a file (@FILE) so that no list of processes shows it, or else out of a variable.
func (a *app) secret(flag, variable string) (string, error) {
	text := flag
	if text == "" {
		text = a.Env(variable)
	}
	path, named := strings.CutPrefix(text, "@")
	if !named {
		return text, nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return "", invalid("the file that was named cannot be read: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}

// firstError runs checks up to the first that fails.
func firstError(checks ...func() error) error {
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) storageRoot() string {
	return a.env("MANAGER_STORAGE_ROOT", preflight.DefaultStorageRoot)
}
