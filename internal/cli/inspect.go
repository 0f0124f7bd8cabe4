package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/client"
)

// The kinds of things that can be inspected.
const (
	kindContainer = "container"
	kindImage     = "image"
	kindSnapshot  = "snapshot"
)

func (a *app) inspectCmd() *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:                   "inspect [--type TYPE] NAME|ID...",
		DisableFlagsInUseLine: true,
		Short:                 "Show all about containers, runtime images or snapshots, in JSON",
		Args:                  cobra.MinimumNArgs(1),
		ValidArgsFunction:     a.completeAll,
		RunE: a.do(func(ctx context.Context, refs []string) error {
			switch kind {
			case "", kindContainer, kindImage, kindSnapshot:
				return a.inspect(ctx, refs, kind)
			}
			return invalid("--type %s: the types are container, image and snapshot", kind)
		}),
	}
	cmd.Flags().StringVar(&kind, "type", "", "look only for this `type`: container, image or snapshot")
	must(cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{kindContainer, kindImage, kindSnapshot}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// inspect prints an array of what was found, and fails for the rest.
func (a *app) inspect(ctx context.Context, refs []string, kind string) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	found := []any{}
	var errs []error
	for _, ref := range refs {
		item, err := a.lookUp(ctx, cl, ref, kind)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		found = append(found, item)
	}
	if err := a.printJSON(found); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// lookUp finds a thing of one kind, or if kind is empty, of the first kind that has it.
func (a *app) lookUp(ctx context.Context, cl *client.Client, ref, kind string) (any, error) {
	finders := []struct {
		kind string
		find func() (any, error)
	}{
		{kindContainer, func() (any, error) { return cl.Container(ctx, ref) }},
		{kindImage, func() (any, error) { return a.findImage(ctx, cl, ref) }},
		{kindSnapshot, func() (any, error) { return a.findSnapshot(ctx, cl, ref) }},
	}
	for _, f := range finders {
		if kind != "" && kind != f.kind {
			continue
		}
		item, err := f.find()
		if err == nil || kind != "" || warmboot.CodeOf(err) != warmboot.NotFound {
			return item, err
		}
	}
	return nil, warmboot.Errorf(warmboot.NotFound, "", "there is no container, runtime image or snapshot %q", ref)
}
