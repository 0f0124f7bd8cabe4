package hostnet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"warmboot"
)

// rules are the owner's nftables table on the host. What is in it is written as a whole, in one transaction, from what is known here;
// so nothing that a crash has left survives, and what somebody has removed comes back. It is safe for concurrent use.
//
// Everything in it is about the owner's own interfaces, which it knows by how their names begin. A new slot needs no new rule.
type rules struct {
	name       string       // of the table
	links      string       // how the names of the owner's interfaces begin
	pool       netip.Prefix // where all owners' slots have their addresses
	registries []uint16

	mu        sync.Mutex
	resolver  netip.AddrPort // whom slots' questions for names go to
	published map[portKey]netip.AddrPort
	written   bool // the table is in the kernel
}

func newRules(c Config) *rules {
	return &rules{
		name: "warmboot-" + c.Owner, links: "wb" + c.Owner + "-", pool: c.CIDR, registries: c.Registries,
		resolver: localResolver, published: map[portKey]netip.AddrPort{},
	}
}

// portKey is a port on the host.
type portKey struct {
	protocol warmboot.Protocol
	at       netip.AddrPort // 0.0.0.0 is every address of the host
}

// publishedMap is where a connection to a port on the host is sent instead.
const publishedMap = "published"

// The priorities of the hooks, beside those that have names: after connection tracking, and before any destination is changed.
const priorityGuard = nftables.ChainPriority(-150) // NF_IP_PRI_MANGLE

// write makes the table what is known here, whatever it was. The caller holds r.mu.
func (r *rules) write() error {
	b, err := newBatch(nil, r.name)
	if err != nil {
		return err
	}
	b.renew()
	accepted := nftables.ChainPolicyAccept
	tcp, udp := proto(unix.IPPROTO_TCP), proto(unix.IPPROTO_UDP)

	// What slots send, before anything is translated: they do not speak for others, and do not reach the host or one another, except
	// for what their gateway, the host's end of their veth pair, offers (see below).
	guard := b.base("guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, priorityGuard, accepted)
	ours := iif(r.links)
	b.rule(guard, ours, notIPv4(), drop())
	b.rule(guard, ours, to(loopback), drop()) // their interface lets it through (see publish)
	b.rule(guard, ours, spoofed(), drop())
	b.rule(guard, ours, reply(), accept())
	b.rule(guard, ours, toOwnEnd(), udp, dns(), accept())
	b.rule(guard, ours, toOwnEnd(), tcp, dns(), accept())
	if len(r.registries) > 0 {
		b.rule(guard, ours, toLocal(), tcp, portIn(b.ports(r.registries...)), accept())
	}
	b.rule(guard, ours, toMany(), reject())
	b.rule(guard, ours, to(r.pool), reject())

	// Where connections go: the gateway's name server is the host's, its registries are those on the host's loopback, and published
	// ports lead into their slots, but not for other slots.
	names := b.chain("names")
	b.rule(names, sendTo(r.resolver.Addr(), r.resolver.Port()))
	// Another owner's published ports are not asked for: it comes before all of them.
	gateway := b.base("gateway", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest-1, accepted)
	b.rule(gateway, ours, toOwnEnd(), udp, dns(), jump(names))
	b.rule(gateway, ours, toOwnEnd(), tcp, dns(), jump(names))
	if len(r.registries) > 0 {
		b.rule(gateway, ours, toOwnEnd(), tcp, portIn(b.ports(r.registries...)), sendTo(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0))
	}
	publish := b.chain("publish")
	m := r.publishedSet(b.table)
	b.add(m, r.elements(r.published))
	b.rule(publish, sendToPublished(m, daddr(9)))
	b.rule(publish, sendToPublished(m, &expr.Immediate{Register: 9, Data: make([]byte, 4)}))
	dst := b.base("destinations", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, *nftables.ChainPriorityNATDest, accepted)
	b.rule(dst, ours, accept())
	b.rule(dst, ipv4(), toLocal(), jump(publish))
	own := b.base("own-destinations", nftables.ChainTypeNAT, nftables.ChainHookOutput, *nftables.ChainPriorityNATDest, accepted)
	b.rule(own, ipv4(), toLocal(), jump(publish))

	// Whom connections seem to come from: slots from the host, and the host's loopback, for a slot, from its gateway.
	src := b.base("sources", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, *nftables.ChainPriorityNATSource, accepted)
	b.rule(src, oif(r.links), from(loopback), masquerade())
	b.rule(src, iif(r.links), ipv4(), oifNot(r.links), masquerade())

	// Into the host, from slots.
	input := b.base("input", nftables.ChainTypeFilter, nftables.ChainHookInput, *nftables.ChainPriorityFilter, accepted)
	b.rule(input, ours, reply(), accept())
	b.rule(input, ours, translated(), accept()) // the gateway's services
	b.rule(input, ours, state(expr.CtStateBitRELATED), accept())
	if len(r.registries) > 0 {
		b.rule(input, ours, tcp, portIn(b.ports(r.registries...)), accept())
	}
	b.rule(input, ours, reject())

	// Into slots: what they asked for, and what is published. "output" is for the host's own connections, "forward" for others'.
	for name, hook := range map[string]*nftables.ChainHook{"output": nftables.ChainHookOutput, "forward": nftables.ChainHookForward} {
		c := b.base(name, nftables.ChainTypeFilter, hook, *nftables.ChainPriorityFilter, accepted)
		theirs := oif(r.links)
		if name == "forward" {
			b.rule(c, ours, clampMSS())
			b.rule(c, theirs, clampMSS())
		}
		b.rule(c, theirs, notIPv4(), drop())
		b.rule(c, theirs, reply(), accept())
		b.rule(c, theirs, translated(), accept())
		b.rule(c, theirs, proto(unix.IPPROTO_ICMP), state(expr.CtStateBitRELATED|expr.CtStateBitINVALID|expr.CtStateBitUNTRACKED), accept()) // what became of their packets
		b.rule(c, theirs, reject())
	}
	if err := b.commit(); err != nil {
		return err
	}
	r.written = true
	return forgetStrays(r.published, r.pool) // which came while it was not there
}

var loopback = netip.MustParsePrefix("127.0.0.0/8")

// publishedSet describes the map from a protocol, an address and a port of the host to an address and a port of a slot. In nft's words:
//
//	type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
func (r *rules) publishedSet(t *nftables.Table) *nftables.Set {
	return &nftables.Set{
		Table: t, Name: publishedMap, ID: 1 << 16, IsMap: true,
		KeyType:  nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeIPAddr, nftables.TypeInetService),
		DataType: nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService),
	}
}

// sendToPublished is `dnat ip to meta l4proto . ADDRESS . th dport map @published`. A key's parts go into registers of four bytes from
// number 8 on, and so does what is found, from number 12 on.
func sendToPublished(m *nftables.Set, address expr.Any) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 8}, address, dport(10),
		&expr.Lookup{SourceRegister: 8, DestRegister: 12, IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 12, RegProtoMin: 13, Specified: true},
	}
}

// elements are the map's content, each part of a key or value on four bytes.
func (r *rules) elements(ports map[portKey]netip.AddrPort) []nftables.SetElement {
	addrPort := func(a netip.AddrPort) []byte {
		ip := a.Addr().As4()
		return append(append(ip[:], binaryutil.BigEndian.PutUint16(a.Port())...), 0, 0)
	}
	var all []nftables.SetElement
	for k, slot := range ports {
		number := byte(unix.IPPROTO_TCP)
		if k.protocol == warmboot.UDP {
			number = unix.IPPROTO_UDP
		}
		all = append(all, nftables.SetElement{Key: append([]byte{number, 0, 0, 0}, addrPort(k.at)...), Val: addrPort(slot)})
	}
	return all
}

// publish sends connections to ports on the host into a slot.
func (r *rules) publish(ports map[portKey]netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k := range ports {
		if _, taken := r.published[k]; taken {
			return warmboot.Errorf(warmboot.Conflict, "publish port", "%s port %s leads to another microVM already; choose another host port", k.protocol, k.at)
		}
	}
	for k, v := range ports {
		r.published[k] = v
	}
	var err error
	switch {
	case !r.written:
	case r.change(ports, (*nftables.Conn).SetAddElements) == nil:
		err = forgetStrays(ports, r.pool)
	default: // somebody has meddled with the table
		err = r.write()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("publish ports: %w", err), r.withdraw(ports))
	}
	return nil
}

// unpublish is the undo of publish. The connections that there are go on.
func (r *rules) unpublish(ports map[portKey]netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.withdraw(ports)
}

// withdraw is unpublish for a caller that holds r.mu.
func (r *rules) withdraw(ports map[portKey]netip.AddrPort) error {
	for k := range ports {
		delete(r.published, k)
	}
	if !r.written || r.change(ports, (*nftables.Conn).SetDeleteElements) == nil {
		return nil
	}
	return r.write()
}

func (r *rules) change(ports map[portKey]netip.AddrPort, change func(*nftables.Conn, *nftables.Set, []nftables.SetElement) error) error {
	if len(ports) == 0 {
		return nil
	}
	b, err := newBatch(nil, r.name)
	if err != nil {
		return err
	}
	s := r.publishedSet(b.table)
	s.ID = 0 // by its name
	if err := change(b.conn, s, r.elements(ports)); err != nil {
		return err
	}
	return b.commit()
}

// setResolver changes whom questions for names go to.
func (r *rules) setResolver(a netip.AddrPort) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.resolver == a {
		return nil
	}
	was := r.resolver
	r.resolver = a
	if !r.written {
		return nil
	}
	b, err := newBatch(nil, r.name)
	if err == nil {
		c := &nftables.Chain{Name: "names", Table: b.table}
		b.conn.FlushChain(c)
		b.rule(c, sendTo(a.Addr(), a.Port()))
		err = b.commit()
	}
	if err != nil {
		r.resolver = was
	}
	return err
}

// install writes the table.
func (r *rules) install() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.write()
}

// restore writes the table again if somebody has removed it, as reloading a firewall does that begins with `flush ruleset`, and
// reports whether that was so.
func (r *rules) restore() (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.written {
		return false, nil
	}
	if table, err := findTable(r.name); table != nil || err != nil {
		return false, err
	}
	return true, r.write()
}

// remove takes the table away.
func (r *rules) remove() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.written = false
	b, err := newBatch(nil, r.name)
	if err != nil {
		return err
	}
	b.remove()
	return b.commit()
}

// offset is the address that lies n after a.
func offset(a netip.Addr, n int) netip.Addr {
	ip := a.As4()
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(ip[:])+uint32(n))))
}
