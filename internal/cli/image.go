package cli

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

func (a *app) imageCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Runtime images: the kernel and root disk that microVMs boot",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.imageBuildCmd(), a.imageLsCmd(), a.imageRegisterCmd(), a.imageRenameCmd(), a.imageRmCmd())
	return cmd
}

func (a *app) imageBuildCmd() *cobra.Command {
	var o BuildImageOptions
	var noRegister bool
	cmd := &cobra.Command{
		Use:   "build",
		Short: "Make a runtime image from Debian packages, on this machine, and register it",
		Long: `Make a runtime image from Debian packages, on this machine, and register it with the server.

The image is kept below the storage root, which must be the server's. An image of the same recipe is not made twice.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			d := a.newDisplay("preparing", false)
			defer d.close()
			req, cached, err := a.BuildImage(ctx, o, d.progress)
			if err != nil {
				return err
			}
			how := "built"
			if cached {
				how = "already built"
			}
			if noRegister {
				d.close()
				fmt.Fprintf(a.Err, "image %s %s: %s\n", req.Name, how, filepath.Dir(req.RootfsPath))
				if a.format == "json" {
					return a.printJSON(req)
				}
				fmt.Fprintln(a.Out, req.Name)
				return nil
			}
			d.step("registering")
			cl, err := a.client()
			if err != nil {
				return err
			}
			img, err := cl.RegisterImage(ctx, req)
			if err != nil {
				return &warmboot.Error{Code: warmboot.CodeOf(err), Msg: fmt.Sprintf("image %s is %s in %s, but could not be registered", req.Name, how, filepath.Dir(req.RootfsPath)), Err: err}
			}
			d.close()
			fmt.Fprintf(a.Err, "image %s %s and registered (%s); next: `warmboot snapshot create %s`\n", img.Name, how, size(img.SizeBytes), img.Name)
			return a.printImage(img)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "", "`name` of the image; made from its recipe if left out")
	f.StringVar(&o.Suite, "suite", "trixie", "Debian `suite`")
	f.StringVar(&o.Mirror, "mirror", "", "`URL` of a Debian mirror; the builder's choice if left out")
	f.StringVar(&o.StorageRoot, "storage-root", a.storageRoot(), "the server's storage `directory` (MANAGER_STORAGE_ROOT)")
	f.BoolVar(&o.NoCache, "no-cache", false, "build even if an image of the same recipe is there")
	f.BoolVar(&noRegister, "no-register", false, "only build; works without a server")
	return cmd
}

// printImage writes one image: its id for people, all of it in JSON.
func (a *app) printImage(img api.Image) error {
	if a.format == "json" {
		return a.printJSON(img)
	}
	fmt.Fprintln(a.Out, img.ID)
	return nil
}

func (a *app) imageLsCmd() *cobra.Command {
	return lsCmd(a, listing[api.Image]{
		short: "List runtime images", quiet: "only ids", name: func(i api.Image) string { return shortID(i.ID) },
		get: func(ctx context.Context, cl *client.Client) ([]api.Image, error) { return cl.Images(ctx) },
		columns: []column[api.Image]{
			{"IMAGE ID", func(i api.Image) string { return shortID(i.ID) }},
			{"NAME", func(i api.Image) string { return i.Name }},
			{"SIZE", func(i api.Image) string { return size(i.SizeBytes) }},
			{"CREATED", func(i api.Image) string { return ago(i.CreatedAt) }},
			{"DIGEST", func(i api.Image) string { return i.Digest[:min(12, len(i.Digest))] }},
		},
	})
}

func (a *app) imageRegisterCmd() *cobra.Command {
	var req api.RegisterImage
	cmd := &cobra.Command{
		Use:                   "register NAME --kernel FILE --rootfs FILE [--initrd FILE]",
		DisableFlagsInUseLine: true,
		Short:                 "Register a runtime image that you made",
		Long: `Register a runtime image that you made. Its files must be on the server's machine, or on any host of a cluster, below a directory that is
allowed there, and must not change any more.`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.do(func(ctx context.Context, args []string) error {
			req.Name = args[0]
			for _, path := range []*string{&req.KernelPath, &req.RootfsPath, &req.InitrdPath} {
				if *path == "" {
					continue
				}
				abs, err := filepath.Abs(*path)
				if err != nil {
					return &warmboot.Error{Code: warmboot.Internal, Op: "find " + *path, Err: err}
				}
				*path = abs
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			img, err := cl.RegisterImage(ctx, req)
			if err != nil {
				return err
			}
			return a.printImage(img)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&req.KernelPath, "kernel", "", "kernel `file`, a bzImage or an ELF vmlinux")
	f.StringVar(&req.RootfsPath, "rootfs", "", "root disk `file`, ext4")
	f.StringVar(&req.InitrdPath, "initrd", "", "initrd `file`, if the kernel needs one")
	must(cmd.MarkFlagRequired("kernel"))
	must(cmd.MarkFlagRequired("rootfs"))
	return cmd
}

func (a *app) imageRmCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "rm IMAGE...",
		Short:             "Forget runtime images that nothing uses; their files stay",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeImages,
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return each(a, refs, func(cl *client.Client, ref string) (string, error) {
				img, err := a.findImage(ctx, cl, ref)
				if err != nil {
					return "", err
				}
				return ref, cl.DeleteImage(ctx, img.ID)
			})
		}),
	}
}
