package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"warmboot"
	"warmboot/internal/netns"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// How the keeper waits. It works when nobody has taken or released a slot for a moment and no microVM is on its way up, so as not to take
// the processor away from the very boot that the slot is for; but it does not wait for ever for such a moment.
const (
	quiet     = 500 * time.Millisecond
	impatient = 5 * time.Second
	watch     = 2 * time.Second  // between two looks at what others may have changed
	afterFail = 10 * time.Second // before what has failed is tried again
)

// keeper makes and keeps slots with TAPs.
//
// A slot is used once. Building one takes a few milliseconds, and a namespace that is gone has nothing left in it, while one that
// is used again would have to be searched for what the last guest has left. Only its number and its addresses come back, when nothing on the
// host knows of them any more.
type keeper struct {
	Config
	numbers *numbers
	home    *os.File // the host's namespace
	block   block
	rules   *rules
	fence   fence

	mu     sync.Mutex
	ready  []*tap
	used   []*tap          // given back, and still to be removed
	taken  map[string]bool // by link; of adopted ones too
	coming map[*tap]bool   // handed out, and their microVMs are not up yet
	closed bool
	// freed is closed, and made anew, when slots have become ready or numbers free.
	freed chan struct{}

	wake    chan struct{} // somebody has taken or released a slot
	hurry   chan struct{} // somebody waits for a number
	stop    context.CancelFunc
	working sync.WaitGroup

	forwarder *forwarder // nil unless the host's resolver is where rules do not reach
}

func openKeeper(c Config, n *numbers) (_ *keeper, err error) {
	const op = "open network"
	k := &keeper{
		Config: c, numbers: n, taken: map[string]bool{}, coming: map[*tap]bool{}, freed: make(chan struct{}), wake: make(chan struct{}, 1), hurry: make(chan struct{}, 1),
		rules: newRules(c), fence: fence{log: c.Log},
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	if k.home, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	undo.Push("open namespace", k.home.Close)
	if k.block, err = claimBlock(c.CIDR, c.Owner, k.rules.links); err != nil {
		return nil, err
	}
	undo.Push("claim addresses", k.block.claim.Close)
	n.total = k.block.slots()
	if err := k.findResolver(); err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Msg: "the guests' name server cannot be set up", Err: err}
	}
	undo.Move()
	return k, nil
}

// step tells a test how far a slot is.
func (k *keeper) step(name string) {
	if k.onStep != nil {
		k.onStep(name)
	}
}

// take hands out a slot that is ready, or builds one.
func (k *keeper) take(ctx context.Context, n *Net, w Wants) (_ *Slot, err error) {
	s, err := k.get(ctx)
	if err != nil {
		return nil, err
	}
	slot := k.slot(n, s, w)
	defer func() {
		if err != nil {
			err = errors.Join(err, slot.Release())
		}
	}()
	if err := k.publish(s, w.Forwards); err != nil {
		return nil, err
	}
	return slot, slot.limit(w.Egress, w.Bandwidth)
}

func (k *keeper) slot(n *Net, s *tap, w Wants) *Slot {
	network := guestNetwork
	network.Namespace, network.Forwards = netns.Path(s.ns), w.Forwards
	return &Slot{Number: s.number, Network: network, net: n, tap: s}
}

// get is take without what is wanted.
func (k *keeper) get(ctx context.Context) (*tap, error) {
	for {
		k.mu.Lock()
		if k.closed {
			k.mu.Unlock()
			return nil, warmboot.Errorf(warmboot.Unavailable, "take network slot", "warmboot is about to end")
		}
		if last := len(k.ready) - 1; last >= 0 {
			s := k.ready[last]
			k.ready = k.ready[:last]
			k.taken[s.link], k.coming[s] = true, true
			k.mu.Unlock()
			k.numbers.rest(-1)
			k.poke()
			return s, nil
		}
		freed := k.freed
		k.mu.Unlock()
		number, err := k.numbers.take()
		if err == nil {
			s, err := k.build(number)
			if err != nil {
				k.numbers.free(number)
				return nil, &warmboot.Error{Code: warmboot.Internal, Op: "make network slot", Err: err}
			}
			k.mu.Lock()
			k.taken[s.link], k.coming[s] = true, true
			k.mu.Unlock()
			k.poke()
			return s, nil
		}
		if !k.numbers.resting() {
			return nil, err
		}
		// One is about to be ready, or to be free again.
		select {
		case k.hurry <- struct{}{}:
		default:
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, warmboot.Errorf(warmboot.CodeOf(ctx.Err()), "take network slot", "no slot became free in time: %w", context.Cause(ctx))
		}
	}
}

// publish takes ports on the host and sends what comes for them into a slot.
func (k *keeper) publish(s *tap, forwards []vmm.Forward) error {
	ports := map[portKey]netip.AddrPort{}
	for _, f := range forwards {
		key := portKey{f.Protocol, netip.AddrPortFrom(f.HostIP.Unmap(), f.HostPort)}
		_, release, err := Hold(f.Protocol, key.at)
		if err != nil {
			return errors.Join(err, k.letGo(s))
		}
		s.held = append(s.held, release)
		ports[key] = netip.AddrPortFrom(s.slot, f.GuestPort)
	}
	if err := k.rules.publish(ports); err != nil {
		return errors.Join(err, k.letGo(s))
	}
	s.ports = ports
	return nil
}

// letGo is the undo of publish.
func (k *keeper) letGo(s *tap) error {
	err := k.rules.unpublish(s.ports)
	s.ports = nil
	for _, release := range s.held {
		err = errors.Join(err, release())
	}
	s.held = nil
	return err
}

// limit sets a slot's policy and limits, as far as they are others than it has.
func (s *Slot) limit(e warmboot.Egress, b warmboot.Bandwidth) error {
	const op = "limit network"
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.tap
	sure := t.known
	t.known = false // until all is done
	if !sure || !reflect.DeepEqual(t.egress, e) {
		cut := e.Limited() && !t.fresh
		if cut && !sure {
			kept, err := keepsEgress(t.ns, e)
			if err != nil {
				return &warmboot.Error{Code: warmboot.Internal, Op: op, Msg: "what the policy is cannot be read", Err: err}
			}
			cut = !kept
		}
		set := setEgress
		if cut {
			set = cutEgress
		}
		if err := set(t.ns, e, t.addresses); err != nil {
			return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
		}
	}
	if !sure || t.bandwidth != b {
		if err := setBandwidth(t.ns, b); err != nil {
			return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
		}
	}
	t.egress, t.bandwidth, t.known, t.fresh = e, b, true, false
	return nil
}

// release takes a slot's ports away and leaves the rest to the keeper's work.
func (k *keeper) release(s *tap) error {
	err := k.letGo(s)
	k.numbers.rest(1)
	k.mu.Lock()
	k.used = append(k.used, s)
	delete(k.coming, s)
	closed := k.closed
	k.mu.Unlock()
	if closed {
		return errors.Join(err, k.tidy())
	}
	k.poke()
	return err
}

// up notes that the microVM in a slot is up.
func (k *keeper) up(s *tap) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.coming, s)
}

func (k *keeper) poke() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// adopt finds the slot of a microVM that runs.
func (k *keeper) adopt(n *Net, number, pid int, w Wants) (_ *Slot, err error) {
	const op = "adopt network slot"
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	fail := func(err error) (*Slot, error) {
		return nil, &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: fmt.Sprintf("slot %d is not what it was", number), Err: err}
	}
	s := &tap{number: number, link: k.linkName(number)}
	if s.ns, err = netns.OfProcess(pid); err != nil {
		return fail(err)
	}
	undo.Push("open namespace", s.ns.Close)
	if s.addresses, err = k.examine(s); err != nil {
		return fail(err)
	}
	k.numbers.claim(number)
	undo.Push("claim number", func() error { k.numbers.free(number); return nil })
	slot := k.slot(n, s, w)
	// In an order that is safe if the process before died in the middle of it.
	if err := slot.limit(w.Egress, w.Bandwidth); err != nil {
		return nil, err
	}
	ports := map[portKey]netip.AddrPort{}
	for _, f := range w.Forwards {
		key := portKey{f.Protocol, netip.AddrPortFrom(f.HostIP.Unmap(), f.HostPort)}
		if _, release, err := Hold(f.Protocol, key.at); err != nil {
			// It leads into the slot as it did all the time; whoever took it meanwhile waits in vain.
			k.Log.Warn("Another program has taken a published port while warmboot was away; connections go on to the container", "port", key.at, "protocol", f.Protocol, "err", err)
		} else {
			s.held = append(s.held, release)
		}
		ports[key] = netip.AddrPortFrom(s.slot, f.GuestPort)
	}
	undo.Push("publish ports", func() error { return k.letGo(s) })
	if err := k.rules.publish(ports); err != nil {
		return nil, err
	}
	s.ports = ports
	k.mu.Lock()
	k.taken[s.link] = true
	k.mu.Unlock()
	undo.Move()
	return slot, nil
}

// examine sees that a slot's two ends belong together, and reads its addresses.
func (k *keeper) examine(s *tap) (addresses, error) {
	link, err := netlink.LinkByName(s.link)
	if err != nil {
		return addresses{}, err
	}
	if alias := link.Attrs().Alias; alias != k.alias(s.number) {
		return addresses{}, fmt.Errorf("interface %s says that it is %q", s.link, alias)
	}
	var peer int
	if err := netns.In(s.ns, func() error {
		up, err := netlink.LinkByName(upName)
		if err != nil {
			return err
		}
		peer = up.Attrs().ParentIndex
		if up.Attrs().Index != link.Attrs().ParentIndex {
			return fmt.Errorf("the other end of %s is interface %d, and not %d", s.link, link.Attrs().ParentIndex, up.Attrs().Index)
		}
		_, err = netlink.LinkByName(tapName)
		return err
	}); err != nil {
		return addresses{}, err
	}
	if peer != link.Attrs().Index {
		return addresses{}, fmt.Errorf("the microVM's process is in another slot")
	}
	all, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return addresses{}, err
	}
	if len(all) != 1 {
		return addresses{}, fmt.Errorf("interface %s has %d addresses", s.link, len(all))
	}
	a, ok := netip.AddrFromSlice(all[0].IP.To4())
	if !ok {
		return addresses{}, fmt.Errorf("interface %s has the address %s", s.link, all[0].IP)
	}
	return addresses{host: a, slot: offset(a, 1)}, nil
}

// settle writes the rules, removes what nobody has, and begins to work.
func (k *keeper) settle() error {
	const op = "settle network"
	if err := k.rules.install(); err != nil {
		return &warmboot.Error{Code: warmboot.Unavailable, Op: op, Err: err}
	}
	numbers, err := k.ourLinks()
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	var left []*tap
	for _, n := range numbers {
		if link := k.linkName(n); !k.taken[link] {
			left = append(left, &tap{number: n, link: link, addresses: k.block.addresses(n)})
		}
	}
	if len(left) > 0 {
		k.Log.Info("Network slots that an earlier process has left are removed", "slots", len(left))
	}
	if err := k.destroy(left); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	ctx, cancel := context.WithCancel(context.Background())
	k.stop = cancel
	k.working.Go(func() { k.work(ctx) })
	return nil
}

// work keeps slots ready, removes used ones, and looks after what others may change.
func (k *keeper) work(ctx context.Context) {
	look := time.NewTicker(watch)
	defer look.Stop()
	again := time.NewTimer(0) // begin at once
	defer again.Stop()
	for {
		select {
		case <-k.wake:
			k.settleDown(ctx)
		case <-k.hurry:
		case <-again.C:
		case <-look.C:
			k.look()
			continue
		case <-ctx.Done():
			return
		}
		if err := k.tidy(); err != nil {
			k.Log.Warn("Network slots that are not needed any more could not be removed; it is tried again", "err", err)
			again.Reset(afterFail)
		}
		if !k.fill(ctx) {
			again.Reset(afterFail)
		}
	}
}

// settleDown waits for a quiet moment.
func (k *keeper) settleDown(ctx context.Context) {
	longest := time.After(impatient)
	for {
		select {
		case <-k.wake:
			continue
		case <-time.After(quiet):
			k.mu.Lock()
			booting := len(k.coming) > 0
			k.mu.Unlock()
			if booting {
				continue
			}
		case <-longest:
		case <-k.hurry:
		case <-ctx.Done():
		}
		return
	}
}

// fill makes slots until enough are ready, and reports whether that was so.
func (k *keeper) fill(ctx context.Context) bool {
	for ctx.Err() == nil {
		k.mu.Lock()
		enough := len(k.ready) >= k.Ready
		k.mu.Unlock()
		if enough {
			return true
		}
		number, err := k.numbers.takeIdle()
		if err != nil {
			return true // there will be room when some are released
		}
		s, err := k.build(number)
		if err != nil {
			k.numbers.freeIdle(number)
			k.Log.Warn("A network slot could not be made; it is tried again", "err", err)
			return false
		}
		k.mu.Lock()
		k.ready = append(k.ready, s)
		k.announce()
		k.mu.Unlock()
	}
	return true
}

// announce wakes those who wait for a slot. The caller holds k.mu.
func (k *keeper) announce() {
	close(k.freed)
	k.freed = make(chan struct{})
}

// tidy removes the slots that were given back.
func (k *keeper) tidy() error {
	k.mu.Lock()
	used := k.used
	k.used = nil
	k.mu.Unlock()
	if len(used) == 0 {
		return nil
	}
	if err := k.destroy(used); err != nil {
		k.mu.Lock()
		k.used = append(k.used, used...)
		k.mu.Unlock()
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, s := range used {
		delete(k.taken, s.link)
		k.numbers.freeIdle(s.number)
	}
	k.announce()
	return nil
}

// destroy removes slots, and what the host knows of their connections.
func (k *keeper) destroy(all []*tap) error {
	if len(all) == 0 {
		return nil
	}
	var errs []error
	addresses := map[netip.Addr]bool{}
	for _, s := range all {
		errs = append(errs, k.deleteLink(s.link))
		if s.ns != nil {
			errs = append(errs, s.ns.Close())
			s.ns = nil
		}
		addresses[s.slot] = true
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return forgetAddresses(addresses)
}

// look puts right what others have changed.
func (k *keeper) look() {
	if restored, err := k.rules.restore(); err != nil {
		k.Log.Error("Somebody has removed the network rules of microVMs, and they cannot be put back", "table", k.rules.name, "err", err)
	} else if restored {
		k.Log.Warn("Somebody had removed the network rules of microVMs; they are back", "table", k.rules.name)
	}
	k.fence.keep()
	if err := k.findResolver(); err != nil {
		k.Log.Warn("The name server of guests could not be changed", "err", err)
	}
}

// findResolver sends guests' questions for names to whom the host asks now.
func (k *keeper) findResolver() error {
	path := k.resolvConf
	if path == "" {
		path = resolvConf
	}
	to, err := hostResolver(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if reachable(to.Addr()) {
		return k.rules.setResolver(to)
	}
	if k.forwarder == nil {
		if k.forwarder, err = startForwarder(to, k.Log); err != nil {
			return err
		}
	}
	k.forwarder.setUpstream(to)
	return k.rules.setResolver(k.forwarder.addr())
}

// close ends the work and removes the slots that nobody has taken.
func (k *keeper) close() error {
	if k.stop != nil {
		k.stop()
		k.working.Wait()
	}
	k.mu.Lock()
	k.closed = true
	k.used = append(k.used, k.ready...)
	k.ready = nil
	inUse := len(k.taken)
	for _, s := range k.used {
		if k.taken[s.link] {
			inUse--
		}
	}
	k.mu.Unlock()
	err := k.tidy()
	if inUse == 0 && err == nil && k.stop != nil {
		err = k.rules.remove()
	}
	if err == nil {
		err = k.fence.lower()
	}
	if k.forwarder != nil {
		err = errors.Join(err, k.forwarder.close())
	}
	return errors.Join(err, k.block.claim.Close(), k.home.Close())
}
