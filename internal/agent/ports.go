package agent

import (
	"context"
	"net/netip"
	"slices"

	"warmboot"
	"warmboot/internal/hostnet"
)

// ReservePorts chooses a free host port wherever one is 0 and reports a Conflict for a port that something on the host uses
// already. Nothing is held: the ports are taken when a microVM is started, which fails if it comes too late.
func (a *Agent) ReservePorts(_ context.Context, ports []warmboot.PortMapping) ([]warmboot.PortMapping, error) {
	ports = slices.Clone(ports)
	for i := range ports {
		p := &ports[i]
		if !p.HostIP.IsValid() {
			p.HostIP = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		}
		if p.Protocol == "" {
			p.Protocol = warmboot.TCP
		}
		if !p.HostIP.Is4() {
			return nil, warmboot.Errorf(warmboot.Invalid, "publish port", "%s is not an IPv4 address; a microVM's network has no IPv6", p.HostIP)
		}
		got, release, err := hostnet.Hold(p.Protocol, netip.AddrPortFrom(p.HostIP, p.HostPort))
		if err == nil {
			err = release()
		}
		if err != nil {
			return nil, err
		}
		p.HostPort = got.Port()
	}
	return ports, nil
}
