package httpapi

import (
	"net"
	"net/netip"
	"strings"

	"warmboot"
)

// Exposure is how the API is open to who reaches its address.
type Exposure struct {
	NoAuth       bool // no token is asked for
	TLS          bool
	InsecureHTTP bool // the operator wants the API in clear where others reach it
}

// CheckListen refuses an address that others than this machine can reach, unless tokens are asked for and nobody between can
// read them.
func CheckListen(addr string, e Exposure) error {
	const op = "listen"
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return warmboot.Errorf(warmboot.Invalid, op, "%q is not an address to listen on (%w); use a form like 127.0.0.1:18080", addr, err)
	}
	switch {
	case isLoopback(host):
		return nil
	case e.NoAuth:
		return warmboot.Errorf(warmboot.Denied, op, "%s can be reached from other machines, and whoever reaches warmboot without a token controls this one; leave --auth=none out, or listen on 127.0.0.1", addr)
	case !e.TLS && !e.InsecureHTTP:
		return warmboot.Errorf(warmboot.Denied, op, "%s can be reached from other machines, and without TLS whoever is between can read the tokens; use --tls=self-signed or --tls-cert and --tls-key, listen on 127.0.0.1, or accept it with --insecure-http, for example behind a proxy that speaks TLS", addr)
	}
	return nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}
