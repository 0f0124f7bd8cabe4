package firecracker

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"warmboot/internal/vmm"
)

// look takes hold of what the process has made in its root. The process owns the root and may be the guest's by now, so whatever is there
// is taken for what we look for only if it is of that type and of the process's own making: a link could lead us, who may be root, anywhere. The file
// that is returned is not open, but leads by fdPath to the very thing that was looked at.
func look(root *os.File, name string, kind uint32, owner vmm.Owner) (*os.File, error) {
	path := filepath.Join(root.Name(), name)
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, err
	}
	if st.Mode&unix.S_IFMT != kind || owner.Confined() && st.Uid != owner.UID || kind == unix.S_IFREG && st.Nlink != 1 {
		f.Close()
		return nil, fmt.Errorf("%s is not what the VMM makes there", path)
	}
	return f, nil
}

// fdPath is where this process finds what it has taken hold of.
func fdPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// stateLimit is far more than a machine's state has: with Firecracker 1.16.1 it was 14 kB with one CPU, and 48 kB with four.
const stateLimit = 8 << 20

// fetchState moves the state that the process has written in its root to a file of ours. Only what is in it can still be the VMM's doing.
func (m *machine) fetchState(root *os.File, path string) error {
	found, err := look(root, stateName, unix.S_IFREG, m.kept.Spec.Owner)
	if err != nil {
		return err
	}
	defer found.Close()
	from, err := os.Open(fdPath(found))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	n, err := io.Copy(to, io.LimitReader(from, stateLimit+1))
	if err == nil && n > stateLimit {
		err = fmt.Errorf("%s has more than %d bytes, so it is no machine's state", from.Name(), stateLimit)
	}
	if owner := m.kept.Spec.Owner; err == nil && owner.Confined() {
		err = to.Chown(int(owner.UID), int(owner.GID)) // as the memory file's
	}
	if err == nil {
		err = to.Sync()
	}
	if err = errors.Join(err, to.Close()); err == nil {
		err = unix.Unlinkat(int(root.Fd()), stateName, 0)
	}
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}
