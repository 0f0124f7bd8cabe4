package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"warmboot/api"
	"warmboot/client"
)

func (a *app) hostCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "host", Aliases: []string{"hosts"}, Short: "Hosts: the machines that run microVMs", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.hostLsCmd(), a.hostInspectCmd(),
		a.cordonCmd("cordon", "Keep new containers and builds away from hosts; what is there goes on", true),
		a.cordonCmd("uncordon", "Let new containers and builds come to hosts again", false),
		a.drainCmd(), a.hostRemoveCmd(), a.hostTokenCmd())
	return cmd
}

func (a *app) hostLsCmd() *cobra.Command {
	return lsCmd(a, listing[api.Host]{
		short: "List hosts", quiet: "only names", name: func(h api.Host) string { return h.Name },
		get: func(ctx context.Context, cl *client.Client) ([]api.Host, error) {
			all, err := cl.Hosts(ctx)
			for _, h := range all {
				if h.Inventory.VMMWarning != "" && a.format != "json" {
					fmt.Fprintf(a.Err, "! %s: %s\n", h.Name, h.Inventory.VMMWarning)
				}
			}
			return all, err
		},
		columns: []column[api.Host]{
			{"NAME", func(h api.Host) string { return h.Name }},
			{"STATUS", hostStatus},
			{"VMS", func(h api.Host) string { return fmt.Sprintf("%d/%d", h.Inventory.VMs, h.Inventory.MaxVMs) }},
			{"VMM", func(h api.Host) string { return h.Inventory.VMM }},
			{"CPUS", func(h api.Host) string { return fmt.Sprint(h.Inventory.CPUs) }},
			{"MEMORY", func(h api.Host) string { return size(h.Inventory.MemoryBytes) }},
			{"DISK FREE", func(h api.Host) string { return size(h.Inventory.DiskFreeBytes) }},
			{"SNAPSHOTS", func(h api.Host) string { return fmt.Sprint(len(h.Inventory.Snapshots)) }},
			{"PLATFORM", func(h api.Host) string { return h.Inventory.Platform }},
			{"ADDRESS", func(h api.Host) string {
				if h.Address == "" {
					return "-"
				}
				return h.Address
			}},
		},
	}, "ps")
}

// hostStatus is a host's state as people say it.
func hostStatus(h api.Host) string {
	text := "Up"
	if h.State != "up" {
		text = "Down"
		if h.LastSeenAt != nil {
			text += " since " + since(*h.LastSeenAt)
		}
	}
	if h.Cordoned {
		text += ", cordoned"
	}
	return text
}

func (a *app) hostInspectCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "inspect HOST...",
		Short:             "Show all about hosts, in JSON",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(hostNames),
		RunE: a.do(func(ctx context.Context, refs []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			found := []api.Host{}
			var errs []error
			for _, ref := range refs {
				h, err := cl.Host(ctx, ref)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				found = append(found, h)
			}
			return errors.Join(append(errs, a.printJSON(found))...)
		}),
	}
}

func (a *app) cordonCmd(verb, short string, cordoned bool) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " HOST...",
		Short:             short,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(hostNames),
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return each(a, refs, func(cl *client.Client, ref string) (api.Host, error) { return cl.CordonHost(ctx, ref, cordoned) })
		}),
	}
}

func (a *app) drainCmd() *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "drain HOST...",
		Short: "Cordon hosts and stop their containers",
		Long: `Cordon hosts and stop their containers, and return once none runs there. Disks and logs stay where they are: a container can be
started again on its host only.`,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(hostNames),
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return each(a, refs, func(cl *client.Client, ref string) (api.Host, error) {
				return cl.DrainHost(ctx, ref, time.Duration(seconds)*time.Second)
			})
		}),
	}
	cmd.Flags().IntVarP(&seconds, "time", "t", 10, "`seconds` that each command has to end by itself")
	return cmd
}

func (a *app) hostRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rm HOST...",
		Aliases:           []string{"remove"},
		Short:             "Forget hosts that are down and have no containers or snapshots",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.complete(hostNames),
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return each(a, refs, func(cl *client.Client, ref string) (string, error) { return ref, cl.DeleteHost(ctx, ref) })
		}),
	}
}

func (a *app) hostTokenCmd() *cobra.Command {
	var expires time.Duration
	var host string
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Print a token with which one host can join, once",
		Long: `Print a token with which one host can join, once. On that host:

  warmboot agent --manager MANAGER:18081 --join TOKEN`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			if expires < time.Second {
				return invalid("--expires %s: a token is good for a second at least; the default is 1h", expires)
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			made, err := cl.CreateJoinToken(ctx, api.CreateJoinToken{Host: host, TTLSeconds: int64(expires / time.Second)})
			if err != nil {
				return err
			}
			if a.format == "json" {
				return a.printJSON(made)
			}
			fmt.Fprintf(a.Err, "good for one host, until %s:\n", made.ExpiresAt.UTC().Format(time.RFC3339))
			_, err = fmt.Fprintln(a.Out, made.Secret)
			return err
		}),
	}
	cmd.Flags().DurationVar(&expires, "expires", time.Hour, "`time` within which the host has to join")
	cmd.Flags().StringVar(&host, "host", "", "`name` or id of a host that is known already, which has lost its certificate")
	must(cmd.RegisterFlagCompletionFunc("host", a.complete(hostNames)))
	return cmd
}

func hostNames(ctx context.Context, cl *client.Client) []string {
	var names []string
	list, _ := cl.Hosts(ctx)
	for _, h := range list {
		names = append(names, h.Name)
	}
	return names
}
