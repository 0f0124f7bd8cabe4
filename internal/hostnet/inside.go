package hostnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"warmboot"
)

// insideTable is the nftables table in a slot's own namespace. It goes with the namespace.
const insideTable = "warmboot"

// egressChain in it is where a container's policy is. It is empty where there is none: what gets to its end is accepted. (To add rules takes a
// fraction of a millisecond, to delete some about ten, because the kernel waits until nobody looks at them any more.)
const egressChain = "egress"

// gateChain comes before all others. It is empty but for the moments in which nothing may pass (cutEgress).
const gateChain = "gate"

// The limits that every slot has, so that no guest can use up the host's connection tracking (whose table has 262,144 places on a host
// with more than 4 GiB: https://docs.kernel.org/networking/nf_conntrack-sysctl.html), nor its processors with new connections.
const (
	maxConnections    = 4096 // tracked at once
	newConnectionRate = 1000 // a second
	newConnectionPeak = 2000 // at once
)

// writeInside makes the rules of a slot. Its guest is behind tapName, the host behind upName.
func writeInside(ns *os.File, a addresses) error {
	b, err := newBatch(ns, insideTable)
	if err != nil {
		return err
	}
	b.make()
	accepted, dropped := nftables.ChainPolicyAccept, nftables.ChainPolicyDrop
	guest, slot := host(guestNetwork.Guest().Addr()), host(a.slot)

	// The guest's gateway and name server are the host; the slot's address on the host's side is the guest.
	dst := b.base("destinations", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, accepted)
	for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		b.rule(dst, iifIs(tapName), ipv4(), toLocal(), proto(p), sendTo(a.host, 0))
	}
	b.rule(dst, iifIs(upName), to(slot), sendTo(guest.Addr(), 0))
	src := b.base("sources", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, accepted)
	b.rule(src, oifIs(upName), from(guest), sendAs(slot.Addr()))

	gate, egress := b.chain(gateChain), b.chain(egressChain)
	forward := b.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, *nftables.ChainPriorityFilter, dropped)
	b.rule(forward, jump(gate))
	b.rule(forward, notIPv4(), drop())
	b.rule(forward, iifIs(tapName), notFrom(guest), drop())
	b.rule(forward, state(expr.CtStateBitINVALID), drop())
	b.rule(forward, state(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept())
	b.rule(forward, more(maxConnections), reject())
	b.rule(forward, iifIs(upName), oifIs(tapName), translated(), accept())
	b.rule(forward, iifIs(tapName), oifIs(upName), faster(newConnectionRate, newConnectionPeak), reject())
	b.rule(forward, iifIs(tapName), oifIs(upName), toAny(b.networks(warmboot.NeverReachable())), reject())
	b.rule(forward, iifIs(tapName), oifIs(upName), jump(egress))
	b.rule(forward, iifIs(tapName), oifIs(upName), accept())

	// Nothing in the slot but the kernel has a say: a guest that has taken over its VMM is where it was before.
	input := b.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, dropped)
	b.rule(input, ipv4(), proto(unix.IPPROTO_ICMP), accept()) // the gateway answers to ping
	output := b.base("output", nftables.ChainTypeFilter, nftables.ChainHookOutput, *nftables.ChainPriorityFilter, accepted)
	b.rule(output, byProcess(), drop())
	return b.commit()
}

// egress adds the rules of a policy to its chain.
func (b *batch) egress(c *nftables.Chain, e warmboot.Egress, a addresses) {
	if !e.Limited() {
		return
	}
	if e.Policy == warmboot.EgressList {
		if e.DNS {
			for _, p := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
				b.rule(c, to(host(a.host)), proto(p), dns(), accept())
			}
		}
		b.rule(c, to(host(a.host)), reject()) // the gateway stands for the host, which is in no list
		if len(e.Allow) > 0 {
			b.rule(c, toAny(b.networks(e.Allow)), accept())
		}
	}
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: c, Exprs: reject(), UserData: egressMark(e)})
}

// egressMark is what the last rule of a policy says of it, as a comment: which one it is.
func egressMark(e warmboot.Egress) []byte {
	text, _ := json.Marshal(e) // which has nothing that cannot be written
	return userdata.AppendString(nil, userdata.TypeComment, fmt.Sprintf("policy %x", sha256.Sum256(text)))
}

// keepsEgress reports whether a slot has kept a policy, which is a limited one, since what it forbids was cut.
func keepsEgress(ns *os.File, e warmboot.Egress) (bool, error) {
	b, err := newBatch(ns, insideTable)
	if err != nil {
		return false, err
	}
	gate, err := b.conn.GetRules(b.table, &nftables.Chain{Name: gateChain, Table: b.table})
	if err != nil || len(gate) > 0 { // in the middle of cutEgress
		return false, err
	}
	rules, err := b.conn.GetRules(b.table, &nftables.Chain{Name: egressChain, Table: b.table})
	return len(rules) > 0 && bytes.Equal(rules[len(rules)-1].UserData, egressMark(e)), err
}

// setEgress replaces a slot's policy in one step. What its guest has begun before goes on.
func setEgress(ns *os.File, e warmboot.Egress, a addresses) error {
	return changeInside(ns, func(b *batch, gate, egress *nftables.Chain) { b.egress(egress, e, a) })
}

// cutEgress is setEgress for a policy that forbids what another one has allowed: what the guest has begun ends. While slot and host forget it, nothing
// passes; else a packet of either side would make it known again, the other side's as if it had come for a published port.
func cutEgress(ns *os.File, e warmboot.Egress, a addresses) error {
	if err := closeGate(ns, e, a); err != nil {
		return err
	}
	if err := errors.Join(forgetAddresses(map[netip.Addr]bool{a.slot: true}), forget(ns)); err != nil {
		return err
	}
	return setEgress(ns, e, a)
}

// closeGate is the first half of cutEgress. Whoever dies here leaves a gate that lets nothing through.
func closeGate(ns *os.File, e warmboot.Egress, a addresses) error {
	return changeInside(ns, func(b *batch, gate, egress *nftables.Chain) {
		b.rule(gate, drop())
		b.egress(egress, e, a)
	})
}

// changeInside writes the two chains of a slot that change anew.
func changeInside(ns *os.File, write func(b *batch, gate, egress *nftables.Chain)) error {
	b, err := newBatch(ns, insideTable)
	if err != nil {
		return err
	}
	gate, egress := &nftables.Chain{Name: gateChain, Table: b.table}, &nftables.Chain{Name: egressChain, Table: b.table}
	b.conn.FlushChain(gate)
	b.conn.FlushChain(egress)
	write(b, gate, egress)
	return b.commit()
}

// addresses are those of a slot's veth pair.
type addresses struct {
	host, slot netip.Addr // the host's end, which is the slot's gateway; and the slot's
}
