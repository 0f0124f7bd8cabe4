package guest

import (
	"context"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// waitFor returns once there is true. It is asked at first and whenever something appears in dir, which must exist.
func waitFor(ctx context.Context, dir string, there func() bool) error {
	if there() {
		return nil
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ATTRIB); err != nil {
		return &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	events := make([]byte, 4096)
	for !there() {
		if _, err := f.Read(events); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return err
		}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
