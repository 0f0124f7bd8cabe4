package hostnet

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/netns"
	"warmboot/internal/vmm"
)

func TestSlotsAreAlikeAndTheirOwn(t *testing.T) {
	t.Parallel()
	n := open(t, config(t))
	a, b := take(t, n, Wants{}), take(t, n, Wants{})
	if a.Number == b.Number || a.Network.Namespace == b.Network.Namespace || a.tap.addresses == b.tap.addresses || a.tap.link == b.tap.link {
		t.Errorf("two slots share something: %+v %+v", a.tap, b.tap)
	}
	b.Network.Namespace = a.Network.Namespace
	if x, y := fmt.Sprintf("%+v", a.Network), fmt.Sprintf("%+v", b.Network); x != y {
		t.Errorf("what a guest sees differs:\n%s\n%s", x, y)
	}
	for _, s := range []*Slot{a, b} {
		link, err := netlink.LinkByName(s.tap.link)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("warmboot %s slot %d", n.Owner, s.Number); link.Attrs().Alias != want {
			t.Errorf("%s says that it is %q, want %q", s.tap.link, link.Attrs().Alias, want)
		}
	}
	if got := n.Used(); got != 2 {
		t.Errorf("%d slots are used, want 2", got)
	}
	if err := errors.Join(a.Release(), a.Release()); err != nil {
		t.Error(err)
	}
	if got := n.Used(); got != 1 {
		t.Errorf("%d slots are used after one was released, want 1", got)
	}
}

func TestExhausted(t *testing.T) {
	t.Parallel()
	c := config(t)
	c.CIDR = netip.MustParsePrefix("10.201.0.0/29") // four slots
	n := open(t, c)
	if n.Total() != 4 {
		t.Fatalf("there is room for %d slots", n.Total())
	}
	var all []*Slot
	for range 4 {
		all = append(all, take(t, n, Wants{}))
	}
	if _, err := n.Take(t.Context(), Wants{}); warmboot.CodeOf(err) != warmboot.Exhausted {
		t.Errorf("a fifth slot: %v", err)
	}
	other := c
	other.Owner = owner()
	if _, err := Open(t.Context(), other); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "another warmboot uses it") {
		t.Errorf("another owner in the same network: %v", err)
	}
	// Whoever comes when a slot is about to be free waits for it.
	if err := all[2].Release(); err != nil {
		t.Fatal(err)
	}
	if s := take(t, n, Wants{}); s.Number != all[2].Number {
		t.Errorf("got slot %d, want %d", s.Number, all[2].Number)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := all[1].Release(); err != nil {
		t.Fatal(err)
	}
	if s, err := n.Take(over, Wants{}); err == nil { // unless it was free already
		s.Release()
	} else if warmboot.CodeOf(err) != warmboot.Canceled {
		t.Errorf("canceled while waiting: %v", err)
	}
}

// The next in a slot has nothing of the one before, although it has its address.
func TestNothingIsInherited(t *testing.T) {
	t.Parallel()
	world := newOutside(t)
	c := config(t)
	c.CIDR, c.Ready = netip.MustParsePrefix("10.201.1.0/30"), -1
	n := open(t, c)
	server := serve(t, world.ns, anyPort(world.addr), "world")
	at := freePort(t, netip.IPv4Unspecified())
	first := take(t, n, Wants{Forwards: []vmm.Forward{{Protocol: warmboot.TCP, HostIP: netip.IPv4Unspecified(), HostPort: at.Port(), GuestPort: 80}}, Bandwidth: warmboot.Bandwidth{EgressMbit: 1}})
	g := newGuest(t, first)
	serve(t, g.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 80), "guest")
	reaches(t, g.ns, "tcp", server.String(), "world")
	reaches(t, world.ns, "tcp", netip.AddrPortFrom(world.host, at.Port()).String(), "guest")
	reaches(t, nil, "tcp", netip.AddrPortFrom(localhost, at.Port()).String(), "guest")
	address := first.tap.slot
	if got := flows(t, address); got < 3 {
		t.Fatalf("the host tracks %d connections of the slot, and there were 3", got)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // one of the two has the same number
		next := take(t, n, Wants{})
		if next.Number != first.Number {
			continue
		}
		if next.tap.slot != address {
			t.Errorf("slot %d has address %s, and had %s", next.Number, next.tap.slot, address)
		}
		if got := flows(t, address); got != 0 {
			t.Errorf("the host still tracks %d connections of the slot", got)
		}
		lost(t, world.ns, "tcp", netip.AddrPortFrom(world.host, at.Port()).String())
	}
}

func flows(t *testing.T, slot netip.Addr) (n int) {
	t.Helper()
	all, err := whole(func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if (slotFlows{slot: true}).MatchConntrackFlow(f) {
			n++
		}
	}
	return n
}

func TestPortOfAnotherProgram(t *testing.T) {
	t.Parallel()
	n := open(t, config(t))
	for _, p := range []warmboot.Protocol{warmboot.TCP, warmboot.UDP} {
		theirs, release, err := Hold(p, anyPort(localhost))
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		free, releaseFree, err := Hold(p, anyPort(localhost))
		if err != nil {
			t.Fatal(err)
		}
		releaseFree()
		before := n.Used()
		var forwards []vmm.Forward
		for _, at := range []netip.AddrPort{free, theirs} {
			forwards = append(forwards, vmm.Forward{Protocol: p, HostIP: at.Addr(), HostPort: at.Port(), GuestPort: 80})
		}
		_, err = n.Take(t.Context(), Wants{Forwards: forwards})
		if warmboot.CodeOf(err) != warmboot.Conflict || !strings.Contains(err.Error(), strconv.Itoa(int(theirs.Port()))) {
			t.Errorf("%s: %v", p, err)
		}
		if n.Used() != before {
			t.Errorf("%s: a slot is taken all the same", p)
		}
		if _, release, err := Hold(p, free); err != nil {
			t.Errorf("%s: the other port is not free again: %v", p, err)
		} else {
			release()
		}
	}
}

func TestTwoOwners(t *testing.T) {
	t.Parallel()
	world := newOutside(t)
	server := serve(t, world.ns, anyPort(world.addr), "world")
	here := open(t, config(t))
	c := config(t)
	there, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := there.Settle(); err != nil {
		t.Fatal(err)
	}
	if here.keeper.block.Overlaps(there.keeper.block.Prefix) {
		t.Fatalf("both have addresses in %s", here.keeper.block.Prefix)
	}
	at := freePort(t, netip.IPv4Unspecified())
	mine := newGuest(t, take(t, here, Wants{Forwards: []vmm.Forward{{Protocol: warmboot.TCP, HostIP: netip.IPv4Unspecified(), HostPort: at.Port(), GuestPort: 80}}}))
	inside := serve(t, mine.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 80), "mine")
	slot, err := there.Take(t.Context(), Wants{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("apart", func(t *testing.T) {
		theirs := newGuest(t, slot)
		reaches(t, theirs.ns, "tcp", server.String(), "world")
		refused(t, theirs.ns, "tcp", netip.AddrPortFrom(mine.slot.tap.slot, inside.Port()).String())
		refused(t, theirs.ns, "tcp", netip.AddrPortFrom(world.host, at.Port()).String())
		refused(t, theirs.ns, "tcp", netip.AddrPortFrom(slot.Network.Gateway(), at.Port()).String())
	})
	// The end of one, and its next beginning, are nothing to the other.
	if err := errors.Join(slot.Release(), there.Close()); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, c)
	works := func() {
		t.Helper()
		reaches(t, mine.ns, "tcp", server.String(), "world")
		reaches(t, nil, "tcp", netip.AddrPortFrom(localhost, at.Port()).String(), "mine")
	}
	works()
	again := open(t, c)
	take(t, again, Wants{})
	works()
}

// Whoever reloads a firewall that begins with "flush ruleset" removes our rules too. They come back, with what is published.
func TestRulesComeBack(t *testing.T) {
	t.Parallel()
	n := open(t, config(t))
	at := freePort(t, localhost)
	g := newGuest(t, take(t, n, Wants{Forwards: []vmm.Forward{{Protocol: warmboot.TCP, HostIP: localhost, HostPort: at.Port(), GuestPort: 80}}}))
	serve(t, g.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 80), "guest")
	for _, soon := range []bool{false, true} {
		removeTable(t, n.keeper.rules.name)
		if soon { // before that is noticed
			other := freePort(t, localhost)
			s, err := n.Take(t.Context(), Wants{Forwards: []vmm.Forward{{Protocol: warmboot.TCP, HostIP: localhost, HostPort: other.Port(), GuestPort: 80}}})
			if err != nil {
				t.Fatalf("while the rules are away: %v", err)
			}
			if err := s.Release(); err != nil {
				t.Error(err)
			}
		} else {
			deadline := time.Now().Add(10 * watch)
			for !tableExists(t, n.keeper.rules.name) {
				if time.Now().After(deadline) {
					t.Fatal("the rules do not come back")
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
		reaches(t, nil, "tcp", at.String(), "guest")
	}
}

// holderVar makes this test binary another process of an owner: what to do there, as JSON.
const holderVar = "WARMBOOT_TEST_HOLDER"

// holding is what the other process is to do.
type holding struct {
	Owner      string
	FirstUID   uint32
	ResolvConf string
	CIDR       netip.Prefix
	Die        string // the step of building a slot at which it is killed
	Port       uint16
	Egress     warmboot.Egress
	Firewall   string // what is wrong with a host of its own, for TestObstacles
	Fence      string // which of the hosts of TestFence it is
}

// held is what it says once it has a slot in which a process runs.
type held struct {
	Number, PID int
	Network     vmm.Network
}

// TestHolder is the other process.
func TestHolder(t *testing.T) {
	text := os.Getenv(holderVar)
	if text == "" {
		return // it is part of other tests
	}
	var h holding
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		t.Fatal(err)
	}
	if h.Firewall != "" {
		tryBehind(t, h.Firewall)
		return
	}
	if h.Fence != "" {
		fences[h.Fence](t)
		return
	}
	c := Config{Mode: TAP, Owner: h.Owner, FirstUID: h.FirstUID, Ready: -1, resolvConf: h.ResolvConf, CIDR: h.CIDR}
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	n.keeper.onStep = func(name string) {
		if name == h.Die {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	s, err := n.Take(t.Context(), h.wants())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "300") // as a VMM would
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := netns.Do(s.Network.Namespace, cmd.Start); err != nil {
		t.Fatal(err)
	}
	json.NewEncoder(os.Stdout).Encode(held{s.Number, cmd.Process.Pid, s.Network})
	select {} // until it is killed
}

func (h holding) wants() Wants {
	w := Wants{Egress: h.Egress}
	if h.Port != 0 {
		w.Forwards = []vmm.Forward{{Protocol: warmboot.TCP, HostIP: localhost, HostPort: h.Port, GuestPort: 80}}
	}
	return w
}

// startHolder starts the other process. It is killed at the end of the test at the latest.
func startHolder(t *testing.T, h holding) (*exec.Cmd, *bufio.Reader) {
	t.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHolder$")
	cmd.Env = append(os.Environ(), holderVar+"="+string(text))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	return cmd, bufio.NewReader(out)
}

func kill(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// hold runs the other process until it has a slot.
func hold(t *testing.T, h holding) (*exec.Cmd, held) {
	t.Helper()
	cmd, out := startHolder(t, h)
	line, err := out.ReadBytes('\n')
	var got held
	if err == nil {
		err = json.Unmarshal(line, &got)
	}
	if err != nil {
		t.Fatalf("the other process says %q: %v", line, err)
	}
	t.Cleanup(func() { syscall.Kill(got.PID, syscall.SIGKILL) })
	got.Network.Namespace = fmt.Sprintf("/proc/%d/ns/net", got.PID) // which is there when the other is not any more
	return cmd, got
}

// served is a slot whose guest serves a published port, and whose holder was killed.
func served(t *testing.T, c Config, at netip.AddrPort) (holding, held) {
	t.Helper()
	h := holding{Owner: c.Owner, FirstUID: c.FirstUID, ResolvConf: c.resolvConf, Port: at.Port()}
	holder, slot := hold(t, h)
	g := newGuest(t, &Slot{Network: slot.Network})
	serve(t, g.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 80), "guest")
	kill(holder)
	return h, slot
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	needRoot(t)
	world := newOutside(t)
	server := serve(t, world.ns, anyPort(world.addr), "world")
	c := config(t)
	c.CIDR = netip.MustParsePrefix("10.201.2.0/29") // no room for anybody else
	at := freePort(t, localhost)
	h := holding{Owner: c.Owner, FirstUID: c.FirstUID, ResolvConf: c.resolvConf, CIDR: c.CIDR, Port: at.Port(), Egress: warmboot.Egress{Policy: warmboot.EgressDeny}}
	other, slot := hold(t, h)
	g := newGuest(t, &Slot{Network: slot.Network})
	serve(t, g.ns, netip.AddrPortFrom(netip.IPv4Unspecified(), 80), "guest")
	works := func(when string) {
		t.Helper()
		t.Run(when, func(t *testing.T) {
			reaches(t, nil, "tcp", at.String(), "guest")
			refused(t, g.ns, "tcp", server.String())
		})
	}
	works("before")
	kill(other)
	works("while nobody is there")

	// What a crash may leave: a rule, a published port and a slot that nobody has.
	litter(t, c)
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, c)
	})
	s, err := n.Adopt(slot.Number, slot.PID, slot.Network, h.wants())
	if err != nil {
		t.Fatal(err)
	}
	works("before it is settled")
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	works("afterwards")
	checkNoLitter(t, n)
	if n.Used() != 1 {
		t.Errorf("%d slots are used", n.Used())
	}
	if _, _, err := Hold(warmboot.TCP, at); warmboot.CodeOf(err) != warmboot.Conflict {
		t.Errorf("the published port is not held: %v", err)
	}
	if fresh := take(t, n, Wants{}); fresh.Number == s.Number || fresh.tap.addresses == s.tap.addresses {
		t.Error("a slot is taken twice")
	}
	if err := s.Limit(warmboot.Egress{}, warmboot.Bandwidth{}); err != nil {
		t.Fatal(err)
	}
	reaches(t, g.ns, "tcp", server.String(), "world")
	if err := s.Release(); err != nil {
		t.Error(err)
	}
}

// Slots from before stay what they are when no new ones are wanted any more, and when the next process does not get far.
func TestOldSlotsInUserMode(t *testing.T) {
	t.Parallel()
	needRoot(t)
	c := config(t)
	at := freePort(t, localhost)
	h, slot := served(t, c, at)
	for _, mode := range []Mode{TAP, User} {
		c.Mode = mode
		n, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		reaches(t, nil, "tcp", at.String(), "guest")
	}
	n := open(t, c)
	if _, err := n.Adopt(slot.Number, slot.PID, slot.Network, h.wants()); err == nil {
		t.Fatal("a slot is adopted after what nobody has was removed")
	}
	t.Run("adopted in time", func(t *testing.T) {
		c := config(t)
		h, slot := served(t, c, at)
		c.Mode = User
		n, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		old, err := n.Adopt(slot.Number, slot.PID, slot.Network, h.wants())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Settle(); err != nil {
			t.Fatal(err)
		}
		reaches(t, nil, "tcp", at.String(), "guest")
		fresh, err := n.Take(t.Context(), Wants{})
		if err != nil || fresh.Network.TAP != "" || fresh.Number == old.Number || n.Used() != 2 {
			t.Errorf("a new slot is %+v, %v", fresh, err)
		}
		if err := errors.Join(fresh.Release(), old.Release(), n.Close()); err != nil {
			t.Error(err)
		}
		nothingLeft(t, c)
	})
}

// litter puts into an owner's table, and on its interfaces, what is none of anybody's.
func litter(t *testing.T, c Config) {
	t.Helper()
	r := newRules(c)
	b, err := newBatch(nil, r.name)
	if err != nil {
		t.Fatal(err)
	}
	b.rule(&nftables.Chain{Name: "guard", Table: b.table}, iif(r.links), drop())
	m := r.publishedSet(b.table)
	m.ID = 0
	if err := b.conn.SetAddElements(m, r.elements(map[portKey]netip.AddrPort{{warmboot.TCP, netip.MustParseAddrPort("127.0.0.1:1")}: netip.MustParseAddrPort("100.64.0.1:1")})); err != nil {
		t.Fatal(err)
	}
	if err := b.commit(); err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = r.links + "16000"
	pair := netlink.NewVeth(attrs)
	pair.PeerName = "litter" + c.Owner
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
}

func checkNoLitter(t *testing.T, n *Net) {
	t.Helper()
	r := n.keeper.rules
	if _, err := netlink.LinkByName(r.links + "16000"); err == nil {
		t.Error("a slot that nobody has is left")
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: r.name}
	elements, err := conn.GetSetElements(r.publishedSet(table))
	if err != nil || len(elements) != len(r.published) {
		t.Errorf("%d ports are published (%v), want %d", len(elements), err, len(r.published))
	}
	rules, err := conn.GetRules(table, &nftables.Chain{Name: "guard", Table: table})
	if err != nil || len(rules) != 8 {
		t.Errorf("the guard has %d rules (%v), want 8", len(rules), err)
	}
}

// What claims to be a slot and is none is not adopted.
func TestAdoptFails(t *testing.T) {
	t.Parallel()
	needRoot(t)
	c := config(t)
	h := holding{Owner: c.Owner, FirstUID: c.FirstUID, ResolvConf: c.resolvConf}
	other, slot := hold(t, h)
	kill(other)
	n := open(t, c) // what was held is removed
	bystander := exec.Command("sleep", "60")
	if err := bystander.Start(); err != nil {
		t.Fatal(err)
	}
	defer kill(bystander)
	theirs := take(t, n, Wants{})
	for name, try := range map[string]struct{ number, pid int }{
		"its veth pair is gone": {slot.Number, slot.PID}, "no process": {slot.Number, 1 << 29}, "a process that is in no slot": {theirs.Number, bystander.Process.Pid},
		"another slot's process": {theirs.Number, slot.PID},
	} {
		s, err := n.Adopt(try.number, try.pid, slot.Network, Wants{})
		if warmboot.CodeOf(err) != warmboot.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			s.Release()
		}
	}
	if n.Used() != 1 {
		t.Errorf("%d slots are used, want 1", n.Used())
	}
}

// A published port that another program took while nobody held it still leads to its guest.
func TestPortTakenWhileAway(t *testing.T) {
	t.Parallel()
	needRoot(t)
	c := config(t)
	at := freePort(t, localhost)
	h, slot := served(t, c, at)
	_, release, err := Hold(warmboot.TCP, at)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}()
	s, err := n.Adopt(slot.Number, slot.PID, slot.Network, h.wants())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	reaches(t, nil, "tcp", at.String(), "guest")
	if err := s.Release(); err != nil {
		t.Error(err)
	}
}

// steps are those at which building a slot can be interrupted.
var steps = []string{"namespace", "TAP", "rules", "veth pair", "inside", "host"}

// However far a slot is when we are killed, nothing of it stays, and the next process of the owner works.
func TestKilledWhileBuilding(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, step := range steps {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			c := config(t)
			c.Ready = -1
			h := holding{Owner: c.Owner, FirstUID: c.FirstUID, ResolvConf: c.resolvConf, Die: step}
			cmd, _ := startHolder(t, h)
			err := cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("the other process was not killed: %v", err)
			}
			if n := open(t, c); take(t, n, Wants{}).Number != 0 {
				t.Error("the first slot is not free")
			}
		})
	}
	t.Run("and left alone", func(t *testing.T) { // the kernel removes it, without a next process
		t.Parallel()
		c := config(t)
		cmd, _ := startHolder(t, holding{Owner: c.Owner, FirstUID: c.FirstUID, ResolvConf: c.resolvConf, Die: "host"})
		cmd.Wait()
		deadline := time.Now().Add(10 * time.Second)
		for {
			links, err := (&keeper{rules: newRules(c)}).ourLinks()
			if err != nil {
				t.Fatal(err)
			}
			if len(links) == 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("slots %v are left", links)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err := removeLeftovers(c); err != nil {
			t.Fatal(err)
		}
		if err := (&guard{owner: c.Owner, first: c.FirstUID}).remove(); err != nil {
			t.Fatal(err)
		}
		nothingLeft(t, c)
	})
}

// TestLeaks makes and removes slots by the hundred. It is not parallel: it counts what the whole process, and the kernel, have.
func TestLeaks(t *testing.T) {
	needRoot(t)
	c := config(t)
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	settled := func() bool { // nothing is under way
		n.keeper.mu.Lock()
		defer n.keeper.mu.Unlock()
		return len(n.keeper.used) == 0 && len(n.keeper.ready) == c.Ready
	}
	waitFor(t, "the slot that is kept ready", settled)
	before := count(t)
	for range 2 {
		var all []*Slot
		for i := range 100 {
			w := Wants{Egress: warmboot.Egress{Policy: warmboot.EgressList, DNS: true}, Bandwidth: warmboot.Bandwidth{EgressMbit: 10}}
			if i%4 == 0 {
				at, release, err := Hold(warmboot.UDP, anyPort(localhost))
				if err != nil {
					t.Fatal(err)
				}
				release()
				w.Forwards = []vmm.Forward{{Protocol: warmboot.UDP, HostIP: at.Addr(), HostPort: at.Port(), GuestPort: 9}}
			}
			s, err := n.Take(t.Context(), w)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		during := count(t)
		if during.links-before.links < 90 || during.namespaces-before.namespaces < 50 || during.files-before.files < 90 || during.elements-before.elements < 25 {
			t.Errorf("with 100 slots there is %+v, and before %+v: what is counted is not what slots consist of", during, before)
		}
		for _, s := range all {
			if err := s.Release(); err != nil {
				t.Error(err)
			}
		}
	}
	waitFor(t, "the removal of the slots", settled)
	waitFor(t, fmt.Sprintf("no more than there was before, %+v", before), func() bool {
		now := count(t)
		now.namespaces -= 60 // others on this machine make some too, and the kernel does not count exactly; 200 would be too many
		return now.links <= before.links && now.files <= before.files && now.namespaces <= before.namespaces && now.elements <= before.elements
	})
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	nothingLeft(t, c)
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s; there is %+v", what, count(t))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// counts are of what slots consist of: interfaces on the host, network namespaces of the whole kernel, our file descriptors and
// published ports.
type counts struct{ links, namespaces, files, elements int }

func count(t *testing.T) (c counts) {
	t.Helper()
	links, err := whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	slabs, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(slabs)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "net_namespace" {
			if c.namespaces, err = strconv.Atoi(f[1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c.namespaces == 0 {
		t.Fatal("the kernel does not tell how many network namespaces there are")
	}
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if elements, err := conn.GetSetElements((&rules{}).publishedSet(table)); err == nil {
			c.elements += len(elements)
		}
	}
	c.links, c.files = len(links), len(files)
	return c
}
