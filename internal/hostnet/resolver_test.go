package hostnet

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"warmboot/internal/netns"
)

// Where names are asked for on the host's loopback, one guest that connects and says nothing, as often as it can, keeps no other from being answered.
func TestOneGuestLeavesOthersTheirNames(t *testing.T) {
	t.Parallel()
	c := config(t)
	c.resolvConf = resolvFile(t, "nameserver 127.0.0.54")
	n := open(t, c)
	serve(t, nil, netip.MustParseAddrPort("127.0.0.54:53"), "names")
	greedy, other := newGuest(t, take(t, n, Wants{})), newGuest(t, take(t, n, Wants{}))
	at := netip.AddrPortFrom(greedy.slot.Network.DNS(), 53).String()
	reaches(t, other.ns, "udp", at, "names") // its slot's neighbours are known now
	held := 0
	for range maxQuestions + 100 {
		var conn net.Conn
		if err := netns.In(greedy.ns, func() (err error) {
			conn, err = net.DialTimeout("tcp4", at, reachedIn)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		if _, err := io.ReadFull(conn, make([]byte, 1)); err == nil { // it was let in, as the server's first line tells
			held++
		}
	}
	for _, network := range []string{"udp", "tcp"} {
		if got, err := ask(other.ns, network, at, answerLimit/5); err != nil {
			t.Errorf("%s: another guest is answered %q, %v", network, got, err)
		}
	}
	if held == 0 {
		t.Error("the guest holds nothing, so that this shows nothing")
	}
	// What is over makes room again.
	if err := greedy.slot.Release(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the questions", func() bool {
		n.keeper.forwarder.mu.Lock()
		defer n.keeper.forwarder.mu.Unlock()
		return n.keeper.forwarder.busy == 0 && len(n.keeper.forwarder.busyFor) == 0
	})
}
