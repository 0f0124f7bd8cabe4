package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// device is where the kernel offers TAP devices: https://docs.kernel.org/networking/tuntap.html
const device = "/dev/net/tun"

// flags are how VMMs use a TAP: whole frames, each behind a virtio_net_hdr, so that checksums and segmentation can be left to the other
// end.
const flags = unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR

// ErrBusy says that somebody has a TAP open already.
var ErrBusy = errors.New("the TAP is in use")

// MakeTAP makes a TAP in the namespace it is called in. It stays until it is deleted or its namespace goes; uid may open it too.
func MakeTAP(name string, uid uint32) error {
	// No process starts meanwhile: it would have a copy of the file from its fork to its exec, and keep the TAP busy for as long.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	f, err := attach(name)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, set := range []struct {
		what  string
		call  uint
		value int
	}{{"owner", unix.TUNSETOWNER, int(uid)}, {"persistence", unix.TUNSETPERSIST, 1}} {
		if err := unix.IoctlSetInt(int(f.Fd()), set.call, set.value); err != nil {
			return fmt.Errorf("set %s of TAP %s: %w", set.what, name, err)
		}
	}
	return nil
}

// copies is how long a process that is being started may take from its fork to its exec, and how often OpenTAP looks whether it is there. Until
// then it has a copy of every file of ours, and nothing tells when that has gone.
const copies, look = 200 * time.Millisecond, 2 * time.Millisecond

// OpenTAP opens a TAP that is there, in the namespace at path. One that somebody else has open is ErrBusy.
func OpenTAP(path, name string) (f *os.File, err error) {
	err = Do(path, func() error {
		if _, err := net.InterfaceByName(name); err != nil { // else the kernel would make one
			return fmt.Errorf("TAP %s: %w (%w)", name, fs.ErrNotExist, err)
		}
		f, err = attach(name)
		for end := time.Now().Add(copies); errors.Is(err, ErrBusy) && time.Now().Before(end); f, err = attach(name) {
			time.Sleep(look)
		}
		if err != nil {
			return err
		}
		if err = activate(name); err != nil {
			f.Close()
		}
		return err
	})
	return f, err
}

// Activate makes an interface in the namespace at path that has just got its link, such as a TAP that somebody has opened, carry packets from
// now on. The kernel gets to that by itself, but takes up to a second where many interfaces change, and drops what comes before.
func Activate(path, name string) error { return Do(path, func() error { return activate(name) }) }

// activate asks whether the link is up, upon which the kernel handles at once what it has put off (ethtool_op_get_link calls
// linkwatch_sync_dev).
func activate(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer func() { _ = unix.Close(fd) }()
	value := struct{ command, data uint32 }{command: unix.ETHTOOL_GLINK} // struct ethtool_value
	request := struct {                                                  // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("activate interface %s: %w", name, errno)
	}
	return nil
}

func attach(name string) (*os.File, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return nil, fmt.Errorf("TAP %s: %w", name, err)
	}
	request.SetUint16(flags)
	// Not through the runtime's poller: whoever inherits the file expects it as the kernel makes it.
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: device, Err: err}
	}
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("open TAP %s: %w", name, ErrBusy)
		}
		return nil, fmt.Errorf("open TAP %s: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
