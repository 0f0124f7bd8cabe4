package guest

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// flushNetwork forgets everything that belongs to this machine's place in the network: addresses, routes, neighbours and tracked
// connections. The link stays up: without an address it answers nobody, and bringing it up is the slowest part of giving a
// clone its network.
func flushNetwork() (steps []string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := h.LinkByName(nicName)
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w; the snapshot needs it, its driver virtio_net must be loaded", nicName, err)
	}
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, r := range routes {
		if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return nil, err
		}
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, err
		}
	}
	neighbours, err := h.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return nil, err
	}
	for _, n := range neighbours {
		if err := h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
	}
	steps = append(steps, fmt.Sprintf("network: %s has nothing left; %d addresses, %d routes and %d neighbours removed", nicName, len(addrs), len(routes), len(neighbours)))
	if exists("/proc/net/nf_conntrack") {
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			return nil, fmt.Errorf("flush connection tracking: %w", err)
		}
		steps = append(steps, "network: tracked connections flushed")
	}
	return steps, nil
}
