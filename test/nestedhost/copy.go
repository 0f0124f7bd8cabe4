package nestedhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// CopyIn copies a file or a directory into the machine, where it is named remote; sizes of hundreds of megabytes are fine.
func (m *Machine) CopyIn(ctx context.Context, local, remote string) (err error) {
	const op = "copy into nested host"
	name := m.copyName()
	staged := m.path(filepath.Join(inShare, name))
	defer func() { err = errors.Join(err, os.RemoveAll(staged)) }()
	if err := link(staged, local); err != nil {
		return internal(op, err)
	}
	return m.copyTree(ctx, path.Join("/host", inShare, name), remote)
}

// CopyOut copies a file or a directory out of the machine; local must not exist.
func (m *Machine) CopyOut(ctx context.Context, remote, local string) (err error) {
	const op = "copy out of nested host"
	name := m.copyName()
	staged := m.path(filepath.Join(outShare, name))
	defer func() { err = errors.Join(err, os.RemoveAll(staged)) }()
	if err := m.copyTree(ctx, remote, path.Join("/host", outShare, name)); err != nil {
		return err
	}
	if _, err := m.Run(ctx, "sync", "-f", "/host/"+outShare); err != nil { // the machine writes it when it likes
		return err
	}
	return internal(op, link(local, staged))
}

// copyName is a name that neither machine has seen before: names that were looked up are remembered in the machine.
func (m *Machine) copyName() string { return fmt.Sprint("copy-", m.copies.Add(1)) }

// copyTree copies within the machine.
func (m *Machine) copyTree(ctx context.Context, from, to string) error {
	if _, err := m.Run(ctx, "mkdir", "-p", path.Dir(to)); err != nil {
		return err
	}
	_, err := m.Run(ctx, "cp", "-a", "--sparse=always", "-T", from, to)
	return err
}

// link makes a copy of a tree whose files are the same files where the file system allows it.
func link(to, from string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		switch {
		case d.IsDir():
			return os.Mkdir(target, info.Mode().Perm())
		case d.Type()&fs.ModeSymlink != 0:
			text, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(text, target)
		case os.Link(p, target) == nil:
			return nil
		}
		return copyFile(target, p)
	})
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
