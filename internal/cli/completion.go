package cli

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"warmboot/api"
	"warmboot/client"
)

// completionTimeout bounds how long a shell waits for the server's names.
const completionTimeout = 2 * time.Second

// complete makes a completion out of a list of the server's. Names that are on the command line already are left out, and
// when the server does not answer, nothing is offered.
func (a *app) complete(names func(context.Context, *client.Client) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		cl, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
		defer cancel()
		all := slices.DeleteFunc(names(ctx, cl), func(n string) bool { return slices.Contains(args, n) })
		return all, cobra.ShellCompDirectiveNoFileComp
	}
}

// completionMost is how many names a shell is offered at the most: who has more must type more.
const completionMost = 500

// completeContainers offers the names of the containers that fit and begin as what was typed; of all if fits is nil.
func (a *app) completeContainers(fits func(api.Container) bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.complete(func(ctx context.Context, cl *client.Client) []string {
			var names []string
			for c, err := range cl.EachContainer(ctx, client.ContainerFilter{NamePrefix: typed, Limit: completionMost}) {
				if err != nil {
					break // no list, no names
				}
				if fits == nil || fits(c) {
					names = append(names, c.Name)
				}
			}
			return names
		})(cmd, args, typed)
	}
}

func imageNames(ctx context.Context, cl *client.Client) []string {
	var names []string
	list, _ := cl.Images(ctx)
	for _, img := range list {
		names = append(names, img.Name)
	}
	return names
}

func snapshotIDs(ctx context.Context, cl *client.Client) []string {
	var ids []string
	list, _ := cl.Snapshots(ctx)
	for _, s := range list {
		ids = append(ids, shortID(s.ID))
	}
	return ids
}

func (a *app) completeImages(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.complete(imageNames)(cmd, args, typed)
}

func (a *app) completeSnapshots(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.complete(snapshotIDs)(cmd, args, typed)
}

// completeAll offers everything that can be inspected.
func (a *app) completeAll(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	names, directive := a.completeContainers(nil)(cmd, args, typed)
	more, _ := a.complete(func(ctx context.Context, cl *client.Client) []string {
		return append(imageNames(ctx, cl), snapshotIDs(ctx, cl)...)
	})(cmd, args, typed)
	return append(names, more...), directive
}
