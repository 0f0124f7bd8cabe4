package guest

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// readFile reads a small file as writeFile writes one: os.ReadFile also asks the poller about it, to no avail.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	text := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if n == 0 {
			return text, nil
		}
		if text = text[:len(text)+n]; len(text) == cap(text) {
			text = slices.Grow(text, cap(text))
		}
	}
}

// writeFile makes text the content of the file at path, mode 0644 if it is new. It overwrites in place and cuts off what is
// left, which costs the file system less than starting from nothing, and uses the bare system calls: a clone does this
// while its user waits.
func writeFile(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
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
