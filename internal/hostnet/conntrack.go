package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	vishns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"warmboot"
)

// forget makes a slot's connection tracking forget its guest's connections, so that they are judged anew.
func forget(ns *os.File) error {
	h, err := netlink.NewHandleAt(vishns.NsHandle(ns.Fd()), unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.ConntrackTableFlush(netlink.ConntrackTable); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget a slot's connections: %w", err)
	}
	return nil
}

// slotFlows finds the host's connections from or to slots by the slots' addresses: who begins is the source of the first packet, who
// answers that of the reply.
type slotFlows map[netip.Addr]bool

func (s slotFlows) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	from, _ := netip.AddrFromSlice(f.Forward.SrcIP.To4())
	answers, _ := netip.AddrFromSlice(f.Reverse.SrcIP.To4())
	return s[from] || s[answers]
}

// forgetAddresses makes the host forget connections from and to slots. Else the next that has an address could go on with what the last
// one had begun, or be sent what was meant for it.
func forgetAddresses(slots map[netip.Addr]bool) error {
	if err := forgetFlows(slotFlows(slots)); err != nil {
		return fmt.Errorf("forget connections of network slots: %w", err)
	}
	return nil
}

// strays finds packets to published UDP ports that lead elsewhere than into the slot: to the host itself, from when the port was not published, or
// into a slot that had it before. The kernel sends all of a client's packets where it has sent the first, until the client falls silent. (TCP needs
// nothing of this: what is refused begins anew.)
type strays struct {
	ports map[portKey]netip.AddrPort // which are published, and where they lead
	pool  netip.Prefix               // where slots have their addresses
	local []netip.Prefix             // what the host answers to
}

func (s strays) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	if f.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	to, answers := addrPort(f.Forward.DstIP, f.Forward.DstPort), addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort)
	slot, published := s.ports[portKey{warmboot.UDP, to}]
	if !published {
		slot, published = s.ports[portKey{warmboot.UDP, netip.AddrPortFrom(netip.IPv4Unspecified(), to.Port())}]
	}
	return published && answers != slot && (answers == to || s.pool.Contains(answers.Addr())) &&
		slices.ContainsFunc(s.local, func(p netip.Prefix) bool { return p.Contains(to.Addr()) })
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip.To4())
	return netip.AddrPortFrom(a, port)
}

// forgetStrays makes the host forget them: their next packets go into the slot.
func forgetStrays(ports map[portKey]netip.AddrPort, pool netip.Prefix) error {
	s := strays{ports: maps.Clone(ports), pool: pool}
	maps.DeleteFunc(s.ports, func(k portKey, _ netip.AddrPort) bool { return k.protocol != warmboot.UDP })
	if len(s.ports) == 0 {
		return nil // to ask for all connections takes milliseconds
	}
	routes, err := whole(func() ([]netlink.Route, error) { // what `fib daddr type local` is
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Type: unix.RTN_LOCAL}, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return fmt.Errorf("list the host's addresses: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, _ := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		s.local = append(s.local, netip.PrefixFrom(a, bits))
	}
	if err := forgetFlows(s); err != nil {
		return fmt.Errorf("forget connections to published ports: %w", err)
	}
	return nil
}

func forgetFlows(which netlink.CustomConntrackFilter) error {
	_, err := whole(func() ([]struct{}, error) {
		_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, which)
		return nil, err
	})
	return err
}
