package hostnet

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"warmboot"
)

// DefaultCIDR is where slots have their addresses on the host: the shared address space of RFC 6598, which no container bridge and
// hardly any local network uses.
var DefaultCIDR = netip.MustParsePrefix("100.64.0.0/10")

// blockBits is the prefix length of an owner's block: two addresses for each of MaxSlots.
const blockBits = 17

// minBits is the longest prefix of a pool: with room for two slots, which are needed to try them.
const minBits = 30

// widest is the shortest prefix of a route that counts as one to somewhere. What is wider is a way to everywhere else, as VPNs add it.
const widest = 8

// block is the part of the pool that one owner's slots have their addresses in.
type block struct {
	netip.Prefix
	claim net.Listener // keeps other owners away
}

// addresses are those of a slot.
func (b block) addresses(number int) addresses {
	return addresses{host: offset(b.Addr(), 2*number), slot: offset(b.Addr(), 2*number+1)}
}

// slots is how many slots there is room for.
func (b block) slots() int { return min(MaxSlots, 1<<(32-b.Bits())/2) }

// claimBlock chooses a block of a pool for an owner. No route of this host leads into it, but for those to the owner's own links, and no
// other warmboot has it. An owner tries the same one first at each start, and two owners hardly ever the same.
//
// What claims a block is a unix socket with an abstract name, of which the kernel has one in each network namespace and which goes with its
// process. Slots whose owner does not run are seen by their routes.
func claimBlock(pool netip.Prefix, owner, links string) (block, error) {
	const op = "choose addresses"
	if !pool.IsValid() || !pool.Addr().Is4() || pool.Bits() > minBits {
		return block{}, warmboot.Errorf(warmboot.Invalid, op, "%v is no IPv4 network with room for microVMs; use one like %s", pool, DefaultCIDR)
	}
	if pool.Masked() != pool {
		return block{}, warmboot.Errorf(warmboot.Invalid, op, "%v has bits set behind its prefix; did you mean %v?", pool, pool.Masked())
	}
	taken, err := routes(links)
	if err != nil {
		return block{}, err
	}
	bits := max(pool.Bits(), blockBits)
	count := 1 << (bits - pool.Bits())
	first := 0
	if digits, err := hex.DecodeString(owner); err == nil {
		for _, d := range digits {
			first = (first<<8 | int(d)) % count
		}
	}
	why := "its only block is the guests' own network"
	for i := range count {
		b := netip.PrefixFrom(offset(pool.Addr(), (first+i)%count<<(32-bits)), bits)
		if b.Overlaps(guestNetwork.Subnet) {
			continue
		}
		claim, err := listen("@warmboot " + b.String())
		if errors.Is(err, syscall.EADDRINUSE) {
			why = "another warmboot uses it"
			continue
		}
		if err != nil {
			return block{}, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
		}
		if r, ok := overlapping(taken, b); ok {
			why = "this host has a route to " + r
			claim.Close()
			continue
		}
		return block{b, claim}, nil
	}
	return block{}, warmboot.Errorf(warmboot.Unavailable, op, "nothing of %s is free for microVMs (%s); choose another network with --network-cidr", pool, why)
}

// listen claims a name. One that was given up a moment ago may still be held by a process that is just being started.
func listen(name string) (l net.Listener, err error) {
	for range 5 {
		if l, err = net.Listen("unix", name); !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return l, err
}

// route is a network that this host knows a way to.
type route struct {
	netip.Prefix
	text string // for people
}

// routes are the host's, of all tables, less those that lead to the owner's own links or to everywhere.
func routes(links string) ([]route, error) {
	const op = "choose addresses"
	all, err := whole(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	interfaces, err := whole(netlink.LinkList)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	names := map[int]string{}
	for _, l := range interfaces {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var others []route
	for _, r := range all {
		if r.Dst == nil || strings.HasPrefix(names[r.LinkIndex], links) {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		bits, _ := r.Dst.Mask.Size()
		if !ok || bits < widest {
			continue
		}
		p := netip.PrefixFrom(a, bits)
		others = append(others, route{p, fmt.Sprintf("%s by %s", p, names[r.LinkIndex])})
	}
	return others, nil
}

func overlapping(all []route, b netip.Prefix) (text string, ok bool) {
	for _, r := range all {
		if r.Overlaps(b) {
			return r.text, true
		}
	}
	return "", false
}

// whole asks the kernel for a list until nothing has changed while it was told.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}
