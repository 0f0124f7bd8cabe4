package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

func (a *app) snapshotCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Runtime snapshots: frozen machines in which Docker already runs",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.snapshotCreateCmd(), a.snapshotLsCmd(), a.snapshotInspectCmd(), a.snapshotRebuildCmd(), a.snapshotRmCmd())
	return cmd
}

func (a *app) snapshotCreateCmd() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:               "create [IMAGE]",
		Short:             "Boot a runtime image, wait for Docker in it, and freeze it; the newest image if none is named",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: a.completeImages,
		RunE: a.do(func(ctx context.Context, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			img, err := a.chooseImage(ctx, cl, args)
			if err != nil {
				return err
			}
			id, err := cl.CreateSnapshot(ctx, img.ID)
			if err != nil {
				return err
			}
			return a.snapshotMade(ctx, cl, id, wait)
		}),
	}
	cmd.Flags().BoolVar(&wait, "wait", true, "wait until it is ready; --wait=false prints its id at once")
	return cmd
}

// chooseImage is the image named, or else the newest.
func (a *app) chooseImage(ctx context.Context, cl *client.Client, args []string) (api.Image, error) {
	if len(args) > 0 {
		return a.findImage(ctx, cl, args[0])
	}
	images, err := cl.Images(ctx)
	if err != nil {
		return api.Image{}, err
	}
	if len(images) == 0 {
		return api.Image{}, warmboot.Errorf(warmboot.NotFound, "", "there is no runtime image yet; make one with `warmboot image build`")
	}
	return images[0], nil
}

// snapshotMade prints a snapshot that is being built; with wait, once it is ready.
func (a *app) snapshotMade(ctx context.Context, cl *client.Client, id string, wait bool) error {
	d := a.newDisplay("", !wait)
	defer d.close()
	snap, err := cl.Snapshot(ctx, id)
	for ; ; snap, err = cl.WaitSnapshot(ctx, id, snap.Metadata.Step) {
		if ctx.Err() != nil {
			d.close()
			fmt.Fprintf(a.Err, "warmboot: not waiting any longer; the build goes on, see `warmboot snapshot inspect %s`\n", shortID(id))
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		switch state := warmboot.SnapshotState(snap.State); {
		case !wait || state == warmboot.SnapshotReady:
			d.close()
			if wait {
				m := snap.Metadata
				fmt.Fprintf(a.Err, "snapshot ready in %s (cold boot %s, memory %s, on disk %s)\n", dur(m.BuildSeconds), dur(m.ColdBootSeconds), size(m.MemSizeBytes), size(m.SizeBytes))
			}
			if a.format == "json" {
				return a.printJSON(snap)
			}
			fmt.Fprintln(a.Out, snap.ID)
			return nil
		case state == warmboot.SnapshotUnhealthy:
			return warmboot.Errorf(warmboot.Internal, "", "snapshot %s could not be built: %s", shortID(id), snap.Metadata.Error)
		case state == warmboot.SnapshotDeleted:
			return warmboot.Errorf(warmboot.Conflict, "", "snapshot %s was deleted while it was being built", shortID(id))
		}
		if snap.Metadata.Step != "" {
			d.step("snapshot: " + snap.Metadata.Step)
		}
	}
}

func (a *app) snapshotLsCmd() *cobra.Command {
	images := map[string]string{} // their names
	return lsCmd(a, listing[api.Snapshot]{
		short: "List runtime snapshots", quiet: "only ids", name: func(s api.Snapshot) string { return shortID(s.ID) },
		get: func(ctx context.Context, cl *client.Client) ([]api.Snapshot, error) {
			snapshots, err := cl.Snapshots(ctx)
			if err != nil || a.format == "json" {
				return snapshots, err
			}
			all, err := cl.Images(ctx)
			for _, img := range all {
				images[img.ID] = img.Name
			}
			return snapshots, err
		},
		columns: []column[api.Snapshot]{
			{"SNAPSHOT ID", func(s api.Snapshot) string { return shortID(s.ID) }},
			{"IMAGE", func(s api.Snapshot) string {
				if name := images[s.RuntimeImageID]; name != "" {
					return name
				}
				return shortID(s.RuntimeImageID)
			}},
			{"STATE", snapshotStatus},
			{"VMM", func(s api.Snapshot) string { return s.FCVersion }},
			{"MEMORY", func(s api.Snapshot) string { return size(s.Metadata.MemSizeBytes) }},
			{"ON DISK", func(s api.Snapshot) string { return size(s.Metadata.SizeBytes) }},
			{"RESTORED", func(s api.Snapshot) string {
				return fmt.Sprintf("%d, %d failed", s.SuccessCount, s.FailureCount)
			}},
			{"LAST USED", func(s api.Snapshot) string {
				if s.LastUsedAt == nil {
					return "never"
				}
				return ago(*s.LastUsedAt)
			}},
			{"CREATED", func(s api.Snapshot) string { return ago(s.CreatedAt) }},
		},
	})
}

// snapshotStatus is the state, with what is being done or what went wrong.
func snapshotStatus(s api.Snapshot) string {
	switch {
	case s.State == string(warmboot.SnapshotCreating) && s.Metadata.Step != "":
		return s.State + " (" + oneLine(s.Metadata.Step, 40) + ")"
	case s.State == string(warmboot.SnapshotUnhealthy) && s.Metadata.Error != "":
		return s.State + " (" + oneLine(s.Metadata.Error, 40) + ")"
	}
	return s.State
}

func (a *app) snapshotInspectCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "inspect SNAPSHOT...",
		Short:             "Show all about snapshots, in JSON",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSnapshots,
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return a.inspect(ctx, refs, kindSnapshot)
		}),
	}
}

func (a *app) snapshotRebuildCmd() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:               "rebuild SNAPSHOT",
		Short:             "Build a snapshot anew; the old one serves until the new one is ready",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeSnapshots,
		RunE: a.do(func(ctx context.Context, args []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			old, err := a.findSnapshot(ctx, cl, args[0])
			if err != nil {
				return err
			}
			id, err := cl.RebuildSnapshot(ctx, old.ID)
			if err != nil {
				return err
			}
			return a.snapshotMade(ctx, cl, id, wait)
		}),
	}
	cmd.Flags().BoolVar(&wait, "wait", true, "wait until the new one is ready; --wait=false prints its id at once")
	return cmd
}

func (a *app) snapshotRmCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rm SNAPSHOT...",
		Short:             "Delete snapshots; their files go once no microVM needs them",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeSnapshots,
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return each(a, refs, func(cl *client.Client, ref string) (string, error) {
				snap, err := a.findSnapshot(ctx, cl, ref)
				if err != nil {
					return "", err
				}
				return ref, cl.DeleteSnapshot(ctx, snap.ID)
			})
		}),
	}
}
