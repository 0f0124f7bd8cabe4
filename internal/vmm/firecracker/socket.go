package firecracker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"warmboot/internal/vmm"
)

// dial connects to a socket that a machine's process has made in its root. The process owns the root and may be the guest's by now, so
// whatever is there is taken for the socket only if it is one, of the process's own making: a link could lead us, who may be root,
// anywhere.
func dial(ctx context.Context, root, name string, owner vmm.Owner) (*net.UnixConn, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(root, name), Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK || owner.Confined() && st.Uid != owner.UID {
		return nil, fmt.Errorf("%s is no socket of the VMM's", filepath.Join(root, name))
	}
	// The descriptor leads to the very socket that was looked at. The path is short enough for a socket address, whatever root is.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// watcher tells when something new appears in a directory.
type watcher struct{ file *os.File }

func watch(dir string) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := &watcher{os.NewFile(uintptr(fd), "inotify")}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		w.close()
		return nil, &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	return w, nil
}

// next waits until something has appeared since the last call, at most until limit; the end of ctx must wake the reader.
func (w *watcher) next(ctx context.Context, limit time.Time) error {
	if err := w.file.SetReadDeadline(limit); err != nil {
		return err
	}
	if ctx.Err() != nil { // and the deadline that woke the reader has just been overwritten
		return os.ErrDeadlineExceeded
	}
	_, err := w.file.Read(make([]byte, 4096))
	return err
}

// close ends the watching. Not in line: the kernel takes tens of milliseconds for it, in which it waits for whoever may still look at the
// watch.
func (w *watcher) close() { go w.file.Close() }

// listenPause is how long a socket may be there without being listened to: its maker does one right after the other.
const listenPause = time.Millisecond

// awaitSocket connects to a socket as soon as the process has made it. w must have been made before the process was started. It gives up
// when ctx ends.
func awaitSocket(ctx context.Context, w *watcher, root, name string, owner vmm.Owner) (*net.UnixConn, error) {
	stop := context.AfterFunc(ctx, func() { _ = w.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		conn, err := dial(ctx, root, name, owner)
		var limit time.Time // none
		switch {
		case err == nil:
			return conn, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, unix.ECONNREFUSED):
			limit = time.Now().Add(listenPause)
		case !errors.Is(err, unix.ENOENT):
			return nil, err
		}
		if err := w.next(ctx, limit); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
}
