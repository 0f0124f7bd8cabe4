package hostnet

import (
	"fmt"
	"net/netip"
	"testing"

	"warmboot"
	"warmboot/internal/vmm"
)

func tableExists(t *testing.T, name string) bool {
	t.Helper()
	table, err := findTable(name)
	if err != nil {
		t.Fatal(err)
	}
	return table != nil
}

var localhost = netip.MustParseAddr("127.0.0.1")

func TestGuestReachesTheWorldAndNothingElse(t *testing.T) {
	t.Parallel()
	const metadata = "169.254.169.254"
	world := newOutside(t, metadata, "203.0.113.9")
	registry := serve(t, nil, anyPort(localhost), "registry")
	c := config(t)
	c.Registries = []uint16{registry.Port()}
	n := open(t, c)
	server := serve(t, world.ns, anyPort(netip.IPv4Unspecified()), "world")
	g := newGuest(t, take(t, n, Wants{}))
	for _, network := range []string{"tcp", "udp"} {
		reaches(t, g.ns, network, netip.AddrPortFrom(world.addr, server.Port()).String(), "world to "+world.host.String())
	}
	reaches(t, g.ns, "tcp", fmt.Sprintf("203.0.113.9:%d", server.Port()), "world to "+world.host.String())
	gateway := g.slot.Network.Gateway()
	reaches(t, g.ns, "tcp", netip.AddrPortFrom(gateway, registry.Port()).String(), "registry")
	reaches(t, g.ns, "tcp", netip.AddrPortFrom(g.slot.Network.DNS(), registry.Port()).String(), "registry")

	// What follows can be reached from the host, so it is the rules that keep the guest away.
	everywhere := serve(t, nil, anyPort(netip.IPv4Unspecified()), "host")
	private := serve(t, nil, anyPort(localhost), "database")
	other := newGuest(t, take(t, n, Wants{}))
	neighbour := serve(t, other.ns, anyPort(netip.IPv4Unspecified()), "neighbour")
	secrets := serve(t, world.ns, netip.MustParseAddrPort(metadata+":80"), "secrets")
	reaches(t, nil, "tcp", secrets.String(), "secrets")
	reaches(t, nil, "tcp", netip.AddrPortFrom(world.host, everywhere.Port()).String(), "host")
	for what, to := range map[string]netip.AddrPort{
		"the host by its gateway":        netip.AddrPortFrom(gateway, everywhere.Port()),
		"the host by its own address":    netip.AddrPortFrom(world.host, everywhere.Port()),
		"the host by the slot's gateway": netip.AddrPortFrom(g.slot.tap.host, everywhere.Port()),
		"the host's loopback":            netip.AddrPortFrom(gateway, private.Port()),
		"another slot":                   netip.AddrPortFrom(other.slot.tap.slot, neighbour.Port()),
		"another slot's gateway":         netip.AddrPortFrom(other.slot.tap.host, everywhere.Port()),
		"the metadata service":           secrets,
	} {
		t.Run(what, func(t *testing.T) {
			refused(t, g.ns, "tcp", to.String())
			lost(t, g.ns, "udp", to.String())
		})
	}
	// And not from outside, nor from the host, because nothing is published.
	direct := netip.AddrPortFrom(other.slot.tap.slot, neighbour.Port()).String()
	refused(t, nil, "tcp", direct)
	lost(t, nil, "udp", direct)
	routeBy(t, world, other.slot.tap.slot)
	lost(t, world.ns, "tcp", direct)
}

func TestPublishedPorts(t *testing.T) {
	t.Parallel()
	world, elsewhere := newOutside(t), newOutside(t)
	n := open(t, config(t))
	forward := func(p warmboot.Protocol, ip netip.Addr) vmm.Forward {
		at, release, err := Hold(p, anyPort(ip))
		if err != nil {
			t.Fatal(err)
		}
		release()
		return vmm.Forward{Protocol: p, HostIP: ip, HostPort: at.Port(), GuestPort: 8080}
	}
	ways := map[string]netip.Addr{"everywhere": netip.IPv4Unspecified(), "on loopback": localhost, "on one address": world.host}
	for _, p := range []warmboot.Protocol{warmboot.TCP, warmboot.UDP} {
		for name, ip := range ways {
			t.Run(fmt.Sprintf("%s %s", p, name), func(t *testing.T) {
				f := forward(p, ip)
				s := take(t, n, Wants{Forwards: []vmm.Forward{f}})
				g := newGuest(t, s)
				serve(t, g.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 8080), "guest")
				bystander := newGuest(t, take(t, n, Wants{}))
				at := func(a netip.Addr) string { return netip.AddrPortFrom(a, f.HostPort).String() }
				network := string(p)
				want := func(ok bool, from string, reach func()) {
					t.Run(fmt.Sprintf("%s %v", from, ok), func(*testing.T) { reach() })
				}
				all, own := ip == netip.IPv4Unspecified(), ip == world.host
				check := func(ok bool, from string, a netip.Addr, ns guestOrHost) {
					want(ok, from, func() {
						if ok {
							reaches(t, ns.ns, network, at(a), "guest")
						} else {
							lost(t, ns.ns, network, at(a))
						}
					})
				}
				check(all || ip == localhost, "from the host to its loopback", localhost, guestOrHost{})
				check(all || own, "from the host to its address", world.host, guestOrHost{})
				check(all, "from the host to another of its addresses", elsewhere.host, guestOrHost{})
				check(all || own, "from outside", world.host, guestOrHost{world.ns})
				check(all, "from outside to another address", elsewhere.host, guestOrHost{elsewhere.ns})
				check(false, "from another slot", world.host, guestOrHost{bystander.ns})
				check(false, "from another slot by its gateway", bystander.slot.Network.Gateway(), guestOrHost{bystander.ns})

				// The port is taken for everybody else.
				if _, release, err := Hold(p, netip.AddrPortFrom(ip, f.HostPort)); warmboot.CodeOf(err) != warmboot.Conflict {
					t.Errorf("a published port can be taken: %v", err)
					if err == nil {
						release()
					}
				}
				if again, err := n.Take(t.Context(), Wants{Forwards: []vmm.Forward{f}}); warmboot.CodeOf(err) != warmboot.Conflict {
					t.Errorf("published twice: %v", err)
					if err == nil {
						again.Release()
					}
				}
				if err := s.Release(); err != nil {
					t.Fatal(err)
				}
				lost(t, nil, network, at(world.host))
				_, release, err := Hold(p, netip.AddrPortFrom(ip, f.HostPort))
				if err != nil {
					t.Errorf("the port is not free afterwards: %v", err)
				} else {
					release()
				}
			})
		}
	}
}

// The client's address is not hidden from the guest, but where it has none that could be answered.
func TestPublishedPortTellsWhoAsks(t *testing.T) {
	t.Parallel()
	world := newOutside(t)
	n := open(t, config(t))
	at := freePort(t, netip.IPv4Unspecified())
	s := take(t, n, Wants{Forwards: []vmm.Forward{{Protocol: warmboot.TCP, HostIP: netip.IPv4Unspecified(), HostPort: at.Port(), GuestPort: 80}}})
	g := newGuest(t, s)
	serve(t, g.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 80), "guest")
	to := func(a netip.Addr) string { return netip.AddrPortFrom(a, at.Port()).String() }
	reaches(t, world.ns, "tcp", to(world.host), "guest to "+world.addr.String())
	reaches(t, nil, "tcp", to(localhost), "guest to "+s.tap.host.String())
	if got := g.slot.Network.Guest().Addr().String(); got != "100.127.255.15" {
		t.Errorf("the guest has address %s", got)
	}
}
