// Package durable writes small files so that a power cut leaves the old one or the new one, and tells when a disk is full.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"warmboot/internal/rollback"
)

// Replace makes path a file with this content and mode, whatever the umask is. Readers see the old file or the new one, never half of it, and when Replace returns the new
// one is on the disk under its name. On error the old one is as it was.
func Replace(path string, content []byte, mode fs.FileMode) (err error) {
	var undo rollback.Stack
	defer undo.Unwind()
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*") // with mode 0600
	if err != nil {
		return err
	}
	undo.Push("remove half a file", func() error { return os.Remove(f.Name()) })
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	undo.Move()
	return Flush(dir)
}

// Flush writes a file to its disk, or the names in a directory.
func Flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Full reports whether an error says that a disk, or somebody's share of it, is full.
func Full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
