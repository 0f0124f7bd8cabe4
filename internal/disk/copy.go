package disk

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// errNoReflink says that the file system cannot share extents between these two files.
var errNoReflink = errors.New("the file system has no reflinks")

// reflink makes dst share all of src's data, copied when either is written.
func reflink(dst, src *os.File) error {
	err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV),
		errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EPERM):
		return errNoReflink
	}
	return err
}

// sparseCopy makes dst a copy of src that has holes where src has, by reflink if possible.
func sparseCopy(dst, src *os.File) error {
	if err := reflink(dst, src); !errors.Is(err, errNoReflink) {
		return err
	}
	info, err := src.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if err := dst.Truncate(size); err != nil {
		return err
	}
	for end := int64(0); ; {
		start, err := unix.Seek(int(src.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		if end, err = unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := dst.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := src.Seek(start, io.SeekStart); err != nil {
			return err
		}
		// io.CopyN from file to file is copy_file_range, in the kernel.
		if _, err := io.CopyN(dst, src, end-start); err != nil {
			return err
		}
	}
}
