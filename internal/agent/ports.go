package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"syscall"

	"warmboot"
)

// ReservePorts chooses a free host port wherever one is 0 and reports a Conflict for a port that something on the host uses
// already. Nothing is held: the VMM binds the ports when it starts, and says so if it comes too late.
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
		free, err := freePort(*p)
		if err != nil {
			return nil, err
		}
		p.HostPort = free
	}
	return ports, nil
}

// freePort binds a port for a moment to see whether it is free.
func freePort(p warmboot.PortMapping) (uint16, error) {
	addr := net.JoinHostPort(p.HostIP.String(), strconv.Itoa(int(p.HostPort)))
	var bound net.Addr
	var err error
	if p.Protocol == warmboot.UDP {
		var c net.PacketConn
		if c, err = net.ListenPacket("udp4", addr); err == nil {
			bound = c.LocalAddr()
			err = c.Close()
		}
	} else {
		var l net.Listener
		if l, err = net.Listen("tcp4", addr); err == nil {
			bound = l.Addr()
			err = l.Close()
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return 0, warmboot.Errorf(warmboot.Conflict, "publish port", "%s port %s is in use on this host; choose another host port, or leave it out to have one chosen", p.Protocol, addr)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return 0, warmboot.Errorf(warmboot.Invalid, "publish port", "%s is not an address of this host", p.HostIP)
	case errors.Is(err, syscall.EACCES):
		return 0, warmboot.Errorf(warmboot.Denied, "publish port", "port %d needs root; choose one from 1024 on", p.HostPort)
	case err != nil:
		return 0, &warmboot.Error{Code: warmboot.Internal, Op: "publish port", Err: err}
	}
	return netip.MustParseAddrPort(bound.String()).Port(), nil
}
