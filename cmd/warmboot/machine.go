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
	"warmboot/internal/vmm/choice"
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
	c, err := preflightConfig(o)
	if err != nil { // serve does not start either
		return []preflight.Check{{Name: "user ids", Status: preflight.Fail, Detail: choice.Plain(err), Fix: "set WARMBOOT_UID_BASE to such a number, or leave it out"}}
	}
	return preflight.Run(ctx, c)
}

// fix is what `warmboot doctor --fix` does first.
func fix(ctx context.Context, o cli.DoctorOptions, progress cli.Progress) []preflight.Fixed {
	c, err := preflightConfig(o)
	if err != nil {
		return []preflight.Fixed{{Name: "user ids", Err: err}}
	}
	return preflight.Fix(ctx, c, progress)
}

// preflightConfig is what serve would have, too.
func preflightConfig(o cli.DoctorOptions) (preflight.Config, error) {
	base, err := ownerBase()
	return preflight.Config{
		StorageRoot: o.StorageRoot, Listen: os.Getenv("MANAGER_LISTEN"), OwnerBase: base, Network: os.Getenv("MANAGER_NETWORK"), NetworkCIDR: os.Getenv("MANAGER_NETWORK_CIDR"),
		RuntimeRootfs: os.Getenv("CONTAINER_RUNTIME_ROOTFS"), VMM: vmmConfig(o.VMM),
	}, err
}
