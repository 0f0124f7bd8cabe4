package process

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Pair is a pipe both ways for a process's console: one end for us, one to inherit.
func Pair() (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	f := os.NewFile(uintptr(fds[0]), "console")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "console")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}
