package hostnet

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"warmboot"
	"warmboot/internal/netns"
)

// obstacles are hosts on which slots do not work, or do, and what is said about that.
var obstacles = map[string]string{
	"nothing":            "",
	"a forward firewall": "firewall does not forward",
	"an input firewall":  "does not let microVMs ask it for names",
	"routes everywhere":  "--network-cidr",
}

// Each host is a network namespace with a process of its own: tryBehind in TestHolder.
func TestObstacles(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for what := range obstacles {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			onHost(t, holding{Firewall: what})
		})
	}
}

// onHost runs TestHolder on a host of its own, in which mounts are its own too.
func onHost(t *testing.T, h holding) {
	t.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHolder$", "-test.v")
	cmd.Env = append(os.Environ(), holderVar+"="+string(text))
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

func tryBehind(t *testing.T, what string) {
	says := obstacles[what]
	switch what {
	case "a forward firewall", "an input firewall":
		b, err := newBatch(nil, "theirs")
		if err != nil {
			t.Fatal(err)
		}
		b.renew()
		hook := nftables.ChainHookForward
		if what == "an input firewall" {
			hook = nftables.ChainHookInput
		}
		b.base("theirs", nftables.ChainTypeFilter, hook, *nftables.ChainPriorityFilter, nftables.ChainPolicyDrop)
		if err := b.commit(); err != nil {
			t.Fatal(err)
		}
	case "routes everywhere":
		lo, err := netlink.LinkByName("lo")
		if err == nil {
			err = netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(DefaultCIDR), Table: 99})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	before := linkNames(t)
	err := Try(t.Context(), DefaultCIDR)
	if after := linkNames(t); after != before {
		t.Errorf("there are the interfaces %s, and were %s", after, before)
	}
	if says == "" {
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	if warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), says) {
		t.Fatalf("got %v, want that it says %q", err, says)
	}
	var o *Obstacle
	if what != "routes everywhere" && (!errors.As(err, &o) || o.What == "" || o.Fix == "") {
		t.Errorf("%v does not say what to do", err)
	}
	if what == "a forward firewall" { // which there was no time to find out
		short, cancel := context.WithTimeout(t.Context(), arriveLimit/3)
		defer cancel()
		if err := Try(short, DefaultCIDR); warmboot.CodeOf(err) != warmboot.Timeout || errors.As(err, &o) {
			t.Errorf("within a time that is too short: %v", err)
		}
	}
	c := config(t)
	c.Mode = Auto
	n := open(t, c)
	if n.Mode() != User || !strings.Contains(n.Why(), says) || strings.Contains(n.Why(), "\n") {
		t.Errorf("the network is in mode %s, because %q", n.Mode(), n.Why())
	}
	c = config(t)
	c.Mode = TAP
	_, err = Open(t.Context(), c)
	if warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("where slots are asked for: %v", err)
	}
}

func linkNames(t *testing.T) string {
	t.Helper()
	all, err := whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, l := range all {
		names = append(names, l.Attrs().Name)
	}
	return strings.Join(names, " ")
}

func TestUserMode(t *testing.T) {
	t.Parallel()
	n, err := Open(t.Context(), Config{Mode: User, Owner: owner()})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	networks := map[netip.Prefix]bool{}
	for range MaxSlots {
		s, err := n.Take(t.Context(), Wants{})
		if err != nil {
			t.Fatal(err)
		}
		p := s.Network.Subnet
		if networks[p] || !userNetworks.Contains(p.Addr()) || p.Bits() != 24 || s.Network.TAP != "" {
			t.Fatalf("slot %d has network %+v", s.Number, s.Network)
		}
		networks[p] = true
	}
	if _, err := n.Take(t.Context(), Wants{}); warmboot.CodeOf(err) != warmboot.Exhausted {
		t.Errorf("one more: %v", err)
	}
	seventh := &Slot{Number: 7, net: n}
	if err := errors.Join(seventh.Release(), seventh.Release()); err != nil {
		t.Error(err)
	}
	if s, err := n.Take(t.Context(), Wants{}); err != nil || s.Number != 7 {
		t.Errorf("after slot 7 was freed: %+v, %v", s, err)
	}
	for _, w := range []Wants{{Egress: warmboot.Egress{Policy: warmboot.EgressDeny}}, {Bandwidth: warmboot.Bandwidth{IngressMbit: 1}}} {
		if _, err := n.Take(t.Context(), w); warmboot.CodeOf(err) != warmboot.Invalid || !strings.Contains(err.Error(), "user mode") {
			t.Errorf("%+v: %v", w, err)
		}
	}
	if _, err := Open(t.Context(), Config{Mode: "bridge", Owner: owner()}); warmboot.CodeOf(err) != warmboot.Invalid {
		t.Errorf("another mode: %v", err)
	}
	if _, err := Open(t.Context(), Config{Mode: User, Owner: "me"}); warmboot.CodeOf(err) != warmboot.Invalid {
		t.Errorf("another owner: %v", err)
	}
}

func TestBlocks(t *testing.T) {
	t.Parallel()
	needRoot(t)
	ns := namespace(t)
	addRoute := func(network string) {
		configure(t, ns, func(h *netlink.Handle) error {
			lo, err := h.LinkByName("lo")
			if err != nil {
				return err
			}
			return h.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(network))})
		})
	}
	claim := func(cidr, owner string) (b block, err error) {
		err = netns.In(ns, func() error {
			b, err = claimBlock(netip.MustParsePrefix(cidr), owner, "wb"+owner+"-")
			return err
		})
		if err == nil {
			t.Cleanup(func() { b.claim.Close() })
		}
		return b, err
	}
	for _, cidr := range []string{"2001:db8::/32", "10.0.0.0/31", "10.0.0.1/8"} {
		if _, err := claim(cidr, "000001"); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%s: %v", cidr, err)
		}
	}
	addRoute("0.0.0.0/1") // a VPN's way to everywhere is nowhere in particular
	addRoute("100.64.128.0/20")
	for _, c := range []struct{ owner, want string }{
		{"000000", "100.64.0.0/17"}, // the first
		{"000080", "100.65.0.0/17"}, // the same one, which is claimed; the next has a route in it
		{"00007f", "100.65.128.0/17"},
		{"000081", "100.66.0.0/17"},
		{"00001f", "100.79.128.0/17"},
	} {
		if got, err := claim("100.64.0.0/10", c.owner); err != nil || got.String() != c.want {
			t.Errorf("owner %s has %v (%v), want %s", c.owner, got, err, c.want)
		}
	}
	if b, err := claim("10.1.0.0/24", "000000"); err != nil || b.slots() != 128 || b.String() != "10.1.0.0/24" {
		t.Errorf("in a small network: %v, %v", b, err)
	} else if a := b.addresses(127); a.host.String() != "10.1.0.254" || a.slot.String() != "10.1.0.255" {
		t.Errorf("its last slot has %+v", a)
	}
	addRoute("100.64.0.0/10")
	if _, err := claim("100.64.0.0/10", "000000"); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "100.64.0.0/10 by lo") {
		t.Errorf("in a network that the host has a route to: %v", err)
	}
	if _, err := claim("100.127.255.0/24", "000000"); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("in the guests' own network: %v", err)
	}
}

func TestRanges(t *testing.T) {
	t.Parallel()
	var all []netip.Prefix
	for _, p := range []string{"10.0.0.0/8", "255.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "192.0.2.7/32", "0.0.0.0/32"} {
		all = append(all, netip.MustParsePrefix(p))
	}
	got := ranges(all)
	want := []addressRange{{0, 0}, {10 << 24, 12<<24 - 1}, {0xc0000207, 0xc0000207}, {255 << 24, 1<<32 - 1}}
	if len(got) != len(want) {
		t.Fatalf("%x, want %x", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%x, want %x", got[i], want[i])
		}
	}
	if got := ranges([]netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}); len(got) != 1 || got[0] != (addressRange{0, 1<<32 - 1}) {
		t.Errorf("everything: %x", got)
	}
}
