package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
)

func (a *app) gcCmd() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what nothing needs any more: old snapshots, leftovers, unregistered runtime images",
		Args:  cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			done, err := cl.CollectGarbage(ctx, dryRun)
			if err != nil {
				return err
			}
			if err := a.printGarbage(done); err != nil {
				return err
			}
			for _, item := range done.Items {
				if item.Error != "" {
					return warmboot.Errorf(warmboot.Internal, "", "not everything could be removed: %s", item.Error)
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would be removed")
	return cmd
}

func (a *app) printGarbage(done api.Garbage) error {
	if a.format == "json" {
		return a.printJSON(done)
	}
	if len(done.Items) == 0 {
		_, err := fmt.Fprintln(a.Out, "Nothing to remove.")
		return err
	}
	if err := writeTable(a.Out, done.Items, []column[api.GarbageItem]{
		{"KIND", func(g api.GarbageItem) string { return g.Kind }},
		{"ACTION", func(g api.GarbageItem) string { return g.Action }},
		{"SIZE", func(g api.GarbageItem) string { return size(g.Bytes) }},
		{"WHAT", func(g api.GarbageItem) string {
			if g.ID != "" {
				return shortID(g.ID)
			}
			return g.Path
		}},
		{"WHY", func(g api.GarbageItem) string { return g.Reason }},
	}); err != nil {
		return err
	}
	verb := "freed"
	if done.DryRun {
		verb = "would be freed"
	}
	_, err := fmt.Fprintln(a.Out, size(done.FreedBytes), verb)
	return err
}
