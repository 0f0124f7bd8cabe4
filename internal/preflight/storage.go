package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// existing is the storage root, or the nearest directory above it that is there already.
func existing(root string) (string, error) {
	dir, err := filepath.Abs(root)
	if err != nil {
		return "", err
	}
	for {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return "", fmt.Errorf("%s is not a directory", dir)
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return dir, err
		}
		dir = filepath.Dir(dir)
	}
}

const otherRoot = "set MANAGER_STORAGE_ROOT, or --storage-root, to a directory on a larger disk"

func checkDisk(_ context.Context, c Config) Check {
	dir, err := existing(c.StorageRoot)
	if err != nil {
		return Check{"disk", Fail, err.Error(), otherRoot}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Check{"disk", Fail, fmt.Sprintf("%s: %v", dir, err), otherRoot}
	}
	return amount("disk", "free for "+c.StorageRoot, st.Bavail*uint64(st.Bsize), wantDisk, otherRoot)
}

// checkTraversal sees that the unprivileged users that VMMs run as can pass through to the storage root.
func checkTraversal(_ context.Context, c Config) Check {
	const name = "storage root"
	dir, err := existing(c.StorageRoot)
	if err != nil {
		return Check{name, Fail, err.Error(), otherRoot}
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return Check{name, Fail, fmt.Sprintf("%s cannot be written (%v)", dir, err), "run as root, or set MANAGER_STORAGE_ROOT, or --storage-root, to a directory of yours"}
	}
	if os.Geteuid() != 0 {
		return Check{name, OK, dir + " can be written", ""}
	}
	for d := dir; d != "/"; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil {
			return Check{name, Fail, err.Error(), otherRoot}
		}
		if info.Mode()&0o001 == 0 {
			return Check{name, Fail, fmt.Sprintf("%s does not let other users pass (mode %04o), so an unprivileged VMM could not reach its files", d, info.Mode().Perm()),
				"chmod o+x " + d + ", or choose another MANAGER_STORAGE_ROOT"}
		}
	}
	return Check{name, OK, dir + " can be written, and VMMs can reach it", ""}
}

// checkReflink tries a copy that shares its blocks with the original, on files that it removes again.
func checkReflink(_ context.Context, c Config) Check {
	const name = "reflink"
	dir, err := existing(c.StorageRoot)
	if err != nil {
		return Check{name, Warn, err.Error(), "see that it can be written; or " + otherRoot}
	}
	switch err := tryReflink(dir); {
	case err == nil:
		return Check{name, OK, "the file system copies whole files at once", ""}
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL):
		return Check{name, OK, "not on this file system (XFS and btrfs have it); data disks are cloned as qcow2 overlays instead, and copied without their holes for Firecracker", ""}
	default:
		return Check{name, Warn, fmt.Sprintf("could not be tried: %v", err), "see that it can be written; or " + otherRoot}
	}
}

func tryReflink(dir string) (err error) {
	tmp, err := os.MkdirTemp(dir, ".warmboot-doctor-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	src, err := os.Create(filepath.Join(tmp, "a"))
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := src.Write(make([]byte, 4096)); err != nil {
		return err
	}
	dst, err := os.Create(filepath.Join(tmp, "b"))
	if err != nil {
		return err
	}
	defer dst.Close()
	return unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
}
