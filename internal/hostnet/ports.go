package hostnet

import (
	"errors"
	"net"
	"net/netip"
	"syscall"

	"warmboot"
)

// Hold takes a port of the host, so that no other program can, and nobody takes it for free. Nothing is read from it: the rules send what
// comes for the port elsewhere. Port 0 takes any that is free. A port that is used is a Conflict.
func Hold(p warmboot.Protocol, at netip.AddrPort) (got netip.AddrPort, release func() error, err error) {
	const op = "publish port"
	if p == warmboot.UDP {
		var c *net.UDPConn
		if c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)); err == nil {
			return c.LocalAddr().(*net.UDPAddr).AddrPort(), c.Close, nil
		}
	} else {
		var l *net.TCPListener
		if l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at)); err == nil {
			return l.Addr().(*net.TCPAddr).AddrPort(), l.Close, nil
		}
	}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return got, nil, warmboot.Errorf(warmboot.Conflict, op, "%s port %s is in use on this host; choose another host port, or leave it out to have one chosen", p, at)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return got, nil, warmboot.Errorf(warmboot.Invalid, op, "%s is not an address of this host", at.Addr())
	case errors.Is(err, syscall.EACCES):
		return got, nil, warmboot.Errorf(warmboot.Denied, op, "port %d needs root; choose one from 1024 on", at.Port())
	}
	return got, nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}
