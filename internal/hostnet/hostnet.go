// Package hostnet gives microVMs their networks and keeps guests off the host.
//
// A slot is the place of one microVM. Its number decides the user that the VMM runs as. There are two kinds.
//
// With a TAP, a slot is a network namespace with the same things in it as every other: a TAP for the VMM, the same addresses for the
// guest and its gateway, rules, and one end of a veth pair. So a frozen guest can be thawed in any. Only the host's end has an address and
// a name of its own. The VMM runs in the namespace, where there is nothing for it; what its guest sends leaves by the veth pair,
// through two translations of addresses: in the slot to the slot's own address, on the host to the host's. Rules in the slot keep
// the container's egress policy, rules on the host keep slots away from the host and from one another. A Net has slots ready, so that
// taking one is taking it from a list.
//
// In user mode, for hosts where that is not possible, the VMM routes by itself and publishes ports by itself, and a Guard on the host is
// all that can be done about where guests connect to.
package hostnet

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"regexp"
	"sync"

	"warmboot"
	"warmboot/internal/vmm"
)

// MaxSlots is how many slots an owner can have: as many as there are networks in userNetworks.
const MaxSlots = 1 << 14

// DefaultReady is how many slots are kept ready.
const DefaultReady = 8

// Mode is how microVMs are connected.
type Mode string

// The modes.
const (
	Auto Mode = "auto" // TAP where that works, else User
	TAP  Mode = "tap"
	User Mode = "user"
)

// userAsked is why there are no TAPs in mode User.
const userAsked = "the configuration asks for networks in user mode"

var validOwner = regexp.MustCompile(`^[0-9a-f]{6}$`)

// Config says whose slots, and of what kind. Zero values of the optional fields take the defaults named.
type Config struct {
	Mode Mode // Auto
	// Owner is six hexadecimal digits by which everything that is made on the host can be told from other owners': no two warmboots
	// on a host may have the same.
	Owner string
	// FirstUID is the user of slot 0's VMM. With 0, VMMs run as we do.
	FirstUID uint32
	// CIDR is where slots with TAPs have their addresses on the host. Its owner takes a part of it for itself. DefaultCIDR
	CIDR netip.Prefix
	// Ready is how many slots are kept ready: DefaultReady; none if it is negative.
	Ready int
	// Registries are the TCP ports of this host that guests may reach, and find on their gateway.
	Registries []uint16
	Log        *slog.Logger

	resolvConf string       // another file than resolvConf, for tests
	onStep     func(string) // is told of each step of building a slot, for tests
}

// Net hands out slots. It is safe for concurrent use.
type Net struct {
	Config
	mode Mode
	why  string // why not TAP; empty if so

	numbers numbers
	keeper  *keeper // of slots with TAPs; nil if there are none and will be none
	guard   *guard  // of the host, against guests in user mode; nil if VMMs have no users of their own, or it cannot be
}

// Open finds out, by trying, what kind of slots there can be, and makes ready for Adopt. Without a part of the host's network that it
// needs, it is an Unavailable error in mode TAP, and user mode in mode Auto. Nothing of an earlier process is touched yet.
func Open(ctx context.Context, c Config) (*Net, error) {
	if c.CIDR == (netip.Prefix{}) {
		c.CIDR = DefaultCIDR
	}
	if c.Ready == 0 {
		c.Ready = DefaultReady
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if !validOwner.MatchString(c.Owner) {
		return nil, warmboot.Errorf(warmboot.Invalid, "open network", "the owner of network slots is %q, and not six hexadecimal digits", c.Owner)
	}
	n := &Net{Config: c, mode: User, numbers: numbers{total: MaxSlots}}
	switch c.Mode {
	case User:
		n.why = userAsked
	case TAP, Auto, "":
		err := n.openTAP(ctx)
		switch {
		case err == nil:
			n.mode = TAP
			return n, nil
		case c.Mode == TAP || warmboot.CodeOf(err) != warmboot.Unavailable:
			return nil, err
		}
		n.why = err.Error()
	default:
		return nil, warmboot.Errorf(warmboot.Invalid, "open network", "%q is no kind of network; use %s, %s or %s", c.Mode, Auto, TAP, User)
	}
	return n, n.keepOld(c)
}

// openTAP makes ready for slots with TAPs, if they work here. Where there are some from before, they do. The host forwards packets for them when it
// is known that they work.
func (n *Net) openTAP(ctx context.Context) error {
	if err := allowed(); err != nil {
		return err
	}
	k, err := openKeeper(n.Config, &n.numbers)
	if err != nil {
		return err
	}
	old, err := k.ourLinks()
	if err == nil && len(old) == 0 {
		err = k.try(ctx)
	}
	if err == nil {
		err = k.fence.raise()
	}
	if err != nil {
		return errors.Join(err, k.close())
	}
	n.keeper = k
	return nil
}

// keepOld makes ready to adopt slots with TAPs where no new ones are made any more.
func (n *Net) keepOld(c Config) error {
	if os.Geteuid() != 0 {
		return nil
	}
	c.Ready = -1
	numbers, err := (&keeper{rules: newRules(c)}).ourLinks()
	if err != nil || len(numbers) == 0 {
		return err
	}
	if n.keeper, err = openKeeper(c, &n.numbers); err != nil {
		c.Log.Warn("MicroVMs with TAPs that run cannot be taken charge of", "err", err)
		n.keeper = nil
	} else if err := n.keeper.fence.learn(); err != nil {
		c.Log.Warn("It is not known what this machine forwarded before warmboot turned that on", "err", err)
	}
	n.numbers.total = MaxSlots
	return nil
}

// Mode is TAP or User.
func (n *Net) Mode() Mode { return n.mode }

// Why tells in one line why the mode is not TAP; it is empty if it is.
func (n *Net) Why() string { return n.why }

// Used tells how many slots are taken, and Total how many there can be.
func (n *Net) Used() int { return n.numbers.count() }

// Total is how many slots there can be.
func (n *Net) Total() int { return n.numbers.total }

// Wants is what a microVM needs of its network.
type Wants struct {
	Forwards  []vmm.Forward
	Egress    warmboot.Egress
	Bandwidth warmboot.Bandwidth
}

// Slot is the place of one microVM.
type Slot struct {
	Number  int
	Network vmm.Network

	net *Net
	tap *tap // nil in user mode

	mu   sync.Mutex
	gone bool
}

// Take returns a slot with what is wanted. On an error nothing is taken: an Exhausted one if there is no slot left, a Conflict if a port
// is used, an Invalid one for a policy that cannot be kept here.
func (n *Net) Take(ctx context.Context, w Wants) (*Slot, error) {
	if n.mode == User {
		return n.takeUser(w)
	}
	return n.keeper.take(ctx, n, w)
}

// Adopt takes charge again of the slot of a microVM that was started by an earlier process of ours and still runs, as process pid, on
// this network. A slot that is not what it was is an Unavailable error.
func (n *Net) Adopt(number, pid int, network vmm.Network, w Wants) (*Slot, error) {
	if network.TAP == "" {
		n.numbers.claim(number)
		return &Slot{Number: number, Network: network, net: n}, nil
	}
	if n.keeper == nil {
		return nil, warmboot.Errorf(warmboot.Unavailable, "adopt network slot", "the microVM has a TAP, and there can be none any more: %s", n.why)
	}
	return n.keeper.adopt(n, number, pid, w)
}

// Settle is to be called once everything is adopted that can be. It removes what is left of slots that nobody has, and begins to make
// new ones.
func (n *Net) Settle() error {
	if n.FirstUID != 0 {
		g := &guard{owner: n.Owner, first: n.FirstUID, last: n.FirstUID + MaxSlots - 1, ports: n.Registries}
		switch err := g.install(); {
		case err == nil:
			n.guard = g
			g.watch(n.Log)
		case warmboot.CodeOf(err) != warmboot.Unavailable:
			return err
		case n.mode == User:
			n.Log.Warn("Containers can reach every service that listens on this machine, because no network rule could be set", "err", err)
		}
	}
	if n.keeper == nil {
		return removeLeftovers(n.Config)
	}
	return n.keeper.settle()
}

// Close ends the making of slots and removes those that nobody has taken. Those that are taken stay as they are, with their ports and
// policies, for the next process to adopt; but names that must be asked for on the host's loopback are not resolved meanwhile.
func (n *Net) Close() error {
	var err error
	if n.guard != nil {
		n.guard.unwatch()
		if n.Used() == 0 {
			err = n.guard.remove()
		}
	}
	if n.keeper != nil {
		err = errors.Join(err, n.keeper.close())
	}
	return err
}

// Limit replaces the slot's egress policy and bandwidth limits. Connections that a stricter policy forbids are cut.
func (s *Slot) Limit(e warmboot.Egress, b warmboot.Bandwidth) error {
	if s.tap == nil {
		return s.net.checkUser(Wants{Egress: e, Bandwidth: b})
	}
	return s.limit(e, b)
}

// Up says that the slot's microVM is up: whoever waited for it waits no more, and other slots may be made ready.
func (s *Slot) Up() {
	if s.tap != nil {
		s.net.keeper.up(s.tap)
	}
}

// Release gives the slot back, when its microVM's process has ended. Its ports are free when this returns. Idempotent.
func (s *Slot) Release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil
	}
	s.gone = true
	if s.tap == nil {
		s.net.numbers.free(s.Number)
		return nil
	}
	return s.net.keeper.release(s.tap)
}
