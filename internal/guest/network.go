package guest

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const nicName = "eth0"

// setNetwork gives the machine's one interface its hardware address, its one address and the default route. What is empty
// stays as it is. The link is up afterwards if there is an address.
func setNetwork(mac, address, gateway string) error {
	if mac == "" && address == "" {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(nicName)
	if err != nil {
		return fmt.Errorf("interface %s: %w", nicName, err)
	}
	if mac != "" {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			return err
		}
		if link.Attrs().HardwareAddr.String() != hw.String() {
			if link.Attrs().Flags&net.FlagUp != 0 {
				if err := h.LinkSetDown(link); err != nil {
					return err
				}
			}
			if err := h.LinkSetHardwareAddr(link, hw); err != nil {
				return fmt.Errorf("set hardware address: %w", err)
			}
		}
	}
	if address == "" {
		return nil
	}
	want, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	have, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for _, a := range have {
		if !a.Equal(*want) {
			if err := h.AddrDel(link, &a); err != nil {
				return err
			}
		}
	}
	if err := h.AddrReplace(link, want); err != nil {
		return fmt.Errorf("set address %s: %w", address, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return err
	}
	if gateway == "" {
		return nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway)}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("set default route via %s: %w", gateway, err)
	}
	// Read back here, since it is no part of what the host compares.
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if r.Gw.Equal(route.Gw) && r.LinkIndex == route.LinkIndex {
			return nil
		}
	}
	return fmt.Errorf("the default route via %s did not take effect", gateway)
}

// readNetwork reads the hardware address and the first address of the machine's interface; both are empty without one.
func readNetwork() (mac, address string, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", "", err
	}
	defer h.Close()
	link, err := h.LinkByName(nicName)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return "", "", nil
	}
	if err != nil {
		return "", "", err
	}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return "", "", err
	}
	if len(addrs) > 0 {
		address = addrs[0].IPNet.String()
	}
	return link.Attrs().HardwareAddr.String(), address, nil
}

// flushNetwork forgets everything that belongs to this machine's place in the network: addresses, routes, neighbours and tracked
// connections. The interface itself stays, down.
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
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil, err
		}
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
	if err := h.LinkSetDown(link); err != nil { // drops its neighbours too
		return nil, err
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
	steps = append(steps, fmt.Sprintf("network: %s is down; %d addresses, %d routes and %d neighbours removed", nicName, len(addrs), len(routes), len(neighbours)))
	if exists("/proc/net/nf_conntrack") {
		if err := netlink.ConntrackTableFlush(netlink.ConntrackTable); err != nil {
			return nil, fmt.Errorf("flush connection tracking: %w", err)
		}
		steps = append(steps, "network: tracked connections flushed")
	}
	return steps, nil
}
