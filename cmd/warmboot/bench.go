package main

import (
	"context"
	"os"
	"path/filepath"

	"warmboot"
	"warmboot/internal/bench"
	"warmboot/internal/cli"
)

// measure is `warmboot bench`. The runtime image is the one of the storage root; if there is none yet, it is built.
func measure(ctx context.Context, o cli.BenchOptions, progress cli.Progress) (bench.Result, error) {
	self, err := os.Executable()
	if err != nil {
		return bench.Result{}, &warmboot.Error{Code: warmboot.Internal, Op: "benchmark", Err: err}
	}
	img, _, err := buildImage(ctx, cli.BuildImageOptions{Suite: "trixie", StorageRoot: o.StorageRoot}, progress)
	if err != nil {
		return bench.Result{}, err
	}
	return bench.Run(ctx, o.Options, bench.Setup{
		Binary: self, Version: version, Image: img, Roots: []string{filepath.Join(o.StorageRoot, "images")}, Progress: progress,
	})
}
