package guest

import (
	"os"

	"golang.org/x/sys/unix"
)

// writeFile makes text the content of the file at path, mode 0644 if it is new. It overwrites in place and cuts off what is
// left, which costs the file system less than starting from nothing, and uses the bare system calls: a clone does this
// while its user waits.
func writeFile(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if n, err := unix.Pwrite(fd, []byte(text), 0); err != nil || n != len(text) {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Size != int64(len(text)) {
		if err := unix.Ftruncate(fd, int64(len(text))); err != nil {
			return &os.PathError{Op: "truncate", Path: path, Err: err}
		}
	}
	return nil
}
