// Package netns works in other network namespaces, and with the TAP devices in them.
//
// A namespace here has no name and no mount. It lives as long as somebody holds it open or runs in it, and takes everything in it along
// when it goes: whatever kills us, nothing is left behind.
package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// current is the namespace of the thread that opens it.
const current = "/proc/thread-self/ns/net"

// New makes a namespace. It lives at least until the file is closed.
func New() (ns *os.File, err error) {
	err = within(func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)) }, func() error {
		ns, err = os.Open(current)
		return err
	})
	return ns, err
}

// OfProcess opens the namespace that a process is in.
func OfProcess(pid int) (*os.File, error) { return os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)) }

// Path is where this process, and those that it starts as root, find an open namespace as long as we have it open.
func Path(ns *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.Fd()) }

// Do runs f in the namespace at path; "" is where we are. Sockets and processes that f makes stay there; goroutines that it starts run
// elsewhere.
func Do(path string, f func() error) error {
	if path == "" {
		return f()
	}
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return In(ns, f)
}

// In is Do for a namespace that is open.
func In(ns *os.File, f func() error) error {
	return within(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return nil
	}, f)
}

// within runs f on a thread of its own between enter, which changes the thread's namespace, and the way back.
func within(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ours, err := os.Open(current)
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer ours.Close()
		if err = enter(); err == nil {
			err = f()
		}
		// If there is no way back, the thread ends with this goroutine, and nobody else ever runs in the namespace.
		if back := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Is reports whether two open files are the same namespace.
func Is(a, b *os.File) (bool, error) {
	ia, errA := a.Stat()
	ib, errB := b.Stat()
	if err := errors.Join(errA, errB); err != nil {
		return false, err
	}
	return os.SameFile(ia, ib), nil
}
