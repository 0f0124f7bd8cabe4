package nestedhost

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"warmboot"
	"warmboot/internal/image"
)

// cacheDir is where images are kept, as those of test/runtimeimage are beside it; `make clean` removes them.
const cacheDir = "/var/tmp/warmboot-test-images/nestedhost"

// buildSpace is what a build needs while it runs, in bytes: the installed tree, the packages, and the disk.
const buildSpace = 3 << 30

// The files of an image.
const (
	kernelFile = "vmlinuz"
	initrdFile = "initrd.img"
	rootFile   = "root.img"
)

// BuildConfig is what Build needs to know. Every field may be zero.
type BuildConfig struct {
	Dir      string                    // where images are kept; below /var/tmp by default
	Suite    string                    // Debian suite, "trixie"
	Mirror   string                    // URL of the only package source; empty means Debian's own
	Progress func(step, detail string) // called as the build goes on
}

// Image is what machines are made of. Its files never change.
type Image struct {
	Dir    string
	Cached bool // it was there already
}

func (i Image) path(name string) string { return filepath.Join(i.Dir, name) }

// Build makes the image, or returns the one that an earlier call has left: it is as old as the day it was made, or its recipe. Builds wait for each
// other. On error nothing is left of it. A host without a needed tool, and a mirror that does not answer, are Unavailable errors.
func Build(ctx context.Context, cfg BuildConfig) (Image, error) {
	const op = "build nested host"
	dir := cmp.Or(cfg.Dir, cacheDir)
	r := newRecipe(cmp.Or(cfg.Suite, "trixie"), cfg.Mirror)
	built := Image{Dir: filepath.Join(dir, r.digest())}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Image{}, internal(op, err)
	}
	unlock, err := image.Lock(ctx, filepath.Join(dir, ".lock"))
	if err != nil {
		return Image{}, internal(op, err)
	}
	defer unlock()
	switch _, err := os.Stat(built.Dir); {
	case err == nil:
		built.Cached = true
		return built, nil
	case !errors.Is(err, fs.ErrNotExist):
		return Image{}, internal(op, err)
	}
	if err := ready(op, dir); err != nil {
		return Image{}, err
	}
	report := func(_ float64, step, detail string) {
		if cfg.Progress != nil {
			cfg.Progress(step, detail)
		}
	}
	if err := image.Publish(built.Dir, func(draft string) error { return r.install(ctx, draft, report) }); err != nil {
		return Image{}, internal(op, err)
	}
	return built, nil
}

// ready makes sure that a build can begin, and that nothing of a crashed one is left.
func ready(op, dir string) error {
	if err := image.Ready(dir); err != nil {
		return err
	}
	if _, err := exec.LookPath("busybox"); err != nil {
		return warmboot.Errorf(warmboot.Unavailable, op, "busybox is not installed; run: apt-get install busybox-static")
	}
	if err := image.RemoveDrafts(dir); err != nil {
		return internal(op, err)
	}
	var disk syscall.Statfs_t
	if err := syscall.Statfs(dir, &disk); err != nil {
		return internal(op, err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < buildSpace {
		return warmboot.Errorf(warmboot.Exhausted, op, "%s has %d MiB free, making the machine takes %d MiB; free some space", dir, free>>20, buildSpace>>20)
	}
	return nil
}

// install leaves the files of an image in draft, an empty directory.
func (r recipe) install(ctx context.Context, draft string, report func(float64, string, string)) error {
	const scripts, out, scratch = "scripts", "out", "scratch"
	for _, d := range []string{scripts, out, scratch} {
		if err := os.Mkdir(filepath.Join(draft, d), 0o755); err != nil {
			return err
		}
	}
	script, init := filepath.Join(draft, scripts, "tree.sh"), filepath.Join(draft, scripts, "init.sh")
	for path, text := range map[string]string{script: r.Tree, init: r.Init} {
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			return err
		}
	}
	tree := image.Tree{
		Suite: r.Suite, Mirror: r.Mirror, Packages: r.Packages, Exclude: r.Exclude, Script: script, Env: append(r.env(), "WB_INIT="+init),
		Out: filepath.Join(draft, out), Scratch: filepath.Join(draft, scratch),
	}
	if err := tree.Install(ctx, report); err != nil {
		return err
	}
	for _, name := range []string{kernelFile, initrdFile, rootFile} {
		if err := os.Rename(filepath.Join(draft, out, name), filepath.Join(draft, name)); err != nil {
			return err
		}
	}
	for _, d := range []string{scripts, out, scratch} {
		if err := os.RemoveAll(filepath.Join(draft, d)); err != nil {
			return err
		}
	}
	return nil
}

// internal gives an error its code, unless it has one.
func internal(op string, err error) error {
	var e *warmboot.Error
	if err == nil || errors.As(err, &e) {
		return err
	}
	return &warmboot.Error{Code: warmboot.CodeOf(err), Op: op, Err: err}
}
