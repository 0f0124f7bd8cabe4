package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

func (a *app) psCmd() *cobra.Command {
	var o psOptions
	cmd := &cobra.Command{
		Use:     "ps",
		Aliases: []string{"list"},
		Short:   "List containers",
		Long: `List containers, newest first; those that have ended or failed only with -a, -n, -l or a filter by status.

Filters: status=STATE (creating, running, stopping, stopped, starting, failed, deleting; exited is stopped), name=PREFIX, image=IMAGE as it was given,
host=HOST, boot=warm|cold, runtime-image=IMAGE. Of several statuses one must be the container's; of different filters each must hold.`,
		Example: `  warmboot ps -n 5
  warmboot ps --filter status=running --filter boot=cold`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.BoolVarP(&o.all, "all", "a", false, "also those that have ended or failed")
	f.IntVarP(&o.last, "last", "n", -1, "only the `number` of containers that were created last, whatever has become of them")
	f.BoolVarP(&o.latest, "latest", "l", false, "only the container that was created last, whatever has become of it")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "only those that match, `key=value` (repeatable)")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "only ids")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten ids and commands")
	must(cmd.RegisterFlagCompletionFunc("filter", a.completeFilters))
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if cmd.Flags().Changed("last") && o.last < 0 {
			return invalid("-n %d: the number must not be negative", o.last)
		}
		return a.ps(ctx, o)
	})
	return cmd
}

// psOptions are the flags of ps.
type psOptions struct {
	all, latest, quiet, noTrunc bool
	last                        int
	filters                     []string
}

func (a *app) ps(ctx context.Context, o psOptions) error {
	f, err := parseFilters(o.filters)
	if err != nil {
		return err
	}
	if o.latest {
		o.last = 1
	}
	// Docker's rule: whoever asks for the last ones, or for a status, gets them in every state.
	if o.last < 0 && !o.all && len(f.States) == 0 {
		f.States = alive
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	f.Limit = max(o.last, 0)
	list := []api.Container{}
	if o.last != 0 {
		for c, err := range cl.EachContainer(ctx, f) {
			if err != nil {
				return err
			}
			list = append(list, c)
		}
	}
	return a.printContainers(o, list)
}

// alive are the states of containers that have not ended.
var alive = []string{
	string(warmboot.ContainerCreating), string(warmboot.ContainerRunning), string(warmboot.ContainerStopping), string(warmboot.ContainerStarting), string(warmboot.ContainerDeleting),
}

func (a *app) printContainers(o psOptions, list []api.Container) error {
	id, text := shortID, func(s string) string { return oneLine(s, 30) }
	if o.noTrunc {
		id = func(s string) string { return s }
		text = id
	}
	if o.quiet {
		for _, c := range list {
			fmt.Fprintln(a.Out, id(c.ID))
		}
		return nil
	}
	return printList(a, list,
		column[api.Container]{"CONTAINER ID", func(c api.Container) string { return id(c.ID) }},
		column[api.Container]{"IMAGE", func(c api.Container) string { return text(c.Image) }},
		column[api.Container]{"COMMAND", func(c api.Container) string { return text(command(c)) }},
		column[api.Container]{"CREATED", func(c api.Container) string { return ago(c.CreatedAt) }},
		column[api.Container]{"STATUS", status},
		column[api.Container]{"BOOT", boot},
		column[api.Container]{"PORTS", func(c api.Container) string { return ports(c.PortMappings) }},
		column[api.Container]{"NAME", func(c api.Container) string { return c.Name }},
	)
}

// filterKeys are what ps can be narrowed by, and where that goes. ancestor is Docker's word for image.
var filterKeys = map[string]func(*client.ContainerFilter) *string{
	"name":          func(f *client.ContainerFilter) *string { return &f.NamePrefix },
	"image":         func(f *client.ContainerFilter) *string { return &f.Image },
	"ancestor":      func(f *client.ContainerFilter) *string { return &f.Image },
	"host":          func(f *client.ContainerFilter) *string { return &f.Host },
	"boot":          func(f *client.ContainerFilter) *string { return &f.BootMethod },
	"runtime-image": func(f *client.ContainerFilter) *string { return &f.RuntimeImage },
}

// dockerStates are Docker's words for ours.
var dockerStates = map[string]warmboot.ContainerState{
	"exited": warmboot.ContainerStopped, "created": warmboot.ContainerCreating, "restarting": warmboot.ContainerStarting,
	"removing": warmboot.ContainerDeleting, "dead": warmboot.ContainerFailed,
}

func parseFilters(texts []string) (f client.ContainerFilter, err error) {
	states := append(slices.Clone(alive), string(warmboot.ContainerStopped), string(warmboot.ContainerFailed))
	for _, text := range texts {
		key, value, _ := strings.Cut(text, "=")
		if value == "" {
			return f, invalid("--filter %s: a filter is key=value, for example status=running", text)
		}
		if key == "status" {
			if ours, ok := dockerStates[value]; ok {
				value = string(ours)
			}
			if !slices.Contains(states, value) {
				return f, invalid("--filter %s: no container is ever that; the states are %s", text, strings.Join(states, ", "))
			}
			f.States = append(f.States, value)
			continue
		}
		field, ok := filterKeys[key]
		if !ok {
			return f, invalid("--filter %s: there is no such filter; use status, name, image, host, boot or runtime-image", text)
		}
		if *field(&f) != "" {
			return f, invalid("--filter %s: only status may be given more than once", text)
		}
		if key == "boot" && value != string(warmboot.BootWarm) && value != string(warmboot.BootCold) {
			return f, invalid("--filter %s: a microVM boots warm or cold", text)
		}
		*field(&f) = value
	}
	return f, nil
}

func (a *app) completeFilters(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var all []string
	key, _, _ := strings.Cut(typed, "=")
	add := func(values ...string) {
		for _, v := range values {
			all = append(all, key+"="+v)
		}
	}
	switch {
	case !strings.Contains(typed, "="):
		return []cobra.Completion{"status=", "name=", "image=", "host=", "boot=", "runtime-image="}, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	case key == "status":
		add(append(slices.Clone(alive), string(warmboot.ContainerStopped), string(warmboot.ContainerFailed))...)
	case key == "boot":
		add(string(warmboot.BootWarm), string(warmboot.BootCold))
	case key == "host":
		names, _ := a.complete(hostNames)(cmd, args, typed)
		add(names...)
	case key == "runtime-image":
		names, _ := a.complete(imageNames)(cmd, args, typed)
		add(names...)
	}
	return all, cobra.ShellCompDirectiveNoFileComp
}
