package hostnet

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/vmm"
)

// A client that sends from one socket all the time, as one of statsd or syslog does, is heard by whoever has the port: it need not fall silent first.
func TestClientThatKeepsSending(t *testing.T) {
	t.Parallel()
	world := newOutside(t)
	n := open(t, config(t))
	for name, from := range map[string]struct {
		ns *os.File
		to netip.Addr
	}{
		"another machine": {world.ns, world.host}, "the host by its loopback": {nil, localhost}, "the host by its address": {nil, world.host},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := freeUDPPort(t)
			to := netip.AddrPortFrom(from.to, at.Port())
			w := Wants{Forwards: []vmm.Forward{{Protocol: warmboot.UDP, HostIP: netip.IPv4Unspecified(), HostPort: at.Port(), GuestPort: 8080}}}
			c := keepSending(t, from.ns, to)
			toHost := func() bool { return answers(t, c.from, to) == to }
			waitFor(t, "packets that nobody takes", toHost)
			serving := func(name string) *Slot {
				t.Helper()
				s := take(t, n, w)
				g := newGuest(t, s)
				serve(t, g.ns, netip.MustParseAddrPort("0.0.0.0:8080"), name)
				c.hears(t, name)
				return s
			}
			first := serving("first")
			if err := first.Release(); err != nil {
				t.Fatal(err)
			}
			second := serving("second")
			if err := second.Release(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, "packets that nobody takes any more", toHost)
			serving("third")
		})
	}
	// As while a firewall is reloaded that begins with "flush ruleset".
	t.Run("whose first packet came while the rules were away", func(t *testing.T) {
		n := open(t, config(t))
		at := freeUDPPort(t)
		to := netip.AddrPortFrom(world.host, at.Port())
		g := newGuest(t, take(t, n, Wants{Forwards: []vmm.Forward{{Protocol: warmboot.UDP, HostIP: netip.IPv4Unspecified(), HostPort: at.Port(), GuestPort: 8080}}}))
		serve(t, g.ns, netip.MustParseAddrPort("0.0.0.0:8080"), "guest")
		n.keeper.rules.mu.Lock() // so that they do not come back too soon
		removeTable(t, n.keeper.rules.name)
		c := keepSending(t, world.ns, to)
		waitFor(t, "packets that nobody takes", func() bool { return answers(t, c.from, to) == to })
		n.keeper.rules.mu.Unlock()
		n.keeper.look() // which it does every two seconds
		c.hears(t, "guest")
	})
}

// What others have with the same port, beyond this host, is let alone.
func TestPublishingLetsOthersFlowsAlone(t *testing.T) {
	t.Parallel()
	world := newOutside(t)
	n := open(t, config(t))
	g := newGuest(t, take(t, n, Wants{}))
	server := serve(t, world.ns, anyPort(world.addr), "world")
	for name, ns := range map[string]*os.File{"a guest": g.ns, "the host": nil} {
		c := keepSending(t, ns, server)
		c.hears(t, "world")
		if ns != nil { // the host sees the slot's address
			c.from = netip.AddrPortFrom(g.slot.tap.slot, c.from.Port())
		}
		const mark = 7
		marked := udpFlow(t, c.from, server)
		if marked == nil {
			t.Fatalf("%s: no flow from %s to %s", name, c.from, server)
		}
		marked.Mark = mark
		if err := netlink.ConntrackUpdate(netlink.ConntrackTable, unix.AF_INET, marked); err != nil {
			t.Fatal(err)
		}
		s := take(t, n, Wants{Forwards: []vmm.Forward{{Protocol: warmboot.UDP, HostIP: netip.IPv4Unspecified(), HostPort: server.Port(), GuestPort: 9}}})
		if f := udpFlow(t, c.from, server); f == nil || f.Mark != mark {
			t.Errorf("%s: its flow is now %v", name, f)
		}
		if err := s.Release(); err != nil {
			t.Error(err)
		}
	}
}

// sender is a socket that sends something all the time.
type sender struct {
	conn *net.UDPConn
	from netip.AddrPort
}

func keepSending(t *testing.T, ns *os.File, to netip.AddrPort) *sender {
	t.Helper()
	var c *net.UDPConn
	if err := within(ns, func() (err error) {
		c, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	over := make(chan struct{})
	all.Go(func() {
		for {
			_, _ = c.Write([]byte("?")) // refused while nobody is there
			select {
			case <-over:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	t.Cleanup(func() {
		close(over)
		all.Wait()
		c.Close()
	})
	return &sender{c, c.LocalAddr().(*net.UDPAddr).AddrPort()}
}

// hears waits for an answer of a server.
func (s *sender) hears(t *testing.T, from string) {
	t.Helper()
	got := make([]byte, 2048)
	for end := time.Now().Add(reachedIn / 2); ; { // not as long as the keeper takes to remove a slot while another boots
		_ = s.conn.SetReadDeadline(end)
		n, err := s.conn.Read(got)
		if err == nil && strings.HasPrefix(string(got[:n]), from+" ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("no answer from the %s guest, but %q, %v", from, got[:n], err)
		}
	}
}

// udpFlow is the host's flow of a client's packets to an address.
func udpFlow(t *testing.T, from, to netip.AddrPort) *netlink.ConntrackFlow {
	t.Helper()
	all, err := whole(func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.Forward.Protocol == unix.IPPROTO_UDP && addrPort(f.Forward.SrcIP, f.Forward.SrcPort) == from && addrPort(f.Forward.DstIP, f.Forward.DstPort) == to {
			return f
		}
	}
	return nil
}

// answers is where they really go.
func answers(t *testing.T, from, to netip.AddrPort) netip.AddrPort {
	t.Helper()
	if f := udpFlow(t, from, to); f != nil {
		return addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort)
	}
	return netip.AddrPort{}
}

// removeTable does what reloading a firewall does that begins with "flush ruleset".
func removeTable(t *testing.T, name string) {
	t.Helper()
	b, err := newBatch(nil, name)
	if err != nil {
		t.Fatal(err)
	}
	b.remove()
	if err := b.commit(); err != nil {
		t.Fatal(err)
	}
}

func freeUDPPort(t *testing.T) netip.AddrPort {
	t.Helper()
	at, release, err := Hold(warmboot.UDP, anyPort(netip.IPv4Unspecified()))
	if err != nil {
		t.Fatal(err)
	}
	release()
	return at
}
