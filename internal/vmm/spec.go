package vmm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"

	"warmboot"
)

// What follows is what drivers that run a VMM's process on this host have in common in how they take a Spec.

// validID is what Spec.ID promises.
var validID = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// Check rejects a machine that no VMM could run, and one whose files are not there. maxVCPUs is the VMM's limit.
func (s Spec) Check(op string, maxVCPUs int) error {
	invalid := func(format string, args ...any) error {
		return warmboot.Errorf(warmboot.Invalid, op, format, args...)
	}
	if !validID.MatchString(s.ID) {
		return invalid("machine id %.80q is not 1 to 64 of a-z, 0-9 and '-'", s.ID)
	}
	if s.VCPUs < 1 || s.VCPUs > maxVCPUs || s.MemoryMiB < 16 {
		return invalid("a machine with %d CPUs and %d MiB is not possible; it takes 1 to %d CPUs and at least 16 MiB", s.VCPUs, s.MemoryMiB, maxVCPUs)
	}
	for _, path := range []string{s.Dir, s.Kernel, s.Initrd, s.RootDisk.Path, s.DataDisk.Path, s.MemoryFile} {
		if path == "" {
			continue
		}
		if !filepath.IsAbs(path) {
			return invalid("%q is not an absolute path", path)
		}
		if path == s.MemoryFile {
			continue // it is to be made
		}
		if _, err := os.Stat(path); err != nil {
			return FileError(op, err)
		}
	}
	if s.Dir == "" {
		return invalid("a machine needs a directory")
	}
	return nil
}

// MakeMemoryFile creates Spec.MemoryFile, all holes, for the machine's owner. One that is there already is a Conflict.
func (s Spec) MakeMemoryFile() error {
	const op = "create memory file"
	f, err := os.OpenFile(s.MemoryFile, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return FileError(op, err)
	}
	defer f.Close()
	err = f.Truncate(int64(s.MemoryMiB) << 20)
	if err == nil && s.Owner.Confined() {
		err = f.Chown(int(s.Owner.UID), int(s.Owner.GID))
	}
	if err != nil {
		return FileError(op, errors.Join(err, os.Remove(s.MemoryFile)))
	}
	return nil
}

// CheckFiles rejects a snapshot whose files are not there, or whose memory is not as large as its machine's.
func (s Snapshot) CheckFiles(op string) error {
	info, err := os.Stat(s.MemoryFile)
	if err != nil {
		return FileError(op, err)
	}
	if want := int64(s.MemoryMiB) << 20; info.Size() != want {
		return warmboot.Errorf(warmboot.Corrupt, op, "%s has %d bytes, but the machine had %d bytes of memory; rebuild the snapshot", s.MemoryFile, info.Size(), want)
	}
	if _, err := os.Stat(s.StateFile); err != nil {
		return FileError(op, err)
	}
	return nil
}

// Confined reports whether a machine's process changes to its owner.
func (o Owner) Confined() bool { return o != (Owner{}) && os.Geteuid() == 0 }

// UnreachableError is the error of a machine whose VMM did not answer.
func UnreachableError(ctx context.Context, op, id string, err error) error {
	if ctx.Err() != nil {
		return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "machine %s did not answer in time: %w", id, ctx.Err())
	}
	return warmboot.Errorf(warmboot.Unavailable, op, "machine %s does not answer, so it has ended or is about to: %w", id, err)
}

// FileError gives what the operating system said about a file its code.
func FileError(op string, err error) error {
	code := warmboot.Internal
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = warmboot.NotFound
	case errors.Is(err, fs.ErrExist):
		code = warmboot.Conflict
	}
	return &warmboot.Error{Code: code, Op: op, Err: fmt.Errorf("%w", err)}
}
