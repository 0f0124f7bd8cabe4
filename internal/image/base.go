package image

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"warmboot"
	"warmboot/internal/durable"
	"warmboot/internal/kernel"
)

// The files of a base.
const (
	baseKernel   = "vmlinux"
	baseModules  = "modules" // directory of *.ko and warmboot.list
	baseRootfs   = "rootfs.ext4"
	basePackages = "packages.txt" // names and versions
)

// baseSpace is what making a base needs below Dir while it runs, in bytes: the installed tree, the packages, and the disk.
const baseSpace = 1500 << 20

// keyring is given by name because a host that is not Debian has no keys that mmdebstrap would find by itself.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// makeBase installs the recipe's packages and leaves the files of a base in dir, an empty directory.
func makeBase(ctx context.Context, r recipe, dir string, report func(fraction float64, step, detail string)) error {
	if err := needSpace(dir, baseSpace); err != nil {
		return err
	}
	out, scratch := filepath.Join(dir, "out"), filepath.Join(dir, "scratch")
	for _, d := range []string{out, scratch} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return ioError(err)
		}
	}
	script := filepath.Join(dir, "tree.sh")
	if err := os.WriteFile(script, []byte(r.Script), 0o755); err != nil {
		return ioError(err)
	}
	tree := Tree{
		Suite: r.Suite, Mirror: r.Mirror, Packages: r.Packages, Exclude: r.Exclude, Script: script, Out: out, Scratch: scratch,
		Env: []string{
			"WB_KERNEL=" + r.Kernel,
			"WB_MODULES=" + strings.Join(r.Modules, "|"),
			"WB_BOOT_MODULES=" + strings.Join(r.BootModules, " "),
			"WB_REMOVE=" + strings.Join(r.Remove, " "),
			"WB_UUID=" + uuidOf(r.digest()),
		},
	}
	if err := tree.Install(ctx, report); err != nil {
		return err
	}

	report(0.97, "unpacking the kernel", "")
	if err := kernel.Extract(ctx, filepath.Join(out, "vmlinuz"), filepath.Join(dir, baseKernel)); errors.Is(err, kernel.ErrUnusable) {
		return warmboot.Errorf(warmboot.Corrupt, op, "%w; remove the base directory and build again, perhaps from another suite or mirror", err)
	} else if err != nil {
		return ioError(err)
	}
	for _, name := range []string{baseModules, baseRootfs, basePackages} {
		if err := os.Rename(filepath.Join(out, name), filepath.Join(dir, name)); err != nil {
			return ioError(err)
		}
	}
	for _, p := range []string{out, scratch, script} {
		if err := os.RemoveAll(p); err != nil {
			return ioError(err)
		}
	}
	return nil
}

// Tree is a tree of installed Debian packages, and what is made out of it while it is there.
type Tree struct {
	Suite, Mirror string
	Packages      []string
	Exclude       []string // paths that dpkg does not unpack
	// Script is a program that gets the tree's path as its argument, within the installation's namespaces: here, and nowhere else,
	// the files have their owners, and mounts go away by themselves. It runs with Env in the directory Out, which is where it
	// leaves what it makes.
	Script string
	Env    []string
	Out    string
	// Scratch is an empty directory for the tree, which is gone afterwards.
	Scratch string
}

// Install runs mmdebstrap. When it returns, no process of it and no mount is left. Its errors are as Build's.
func (t Tree) Install(ctx context.Context, report func(fraction float64, step, detail string)) error {
	// In namespaces of its own, killing it ends everything that it started and undoes every mount. Without root, one of
	// them makes it root over the user's subordinate ids.
	args := []string{"--mount", "--pid", "--fork", "--kill-child"}
	if os.Geteuid() != 0 {
		args = append(args, "--map-root-user", "--map-auto")
	}
	args = append(args,
		"mmdebstrap", "--mode=root",
		"--variant=minbase", "--format=null", "--skip=cleanup", "--verbose", "--keyring="+keyring,
		`--aptopt=Apt::Install-Recommends "false"`, `--aptopt=Acquire::Languages "none"`, `--aptopt=Acquire::Retries "3"`,
		"--dpkgopt=force-unsafe-io", // the tree never outlives this call, so it need not reach the disk
		"--include="+strings.Join(t.Packages, ","),
		"--customize-hook='"+t.Script+`' "$1"`,
	)
	for _, e := range t.Exclude {
		args = append(args, "--dpkgopt=path-exclude="+e)
	}
	args = append(args, t.Suite, "-")
	if t.Mirror != "" {
		args = append(args, t.Mirror)
	}

	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Dir = t.Out
	cmd.Env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "HOME=/nonexistent", "DEBIAN_FRONTEND=noninteractive",
		"TMPDIR=" + t.Scratch, "SOURCE_DATE_EPOCH=" + sourceDate, "E2FSPROGS_FAKE_TIME=" + sourceDate, "WB_OUT=" + t.Out,
	}, t.Env...)
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(name); ok {
			cmd.Env = append(cmd.Env, name+"="+v)
		}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	lines, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	watcher := newWatcher(report)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for scan := bufio.NewReader(lines); ; {
			line, err := scan.ReadString('\n')
			watcher.line(strings.TrimRight(line, "\r\n"))
			if err != nil {
				return
			}
		}
	}()

	// The kernel sends Pdeathsig when the thread that started the process ends.
	runtime.LockOSThread()
	err := cmd.Run()
	runtime.UnlockOSThread()
	_ = writer.Close() // cannot fail
	<-read
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return watcher.failure(err)
	}
	return nil
}

// needSpace reports an Exhausted error if the file system of dir has less room than bytes.
func needSpace(dir string, bytes uint64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return ioError(&os.PathError{Op: "statfs", Path: dir, Err: err})
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < bytes {
		return warmboot.Errorf(warmboot.Exhausted, op, "%s has %d MiB free, making a runtime image takes %d MiB; free some space or choose another storage root", dir, free>>20, bytes>>20)
	}
	return nil
}

// ioError gives an error of the file system its code.
func ioError(err error) error {
	if err == nil {
		return nil
	}
	if durable.Full(err) {
		return warmboot.Errorf(warmboot.Exhausted, op, "the disk is full: %w; free some space or choose another storage root", err)
	}
	var e *warmboot.Error
	if errors.As(err, &e) {
		return err
	}
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}
