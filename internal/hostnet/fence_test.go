package hostnet

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"warmboot"
)

// fences are hosts that do not forward packets.
var fences = map[string]func(*testing.T){
	"forwards nothing":            forwardsNothing,
	"forwards from one interface": forwardsFromOne,
	"may not forward":             mayNotForward,
	"refuses the fence":           fenceRefused,
	"keeps the fence":             fenceKept,
	"has another's fence":         fenceUnread,
}

// Each host is a network namespace with a process of its own.
func TestFence(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for name := range fences {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			onHost(t, holding{Fence: name})
		})
	}
}

func setForwarding(t *testing.T, file, value string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(value), 0); err != nil {
		t.Fatal(err)
	}
}

func wantForwarding(t *testing.T, when string, want, fence bool) {
	t.Helper()
	if on, err := forwarding(); err != nil || on != want {
		t.Errorf("%s forwarding is %v, %v, want %v", when, on, err, want)
	}
	if there := tableExists(t, fenceTable); there != fence {
		t.Errorf("%s: whether there is a fence: %v, want %v", when, there, fence)
	}
}

// neighbour is a machine in a network of the host's that knows the way to others by way of the host, with a server on it.
func neighbour(t *testing.T, name string, others ...*neighbouring) *neighbouring {
	t.Helper()
	n := &neighbouring{outside: newOutside(t)}
	n.at = serve(t, n.ns, anyPort(n.addr), name).String()
	for _, o := range others {
		routeBy(t, o.outside, n.addr)
		routeBy(t, n.outside, o.addr)
	}
	return n
}

type neighbouring struct {
	outside
	at string
}

func forwardsNothing(t *testing.T) {
	setForwarding(t, forwardFile, "0")
	a := neighbour(t, "a")
	b := neighbour(t, "b", a)
	apart := func(when string) {
		t.Helper()
		for _, way := range [][2]*neighbouring{{a, b}, {b, a}} {
			if got, err := ask(way[0].ns, "udp", way[1].at, refusedIn); err == nil {
				t.Errorf("%s the host forwards from one of its networks to another: %q", when, got)
			}
		}
	}
	apart("before")
	if err := Try(t.Context(), DefaultCIDR); err != nil {
		t.Errorf("slots do not work: %v", err)
	}
	wantForwarding(t, "after a try", false, false)

	c := config(t)
	c.Mode = Auto
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if n.Mode() != TAP {
		t.Fatalf("the network is in mode %s, because %s", n.Mode(), n.Why())
	}
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	s, err := n.Take(t.Context(), Wants{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("forwards", func(t *testing.T) { // the guest is gone after it
		g := newGuest(t, s)
		works := func(when string) {
			t.Helper()
			wantForwarding(t, when, true, true)
			reaches(t, g.ns, "tcp", a.at, "a to "+a.host.String())
			reaches(t, g.ns, "udp", b.at, "b to "+b.host.String())
			apart(when)
		}
		works("with a slot")
		setForwarding(t, forwardFile, "0")
		n.keeper.look()
		works("after it was turned off")
		if err := (&fence{}).tearDown(); err != nil {
			t.Fatal(err)
		}
		n.keeper.look()
		works("after the fence was removed")

		late := neighbour(t, "late", a)
		reaches(t, late.ns, "tcp", a.at, "a to "+late.addr.String())
		reaches(t, a.ns, "tcp", late.at, "late to "+a.addr.String())
		works("with an interface that came later")
	})

	second := config(t)
	other, err := Open(t.Context(), second)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Release(); err != nil {
		t.Error(err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	wantForwarding(t, "when the first ends and the second has no slot yet", false, false)
	other.keeper.look()
	wantForwarding(t, "when the second has looked", true, true)
	if err := other.Settle(); err != nil {
		t.Fatal(err)
	}
	docker := newOutside(t)
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	wantForwarding(t, "while somebody else may need it", true, true)
	if link, err := netlink.LinkByName(docker.link); err != nil {
		t.Fatal(err)
	} else if err := netlink.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	third, err := Open(t.Context(), config(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := third.Close(); err != nil {
		t.Error(err)
	}
	wantForwarding(t, "in the end", false, false)
	nothingLeft(t, c)
	nothingLeft(t, second)
}

// Who has made an interface forward by itself keeps that.
func forwardsFromOne(t *testing.T) {
	setForwarding(t, forwardFile, "0")
	a := neighbour(t, "a")
	b := neighbour(t, "b", a)
	for _, o := range []*neighbouring{a, b} {
		setForwarding(t, "/proc/sys/net/ipv4/conf/"+o.link+"/forwarding", "1")
	}
	c := neighbour(t, "c", a, b)
	as := func(when string) {
		t.Helper()
		reaches(t, a.ns, "tcp", b.at, "b to "+a.addr.String())
		if got, err := ask(c.ns, "udp", a.at, refusedIn); err == nil {
			t.Errorf("%s the host forwards from an interface that did not: %q", when, got)
		}
	}
	as("before")
	n, err := Open(t.Context(), config(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	as("with slots")
	if before, closed := n.keeper.fence.before, n.keeper.fence.closed; len(before) != 3 || !slices.Equal(closed, []string{c.link}) {
		t.Errorf("of %q only %q are behind the fence", before, closed)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	wantForwarding(t, "in the end", true, true)
	as("in the end")
}

func mayNotForward(t *testing.T) {
	setForwarding(t, forwardFile, "0")
	if err := unix.Mount(forwardFile, forwardFile, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", forwardFile, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	wantNoSlots(t, config(t), "does not forward IP packets, and that cannot be turned on")
	wantForwarding(t, "in the end", false, false)
}

// wantNoSlots wants user mode where there is a choice, and an Unavailable error where slots are asked for, both with what is said.
func wantNoSlots(t *testing.T, c Config, says string) {
	t.Helper()
	c.Mode = Auto
	n := open(t, c)
	if n.Mode() != User || !strings.Contains(n.Why(), says) || strings.Contains(n.Why(), "\n") {
		t.Errorf("the network is in mode %s, because %q", n.Mode(), n.Why())
	}
	c.Mode = TAP
	if _, err := Open(t.Context(), c); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), says) {
		t.Errorf("where slots are asked for: %v", err)
	}
}
