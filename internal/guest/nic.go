package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const nicName = "eth0"

// nic sets and reads the machine's one interface by the old ioctls, netdevice(7). Netlink can do the same and much more, but
// a restored machine runs all this for the first time, on an emulated processor whose every new instruction must be
// translated: a netlink library takes ten times as long for it.
type nic struct {
	fd      int         // any IPv4 socket
	missing atomic.Bool // there was no such interface when it was last read
}

func openNIC() (*nic, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	return &nic{fd: fd}, os.NewSyscallError("socket", err)
}

func (n *nic) close() { _ = unix.Close(n.fd) }

// ifreq is struct ifreq: the name and a union.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

func (n *nic) ioctl(call uintptr, set []byte) (ifreq, error) {
	var r ifreq
	copy(r.name[:], nicName)
	copy(r.data[:], set)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(n.fd), call, uintptr(unsafe.Pointer(&r))); errno != 0 {
		return r, errno
	}
	return r, nil
}

// sockaddr is struct sockaddr_in, without a port.
func sockaddr(a netip.Addr) []byte {
	b := make([]byte, unix.SizeofSockaddrInet4)
	binary.NativeEndian.PutUint16(b, unix.AF_INET)
	ip := a.As4()
	copy(b[4:], ip[:])
	return b
}

// set gives the interface its hardware address, its one address and the default route. What is empty stays as it is; with
// an address the link is up afterwards.
func (n *nic) set(mac string, address netip.Prefix, gateway netip.Addr) error {
	if mac != "" {
		if err := n.setMAC(mac); err != nil {
			return fmt.Errorf("set hardware address %s of %s: %w", mac, nicName, err)
		}
	}
	if !address.IsValid() {
		return nil
	}
	// Behind a TAP a clone has the address that it had, and the kernel would take it away and give it back, with all routes.
	if _, is, err := n.read(); err != nil || is != address.String() {
		if _, err := n.ioctl(unix.SIOCSIFADDR, sockaddr(address.Addr())); err != nil {
			return fmt.Errorf("set address %s of %s: %w", address, nicName, err)
		}
		mask := netip.AddrFrom4([4]byte(net.CIDRMask(address.Bits(), 32)))
		if _, err := n.ioctl(unix.SIOCSIFNETMASK, sockaddr(mask)); err != nil {
			return fmt.Errorf("set prefix length of %s: %w", nicName, err)
		}
	}
	if err := n.up(true); err != nil {
		return err
	}
	if !gateway.IsValid() {
		return nil
	}
	return n.setGateway(gateway)
}

// setMAC changes the hardware address. virtio_net can do that while the link is up; other drivers refuse.
func (n *nic) setMAC(mac string) error {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return err
	}
	is, err := n.ioctl(unix.SIOCGIFHWADDR, nil)
	if err != nil || bytes.Equal(is.data[2:2+len(hw)], hw) {
		return err
	}
	want := append(is.data[:2:2], hw...) // of the same hardware type
	_, err = n.ioctl(unix.SIOCSIFHWADDR, want)
	if errors.Is(err, unix.EBUSY) {
		if err := n.up(false); err != nil {
			return err
		}
		if _, err = n.ioctl(unix.SIOCSIFHWADDR, want); err == nil {
			err = n.up(true)
		}
	}
	return err
}

// up brings the link up or down.
func (n *nic) up(up bool) error {
	r, err := n.ioctl(unix.SIOCGIFFLAGS, nil)
	if err != nil {
		return err
	}
	flags := binary.NativeEndian.Uint16(r.data[:])
	want := flags &^ unix.IFF_UP
	if up {
		want = flags | unix.IFF_UP
	}
	if want == flags {
		return nil
	}
	_, err = n.ioctl(unix.SIOCSIFFLAGS, binary.NativeEndian.AppendUint16(nil, want))
	return os.NewSyscallError("SIOCSIFFLAGS", err)
}

// rtentry is struct rtentry on 64-bit Linux.
type rtentry struct {
	_                 uint64
	dst, gateway, net [unix.SizeofSockaddrInet4]byte
	flags             uint16
	_                 [22]byte
	metric            int16
	dev               *byte
	_                 [3]uint64
}

// setGateway makes a the one default route by way of the interface and checks that it is.
func (n *nic) setGateway(a netip.Addr) error {
	was, err := defaultGateway()
	if err != nil || was == a {
		return err
	}
	if was.IsValid() {
		if err := n.route(unix.SIOCDELRT, was); err != nil {
			return fmt.Errorf("remove default route via %s: %w", was, err)
		}
	}
	if err := n.route(unix.SIOCADDRT, a); err != nil {
		return fmt.Errorf("set default route via %s: %w", a, err)
	}
	is, err := defaultGateway()
	if err == nil && is != a {
		err = fmt.Errorf("the default route via %s did not take effect: it goes via %v", a, is)
	}
	return err
}

func (n *nic) route(call uintptr, gateway netip.Addr) error {
	any0 := sockaddr(netip.IPv4Unspecified())
	dev := append([]byte(nicName), 0)
	r := rtentry{
		dst: [16]byte(any0), gateway: [16]byte(sockaddr(gateway)), net: [16]byte(any0),
		flags: unix.RTF_UP | unix.RTF_GATEWAY, dev: &dev[0],
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(n.fd), call, uintptr(unsafe.Pointer(&r)))
	runtime.KeepAlive(dev)
	if errno != 0 {
		return errno
	}
	return nil
}

// defaultGateway reads the gateway of the interface's default route; the zero Addr if it has none.
func defaultGateway() (netip.Addr, error) {
	table, err := readFile("/proc/thread-self/net/route")
	if err != nil {
		return netip.Addr{}, err
	}
	for line := range bytes.Lines(table) {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask ..., addresses as hexadecimal numbers in host order.
		f := bytes.Fields(line)
		if len(f) < 8 || string(f[0]) != nicName || string(f[1]) != "00000000" || string(f[7]) != "00000000" {
			continue
		}
		raw, err := strconv.ParseUint(string(f[2]), 16, 32)
		return netip.AddrFrom4([4]byte(binary.NativeEndian.AppendUint32(nil, uint32(raw)))), err
	}
	return netip.Addr{}, nil
}

// read reads the hardware address and the address of the interface; they are empty where there is none.
func (n *nic) read() (mac, address string, err error) {
	// The kernel starts modprobe, twice, whenever it is asked for an interface that it does not know.
	if n.missing.Load() && !exists("/sys/class/net/"+nicName) {
		return "", "", nil
	}
	hw, err := n.ioctl(unix.SIOCGIFHWADDR, nil)
	if n.missing.Store(errors.Is(err, unix.ENODEV)); n.missing.Load() {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	mac = net.HardwareAddr(hw.data[2:8]).String()
	a, err := n.ioctl(unix.SIOCGIFADDR, nil)
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return mac, "", nil
	}
	if err != nil {
		return "", "", err
	}
	mask, err := n.ioctl(unix.SIOCGIFNETMASK, nil)
	if err != nil {
		return "", "", err
	}
	bits, _ := net.IPMask(mask.data[4:8]).Size()
	return mac, netip.PrefixFrom(netip.AddrFrom4([4]byte(a.data[4:8])), bits).String(), nil
}
