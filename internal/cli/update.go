package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"warmboot/api"
	"warmboot/client"
)

func (a *app) updateCmd() *cobra.Command {
	var restart, memory string
	var cpus float64
	var publish []string
	cmd := &cobra.Command{
		Use:   "update [FLAGS] CONTAINER...",
		Short: "Change what containers may use, and when they are started again",
		Long: `Change what containers may use, and when they are started again. What is not given stays as it is.

The restart policy is the new one at once. CPUs, memory and ports are those of the microVM that a container has booted with: stop the container
first, and start it again.`,
		Example: `  warmboot update --restart unless-stopped web
  warmboot stop web; warmboot update -m 1g --cpus 2 -p 8080:80 web; warmboot start web`,
		Args:                  cobra.MinimumNArgs(1),
		DisableFlagsInUseLine: true,
		ValidArgsFunction:     a.completeContainers(nil),
	}
	f := cmd.Flags()
	f.Float64Var(&cpus, "cpus", 0, "`number` of CPUs; 0: the microVM's own")
	f.StringVarP(&memory, "memory", "m", "", "`amount` of memory, for example 512m; 0: the microVM's own")
	f.StringVar(&restart, "restart", "", "`policy` by which they are started again by themselves: no, on-failure, on-failure:N, always or unless-stopped")
	f.StringArrayVarP(&publish, "publish", "p", nil, "ports to publish in place of those that are, `[[ip:]host:]container[/proto]` (repeatable), or none")
	must(cmd.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions([]string{"no", "on-failure", "always", "unless-stopped"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.RunE = a.do(func(ctx context.Context, refs []string) error {
		var change api.UpdateContainer
		given := false
		for _, flag := range []struct {
			name string
			read func() error
		}{
			{"cpus", func() error { change.CPULimit = &cpus; return nil }},
			{"memory", func() (err error) { change.MemoryLimitMB, err = memoryLimit(memory); return err }},
			{"restart", func() error { change.RestartPolicy = &restart; return nil }},
			{"publish", func() (err error) { change.PortMappings, err = published(publish); return err }},
		} {
			if !f.Changed(flag.name) {
				continue
			}
			given = true
			if err := flag.read(); err != nil {
				return err
			}
		}
		if !given {
			return invalid("nothing is to change: give --restart, --cpus, -m or -p")
		}
		return each(a, refs, func(cl *client.Client, ref string) (api.UpdatedContainer, error) {
			done, err := cl.UpdateContainer(ctx, ref, change, "")
			if err == nil && len(done.AtNextStart) > 0 {
				fmt.Fprintf(a.Err, "%s: %s from the next start on\n", done.Item.Name, strings.Join(done.AtNextStart, ", "))
			}
			return done, err
		})
	})
	return cmd
}

// memoryLimit reads an amount of memory, or 0 for no limit.
func memoryLimit(text string) (*int, error) {
	if text == "0" {
		return new(int), nil
	}
	n, err := parseMemory(text)
	return &n, err
}

// published reads ports to publish; the word none alone publishes none.
func published(texts []string) (*[]api.PortMapping, error) {
	ports := []api.PortMapping{}
	if len(texts) == 1 && texts[0] == "none" {
		return &ports, nil
	}
	for _, text := range texts {
		p, err := parsePort(text)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return &ports, nil
}

func (a *app) renameCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rename CONTAINER NAME",
		Short:             "Give a container another name",
		Long:              "Give a container another name. Inside, its host name follows at the next start.",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: firstArg(a.completeContainers(nil)),
		RunE: a.do(func(ctx context.Context, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			done, err := cl.UpdateContainer(ctx, args[0], api.UpdateContainer{Name: &args[1]}, "")
			if err == nil && a.format == "json" {
				err = a.printJSON(done.Item)
			}
			return err
		}),
	}
}

func (a *app) imageRenameCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rename IMAGE NAME",
		Short:             "Give a runtime image another name",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: firstArg(a.completeImages),
		RunE: a.do(func(ctx context.Context, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			img, err := a.findImage(ctx, cl, args[0])
			if err != nil {
				return err
			}
			if img, err = cl.RenameImage(ctx, img.ID, args[1]); err == nil && a.format == "json" {
				err = a.printJSON(img)
			}
			return err
		}),
	}
}

// firstArg completes the first argument only: the second is a new name.
func firstArg(complete cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(cmd, args, typed)
	}
}
