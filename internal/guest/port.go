package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PortName is the name of the virtio-serial port that the host talks through.
const PortName = "org.warmboot.agent.0"

// breakOffPatience is how long a host may take to read what ends its conversation.
const breakOffPatience = time.Second

// findPort returns the device, below dev, of the virtio-serial port called name, or "". nameless says that there is a port whose
// name is not known yet: the host tells it after the port itself.
func findPort(sys, dev, name string) (device string, nameless bool) {
	ports, _ := filepath.Glob(filepath.Join(sys, "class/virtio-ports/*"))
	for _, p := range ports {
		text, err := os.ReadFile(filepath.Join(p, "name"))
		if err == nil && strings.TrimSpace(string(text)) == name {
			return filepath.Join(dev, filepath.Base(p)), false
		}
		nameless = nameless || err != nil
	}
	return "", nameless
}

// port is the guest's end of a virtio-serial port. It stays open for good; each conversation with a host has a portConn.
//
// Nothing in a stream of bytes tells where one host ends and the next begins, but the driver does: while no host is connected
// a read gives end of file, and a host's coming and going wakes whoever polls. So a restored machine, whose host is a new
// one, notices it as fast as the interrupt arrives.
type port struct {
	file *os.File
	raw  syscall.RawConn
	tail []byte // the last piece that the previous conversation read
}

func openPort(path string) (*port, error) {
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &port{file: file, raw: raw}, nil
}

// waitPort returns the device of the port called PortName as soon as the machine has one; its driver may still be starting.
func waitPort(ctx context.Context, sys, dev string) (device string, err error) {
	const retry = 20 * time.Millisecond
	for {
		var nameless bool
		if err := waitFor(ctx, dev, func() bool {
			device, nameless = findPort(sys, dev, PortName)
			return nameless || device != "" && exists(device)
		}); err != nil || device != "" {
			return device, err
		}
		select { // nothing appears in dev when a port gets its name
		case <-time.After(retry):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

// breakOff ends the conversation that a host may believe to have with an agent that has died; answer is what that began with. No host
// may be there: then nothing can be written, and nobody waits.
func (p *port) breakOff(answer []byte) error {
	if err := p.file.SetWriteDeadline(time.Now().Add(breakOffPatience)); err != nil {
		return err
	}
	_, err := p.file.Write(answer)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// converse begins the next conversation; there is one at a time.
func (p *port) converse() *portConn {
	_ = p.file.SetDeadline(time.Time{})
	c := &portConn{port: p, left: p.tail}
	p.tail = nil
	return c
}

// portConn is the port for the length of one conversation.
type portConn struct {
	*port
	left  []byte // of the previous conversation: a host that came back at once may have begun this one in it
	heard bool   // something has been read
}

// Read waits for a host as long as nothing has been heard; after that, end of file means that the host has gone.
func (c *portConn) Read(b []byte) (int, error) {
	if len(c.left) > 0 {
		n := copy(b, c.left)
		c.left = c.left[n:]
		return n, nil
	}
	var n int
	var err error
	if c.heard {
		n, err = c.file.Read(b)
	} else {
		n, err = c.first(b)
	}
	if n > 0 {
		c.heard = true
		c.tail = append(c.tail[:0], b[:n]...)
	}
	return n, err
}

func (c *portConn) first(b []byte) (n int, err error) {
	waitErr := c.raw.Read(func(fd uintptr) bool {
		for {
			n, err = unix.Read(int(fd), b)
			if err != unix.EINTR {
				break
			}
		}
		return n > 0 || err != nil && err != unix.EAGAIN
	})
	return max(n, 0), errors.Join(waitErr, err)
}

func (c *portConn) Write(b []byte) (int, error) { return c.file.Write(b) }

// Close wakes whoever uses the conversation. The port stays open.
func (c *portConn) Close() error { return c.file.SetDeadline(time.Unix(1, 0)) }

var _ io.ReadWriteCloser = (*portConn)(nil)
