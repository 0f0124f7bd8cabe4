package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/cli"
	"warmboot/internal/image"
	"warmboot/internal/preflight"
)

// guestBinary finds warmboot-guest: WARMBOOT_GUEST, or beside this program.
func guestBinary() (string, error) {
	if path := os.Getenv("WARMBOOT_GUEST"); path != "" {
		return path, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", &warmboot.Error{Code: warmboot.Internal, Op: "find warmboot-guest", Err: err}
	}
	path := filepath.Join(filepath.Dir(self), "warmboot-guest")
	if _, err := os.Stat(path); err != nil {
		return "", warmboot.Errorf(warmboot.Unavailable, "find warmboot-guest", "%s is not there; `make build` makes it, or set WARMBOOT_GUEST to its path", path)
	}
	return path, nil
}

// buildImage is `warmboot image build`, up to the registration.
func buildImage(ctx context.Context, o cli.BuildImageOptions, progress cli.Progress) (api.RegisterImage, bool, error) {
	guest, err := guestBinary()
	if err != nil {
		return api.RegisterImage{}, false, err
	}
	built, err := image.Build(ctx, image.Config{
		Dir: filepath.Join(o.StorageRoot, "images"), Suite: o.Suite, Mirror: o.Mirror, GuestBinary: guest, NoCache: o.NoCache, Log: slog.New(slog.DiscardHandler),
		Progress: func(p image.Progress) { progress(p.Step, p.Fraction) },
	})
	if err != nil {
		return api.RegisterImage{}, false, err
	}
	img := built.Image
	name := o.Name
	if name == "" {
		name = o.Suite + "-" + img.Recipe[:8] // another recipe is another image
	}
	return api.RegisterImage{Name: name, KernelPath: img.KernelPath, InitrdPath: img.InitrdPath, RootfsPath: img.RootfsPath}, built.Cached, nil
}

// doctor is `warmboot doctor`.
func doctor(ctx context.Context, o cli.DoctorOptions) []preflight.Check {
	return preflight.Run(ctx, preflightConfig(o))
}

// fix is what `warmboot doctor --fix` does first.
func fix(ctx context.Context, o cli.DoctorOptions, progress cli.Progress) []preflight.Fixed {
	return preflight.Fix(ctx, preflightConfig(o), progress)
}

// preflightConfig is what serve would have, too.
func preflightConfig(o cli.DoctorOptions) preflight.Config {
	return preflight.Config{
		StorageRoot: o.StorageRoot, Listen: os.Getenv("MANAGER_LISTEN"), Network: os.Getenv("MANAGER_NETWORK"), NetworkCIDR: os.Getenv("MANAGER_NETWORK_CIDR"),
		RuntimeRootfs: os.Getenv("CONTAINER_RUNTIME_ROOTFS"), VMM: vmmConfig(o.VMM),
	}
}
