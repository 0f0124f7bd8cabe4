package hostnet

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	vishns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/netns"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// The interfaces in a slot.
const (
	tapName = "tap0" // the VMM's; a snapshot of Firecracker's has it in it
	upName  = "up0"  // the slot's end of the veth pair to the host
)

// guestNetwork is what a guest sees of its slot, in every slot the same: the gateway has address 2, the name server 3, the guest 15. No
// pool has addresses in it.
var guestNetwork = vmm.Network{TAP: tapName, MAC: "02:77:62:00:00:15", Subnet: netip.MustParsePrefix("100.127.255.0/24")}

// Hardware addresses that are given, and the same in every slot, so that no udev thinks up others in the midst of things. Both veth
// ends, and the TAP with its guest, are alone with each other.
var (
	hostMAC    = net.HardwareAddr{0x02, 0x77, 0x62, 0, 0, 0x01}
	slotMAC    = net.HardwareAddr{0x02, 0x77, 0x62, 0, 0, 0x02}
	gatewayMAC = net.HardwareAddr{0x02, 0x77, 0x62, 0, 0, 0x03}
)

// tap is what a slot with a TAP consists of. The namespace has no name; it goes, with everything in it and with both ends of the veth pair,
// when neither we nor the VMM have it any more. So a process that is killed while it builds one leaves nothing.
type tap struct {
	number int
	link   string // the host's end of the veth pair
	ns     *os.File
	addresses

	ports map[portKey]netip.AddrPort
	held  []func() error // closes what holds the ports

	// What it is limited to. It is not known for one that is adopted: whoever had it may have died in the middle of a change. Then its rules are
	// asked (keepsEgress). A fresh one has had no guest yet.
	egress       warmboot.Egress
	bandwidth    warmboot.Bandwidth
	known, fresh bool
}

// linkName is the name of a slot's interface on the host. It begins with what all of the owner's begin with, and fits into the 15
// characters that a name may have.
func (k *keeper) linkName(number int) string { return k.rules.links + strconv.Itoa(number) }

// alias tells whose an interface is.
func (k *keeper) alias(number int) string {
	return fmt.Sprintf("warmboot %s slot %d", k.Owner, number)
}

// build makes a slot.
func (k *keeper) build(number int) (_ *tap, err error) {
	var undo rollback.Stack
	defer func() {
		if undoErr := undo.Unwind(); undoErr != nil {
			k.Log.Error("What a network slot had taken could not all be released", "slot", number, "err", undoErr)
		}
	}()
	s := &tap{number: number, link: k.linkName(number), addresses: k.block.addresses(number)}
	if s.ns, err = netns.New(); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	undo.Push("make namespace", s.ns.Close)
	k.step("namespace")
	if err := netns.In(s.ns, func() error {
		if err := netns.MakeTAP(tapName, k.FirstUID+uint32(number)); err != nil {
			return err
		}
		return setAll(sysctl{"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/disable_ipv6": "1", "net/ipv6/conf/default/disable_ipv6": "1"})
	}); err != nil {
		return nil, err
	}
	k.step("TAP")
	// The rules are there before anything can pass.
	if err := writeInside(s.ns, s.addresses); err != nil {
		return nil, err
	}
	k.step("rules")
	inside, err := netlink.NewHandleAt(vishns.NsHandle(s.ns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer inside.Close()
	if err := k.connect(s, inside); err != nil {
		return nil, err
	}
	undo.Push("make veth pair", func() error { return k.deleteLink(s.link) })
	k.step("veth pair")
	if err := s.configureInside(inside); err != nil {
		return nil, err
	}
	k.step("inside")
	if err := k.configureHost(s); err != nil {
		return nil, err
	}
	if err := errors.Join(netns.Activate("", s.link), netns.Activate(netns.Path(s.ns), upName)); err != nil {
		return nil, err
	}
	k.step("host")
	s.known, s.fresh = true, true
	undo.Move()
	return s, nil
}

// connect makes the veth pair.
func (k *keeper) connect(s *tap, inside *netlink.Handle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = upName, slotMAC
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerHardwareAddr, pair.PeerNamespace = s.link, hostMAC, netlink.NsFd(k.home.Fd())
	if err := inside.LinkAdd(pair); err != nil {
		return fmt.Errorf("make veth pair %s: %w", s.link, err)
	}
	return nil
}

// configureInside gives the slot's interfaces their addresses, and its guest the way out.
func (s *tap) configureInside(inside *netlink.Handle) error {
	fail := func(what string, err error) error { return fmt.Errorf("%s in the slot: %w", what, err) }
	up, err := inside.LinkByName(upName)
	if err != nil {
		return fail("find "+upName, err)
	}
	guests, err := inside.LinkByName(tapName)
	if err != nil {
		return fail("find "+tapName, err)
	}
	if err := inside.LinkSetHardwareAddr(guests, gatewayMAC); err != nil {
		return fail("set hardware address of "+tapName, err)
	}
	for _, a := range []struct {
		link    netlink.Link
		address netip.Prefix
	}{
		{up, netip.PrefixFrom(s.slot, 31)},
		{guests, netip.PrefixFrom(guestNetwork.Gateway(), guestNetwork.Subnet.Bits())},
		{guests, netip.PrefixFrom(guestNetwork.DNS(), guestNetwork.Subnet.Bits())},
	} {
		if err := inside.AddrAdd(a.link, &netlink.Addr{IPNet: ipNet(a.address)}); err != nil {
			return fail("add address "+a.address.String(), err)
		}
	}
	for _, l := range []netlink.Link{up, guests} {
		if err := inside.LinkSetUp(l); err != nil {
			return fail("bring up "+l.Attrs().Name, err)
		}
	}
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: up.Attrs().Index, Gw: s.host.AsSlice()}); err != nil {
		return fail("add default route", err)
	}
	return nil
}

// configureHost marks the host's end of the pair as ours, gives it its address and brings it up.
func (k *keeper) configureHost(s *tap) error {
	fail := func(what string, err error) error { return fmt.Errorf("%s of %s: %w", what, s.link, err) }
	link, err := netlink.LinkByName(s.link)
	if err != nil {
		return fail("find the host's end", err)
	}
	if err := netlink.LinkSetAlias(link, k.alias(s.number)); err != nil {
		return fail("set alias", err)
	}
	conf := "net/ipv4/conf/" + s.link + "/"
	if err := setAll(sysctl{
		// The host's loopback is where registries are, and where published ports are reached from. The guard keeps slots from sending to it.
		conf + "route_localnet": "1",
		conf + "forwarding":     "1",
		// An answer to the host's loopback comes from where nothing is sent to.
		conf + "rp_filter":                          "0",
		"net/ipv6/conf/" + s.link + "/disable_ipv6": "1",
	}); err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(s.host, 31))}); err != nil {
		return fail("add address", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fail("bring up", err)
	}
	return nil
}

// deleteLink deletes an interface of the host, and with it the other end of the pair. One that is not there is no error.
func (k *keeper) deleteLink(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) {
		return nil // the kernel was faster: its namespace is gone
	}
	if err != nil {
		return fmt.Errorf("delete interface %s: %w", name, err)
	}
	return nil
}

// ourLinks are the numbers of the slots whose interfaces there are on the host.
func (k *keeper) ourLinks() ([]int, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var numbers []int
	for _, l := range links {
		if text, ours := strings.CutPrefix(l.Attrs().Name, k.rules.links); ours {
			if n, err := strconv.Atoi(text); err == nil {
				numbers = append(numbers, n)
			}
		}
	}
	return numbers, nil
}

// sysctl is values by path below /proc/sys; those of the network are the calling thread's namespace's.
type sysctl map[string]string

// setAll sets values that are not so yet. What a kernel without IPv6 does not have needs no setting.
func setAll(values sysctl) error {
	for name, want := range values {
		path := "/proc/sys/" + name
		is, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) && strings.HasPrefix(name, "net/ipv6/") {
			continue
		}
		if err == nil && string(bytes.TrimSpace(is)) != want {
			err = os.WriteFile(path, []byte(want), 0)
		}
		if err != nil {
			return fmt.Errorf("set %s: %w", strings.ReplaceAll(name, "/", "."), err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
