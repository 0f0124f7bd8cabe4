package firecracker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"warmboot"
	"warmboot/internal/kernel"
	"warmboot/internal/vmm"
)

// elfKernel is a machine's kernel as an ELF file: the file itself, or what is packed in it. A kernel is unpacked once, as long as its file does
// not change.
func (d *Driver) elfKernel(ctx context.Context, op string, spec vmm.Spec) (string, error) {
	packed, err := isPacked(spec.Kernel)
	if err != nil {
		return "", vmm.FileError(op, err)
	}
	if !packed {
		return spec.Kernel, nil // if it is no kernel either, Firecracker says so
	}
	if d.StateDir == "" {
		return "", warmboot.Errorf(warmboot.Invalid, op, "%s is packed, and there is no place for an unpacked one; give the driver a StateDir", spec.Kernel)
	}
	d.unpacking.Lock() // for a second at most
	defer d.unpacking.Unlock()
	info, err := os.Stat(spec.Kernel)
	if err != nil {
		return "", vmm.FileError(op, err)
	}
	// The VMM's user must be able to reach it.
	dir := filepath.Join(d.StateDir, "kernels")
	if err := errors.Join(os.MkdirAll(dir, 0o711), os.Chmod(d.StateDir, 0o711)); err != nil {
		return "", vmm.FileError(op, err)
	}
	st := info.Sys().(*syscall.Stat_t)
	path := filepath.Join(dir, fmt.Sprintf("%x-%x-%x-%x", st.Dev, st.Ino, info.Size(), info.ModTime().UnixNano()))
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return path, unpack(ctx, op, spec.Kernel, path)
}

// isPacked reports whether a file is a bzImage.
func isPacked(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, packed := kernel.ParseBzImage(f)
	return packed, nil
}

// unpack writes the kernel in a bzImage to a file that is there whole or not at all.
func unpack(ctx context.Context, op, from, to string) error {
	draft := to + ".new"
	if err := ignoreMissing(os.Remove(draft)); err != nil { // of a crash
		return vmm.FileError(op, err)
	}
	err := kernel.Extract(ctx, from, draft)
	if err == nil {
		err = os.Rename(draft, to)
	}
	if err == nil {
		return nil
	}
	err = errors.Join(err, ignoreMissing(os.Remove(draft)))
	switch {
	case ctx.Err() != nil:
		return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%w", err)
	case errors.Is(err, kernel.ErrUnusable):
		return warmboot.Errorf(warmboot.Invalid, op, "%s cannot be started: %w; register an image with another kernel", from, err)
	}
	return vmm.FileError(op, err)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
