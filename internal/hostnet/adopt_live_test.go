package hostnet

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"warmboot"
)

// Connections that a container has go on over a restart, whoever is the first to send something then. What its policy has forbidden since does not.
func TestConnectionsOverARestart(t *testing.T) {
	t.Parallel()
	world := newOutside(t)
	only := func(a netip.Addr) warmboot.Egress {
		return warmboot.Egress{Policy: warmboot.EgressList, Allow: []netip.Prefix{host(a)}}
	}
	deny := warmboot.Egress{Policy: warmboot.EgressDeny}
	for name, tt := range map[string]struct {
		before, after warmboot.Egress
		halfway       bool // the one before is killed in the middle of the change
		own, cut      bool // the guest has a connection of its own; it ends
	}{
		"deny":                      {before: deny, after: deny},
		"list":                      {before: only(world.addr), after: only(world.addr), own: true},
		"no policy":                 {own: true},
		"from none to deny":         {after: deny, own: true, cut: true},
		"from none to deny halfway": {after: deny, halfway: true, own: true, cut: true},
		"from a list to another":    {before: only(world.addr), after: only(netip.MustParseAddr("203.0.113.7")), own: true, cut: true},
		"from a list to none":       {before: only(world.addr), own: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := config(t)
			at := freePort(t, localhost)
			h := holding{Owner: c.Owner, FirstUID: c.FirstUID, ResolvConf: c.resolvConf, Port: at.Port(), Egress: tt.before}
			holder, slot := hold(t, h)
			g := newGuest(t, &Slot{Network: slot.Network})
			client, served := connect(t, nil, at, g.ns, netip.MustParseAddrPort("0.0.0.0:80"))
			var own, peer net.Conn
			if tt.own {
				own, peer = connect(t, g.ns, netip.AddrPort{}, world.ns, anyPort(world.addr))
			}
			kill(holder)
			n, err := Open(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := n.Close(); err != nil {
					t.Error(err)
				}
			}()
			if tt.halfway {
				interrupted(t, slot, tt.after)
			}
			h.Egress = tt.after
			s, err := n.Adopt(slot.Number, slot.PID, slot.Network, h.wants())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := s.Release(); err != nil {
					t.Error(err)
				}
			}()
			if err := n.Settle(); err != nil {
				t.Fatal(err)
			}
			if !tt.cut {
				passes(t, "the guest's answer to whoever has connected to its port", served, client)
				passes(t, "what whoever has connected to its port sends", client, served)
			}
			switch {
			case tt.cut:
				ends(t, own, peer)
			case tt.own:
				passes(t, "the answer to the guest", peer, own)
				passes(t, "what the guest sends", own, peer)
			}
			serve(t, g.ns, netip.MustParseAddrPort("0.0.0.0:80"), "guest")
			reaches(t, nil, "tcp", at.String(), "guest")
		})
	}
}

// interrupted makes a slot what the process before leaves that is killed while it makes a policy stricter.
func interrupted(t *testing.T, slot held, e warmboot.Egress) {
	t.Helper()
	ns, err := os.Open(slot.Network.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := closeGate(ns, e, addresses{}); err != nil {
		t.Fatal(err)
	}
}

// connect makes a connection from a namespace to a listener in another, by way of an address if there is one. It returns both ends.
func connect(t *testing.T, from *os.File, by netip.AddrPort, to *os.File, at netip.AddrPort) (client, server net.Conn) {
	t.Helper()
	var l net.Listener
	if err := within(to, func() (err error) {
		l, err = net.Listen("tcp4", at.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !by.IsValid() {
		by = l.Addr().(*net.TCPAddr).AddrPort()
	}
	err := within(from, func() (err error) {
		client, err = net.DialTimeout("tcp4", by.String(), reachedIn)
		return err
	})
	if err == nil {
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(reachedIn))
		server, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func passes(t *testing.T, what string, from, to net.Conn) {
	t.Helper()
	deadline := time.Now().Add(reachedIn)
	_ = from.SetWriteDeadline(deadline)
	_ = to.SetReadDeadline(deadline)
	got := make([]byte, 1)
	_, err := fmt.Fprint(from, "x")
	if err == nil {
		_, err = to.Read(got)
	}
	if err != nil || string(got) != "x" {
		t.Errorf("%s does not arrive: %q, %v", what, got, err)
	}
}

// ends sees that nothing passes from a peer to a guest, nor from the guest.
func ends(t *testing.T, own, peer net.Conn) {
	t.Helper()
	for _, way := range [][2]net.Conn{{peer, own}, {own, peer}} {
		_, _ = way[0].Write([]byte("x"))
		_ = way[1].SetReadDeadline(time.Now().Add(refusedIn))
		if n, err := way[1].Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%d bytes pass from %s to %s after the policy has forbidden that", n, way[0].LocalAddr(), way[1].LocalAddr())
		}
	}
}
