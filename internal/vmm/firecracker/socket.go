package firecracker

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"warmboot/internal/vmm"
)

// dial connects to a socket that the machine's process has made in its root.
func (m *machine) dial(ctx context.Context, name string) (*net.UnixConn, error) {
	root, err := m.openRoot()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return dial(ctx, root, name, m.kept.Spec.Owner)
}

func dial(ctx context.Context, root *os.File, name string, owner vmm.Owner) (*net.UnixConn, error) {
	f, err := look(root, name, unix.S_IFSOCK, owner)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// The path is short enough for a socket address, whatever root is.
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", fdPath(f))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// watcher tells when something new appears in a directory.
type watcher struct{ file *os.File }

func watch(dir *os.File) (*watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w := &watcher{os.NewFile(uintptr(fd), "inotify")}
	if _, err := unix.InotifyAddWatch(fd, fdPath(dir), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		w.close()
		return nil, &os.PathError{Op: "watch", Path: dir.Name(), Err: err}
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
func (w *watcher) close() {
	if w != nil {
		go w.file.Close()
	}
}

// listenPause is how long a socket may be there without being listened to: its maker does one right after the other.
const listenPause = time.Millisecond

// awaitSocket connects to a socket as soon as the process has made it. w must have been made before the process was started. It gives up
// when ctx ends.
func awaitSocket(ctx context.Context, w *watcher, root *os.File, name string, owner vmm.Owner) (*net.UnixConn, error) {
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
