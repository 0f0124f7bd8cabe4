package hostnet

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// batch is one transaction on one nftables table: all of it happens, or nothing.
type batch struct {
	conn  *nftables.Conn
	table *nftables.Table
	sets  uint32
	err   error
}

// newBatch begins a transaction in a network namespace, nil for ours.
func newBatch(ns *os.File, table string) (*batch, error) {
	var opts []nftables.ConnOption
	if ns != nil {
		opts = append(opts, nftables.WithNetNSFd(int(ns.Fd())))
	}
	conn, err := nftables.New(opts...)
	return &batch{conn: conn, table: &nftables.Table{Family: nftables.TableFamilyINet, Name: table}}, err
}

// findTable finds a table on the host; it is nil if there is none.
func findTable(name string) (*nftables.Table, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == name }); i >= 0 {
		return tables[i], nil
	}
	return nil, err
}

// remove deletes the table, whether or not it is there: adding before deleting makes the deletion succeed.
func (b *batch) remove() {
	b.conn.AddTable(b.table)
	b.conn.DelTable(b.table)
}

// make makes the table, with refuseChain in it.
func (b *batch) make() {
	b.conn.AddTable(b.table)
	b.addRefuse()
}

// renew is make for a table that may be there already, whatever was in it.
func (b *batch) renew() {
	b.remove()
	b.make()
}

// chain adds a chain that other chains jump to.
func (b *batch) chain(name string) *nftables.Chain {
	return b.conn.AddChain(&nftables.Chain{Name: name, Table: b.table})
}

// base adds a chain that the kernel calls at a hook.
func (b *batch) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority, policy nftables.ChainPolicy) *nftables.Chain {
	return b.conn.AddChain(&nftables.Chain{Name: name, Table: b.table, Type: kind, Hooknum: hook, Priority: &priority, Policy: &policy})
}

// rule adds a rule that consists of the given parts.
func (b *batch) rule(chain *nftables.Chain, parts ...[]expr.Any) {
	b.conn.AddRule(&nftables.Rule{Table: b.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// refuseChain is where what is rejected goes to.
const refuseChain = "refuse"

// addRefuse adds that chain: whoever connects learns at once that nobody is there. (TCP would take the other answer too, but the kernel sends
// few of those.)
func (b *batch) addRefuse() {
	c := b.chain(refuseChain)
	b.rule(c, proto(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	b.rule(c, []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH}})
}

// set adds an anonymous set for one rule. It is numbered here, because the library's own numbering cannot be used by two goroutines.
func (b *batch) set(s *nftables.Set, elements []nftables.SetElement) *nftables.Set {
	b.sets++
	s.Table, s.ID, s.Name, s.Anonymous, s.Constant = b.table, b.sets, "__set%d", true, true
	b.add(s, elements)
	return s
}

func (b *batch) add(s *nftables.Set, elements []nftables.SetElement) {
	if err := b.conn.AddSet(s, elements); err != nil {
		b.err = cmp.Or(b.err, err)
	}
}

// ports is an anonymous set of ports; it must not be empty.
func (b *batch) ports(ports ...uint16) *nftables.Set {
	var elements []nftables.SetElement
	ports = slices.Clone(ports)
	slices.Sort(ports)
	for _, p := range slices.Compact(ports) {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p)})
	}
	return b.set(&nftables.Set{KeyType: nftables.TypeInetService}, elements)
}

// networks is an anonymous set of IPv4 networks; it must not be empty.
func (b *batch) networks(networks []netip.Prefix) *nftables.Set {
	var elements []nftables.SetElement
	for _, r := range ranges(networks) {
		elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, r.first)})
		if r.last != 1<<32-1 { // else it goes on to the end
			elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, r.last+1), IntervalEnd: true})
		}
	}
	return b.set(&nftables.Set{KeyType: nftables.TypeIPAddr, Interval: true}, elements)
}

// commit makes the transaction happen.
func (b *batch) commit() error {
	err := b.err
	if err == nil {
		err = b.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("change nftables table %s: %w", b.table.Name, err)
	}
	return nil
}

// addressRange is a range of IPv4 addresses, both ends included.
type addressRange struct{ first, last uint32 }

// ranges are the ranges that networks cover, in order, none of them touching another: a set does not take overlapping ones.
func ranges(networks []netip.Prefix) []addressRange {
	var all []addressRange
	for _, p := range networks {
		a := p.Masked().Addr().As4()
		first := binary.BigEndian.Uint32(a[:])
		all = append(all, addressRange{first, first | uint32(uint64(1)<<(32-p.Bits())-1)})
	}
	slices.SortFunc(all, func(a, b addressRange) int { return cmp.Compare(a.first, b.first) })
	var merged []addressRange
	for _, r := range all {
		if n := len(merged); n > 0 && uint64(r.first) <= uint64(merged[n-1].last)+1 {
			merged[n-1].last = max(merged[n-1].last, r.last)
		} else {
			merged = append(merged, r)
		}
	}
	return merged
}

// What follows are the parts that rules are made of. Each says in nft's own words (nft(8)) what it is.

// number is how registers hold the kernel's own numbers.
func number(n uint32) []byte { return binaryutil.NativeEndian.PutUint32(n) }

// iif is `iifname "PREFIX*"`.
func iif(prefix string) []expr.Any { return named(expr.MetaKeyIIFNAME, []byte(prefix)) }

// oif is `oifname "PREFIX*"`.
func oif(prefix string) []expr.Any { return named(expr.MetaKeyOIFNAME, []byte(prefix)) }

// iifIs is `iifname "NAME"`.
func iifIs(name string) []expr.Any { return named(expr.MetaKeyIIFNAME, padded(name)) }

// oifIs is `oifname "NAME"`.
func oifIs(name string) []expr.Any { return named(expr.MetaKeyOIFNAME, padded(name)) }

// oifNot is `oifname != "PREFIX*"`.
func oifNot(prefix string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte(prefix)},
	}
}

func named(key expr.MetaKey, name []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name}}
}

// padded is an interface's name as the kernel compares it when nothing may follow.
func padded(name string) []byte {
	return append([]byte(name), make([]byte, unix.IFNAMSIZ-len(name))...)
}

// ipv4 is `meta nfproto ipv4`.
func ipv4() []expr.Any { return nfproto(expr.CmpOpEq) }

// notIPv4 is `meta nfproto != ipv4`.
func notIPv4() []expr.Any { return nfproto(expr.CmpOpNeq) }

func nfproto(op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: []byte{unix.NFPROTO_IPV4}}}
}

// proto is `meta l4proto PROTOCOL`.
func proto(p byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}}}
}

// state is `ct state BITS`.
func state(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATE, bits) }

// translated is `ct status dnat`: the connection's destination is not the one that was asked for.
func translated() []expr.Any {
	const dstNAT = 1 << 5 // IPS_DST_NAT, linux/netfilter/nf_conntrack_common.h
	return ctBits(expr.CtKeySTATUS, dstNAT)
}

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: number(bits), Xor: number(0)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: number(0)},
	}
}

// reply is `ct direction reply`: the packet answers whoever began the connection.
func reply() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{1}}}
}

// Where addresses are in the IPv4 header, and ports in those of TCP and UDP.
func saddr(register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}
}

func daddr(register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
}

func dport(register uint32) *expr.Payload {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// from is `ip saddr NETWORK`, notFrom `ip saddr != NETWORK`, to `ip daddr NETWORK`.
func from(p netip.Prefix) []expr.Any    { return network(saddr(1), expr.CmpOpEq, p) }
func notFrom(p netip.Prefix) []expr.Any { return network(saddr(1), expr.CmpOpNeq, p) }
func to(p netip.Prefix) []expr.Any      { return network(daddr(1), expr.CmpOpEq, p) }

func network(where *expr.Payload, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(uint64(1)<<(32-p.Bits())-1))
	address := p.Masked().Addr().As4()
	return append(ipv4(),
		where,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: 1, Data: address[:]},
	)
}

// host is the network that is one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// toAny is `ip daddr { SET }`.
func toAny(s *nftables.Set) []expr.Any { return append(ipv4(), daddr(1), in(s)) }

// dns is `th dport 53`.
func dns() []expr.Any {
	return []expr.Any{dport(1), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)}}
}

// portIn is `th dport { SET }`.
func portIn(s *nftables.Set) []expr.Any { return []expr.Any{dport(1), in(s)} }

func in(s *nftables.Set) *expr.Lookup {
	return &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}
}

// toLocal is `fib daddr type local`: the destination is an address of this host.
func toLocal() []expr.Any { return destination(expr.Fib{}, expr.CmpOpEq, unix.RTN_LOCAL) }

// toOwnEnd is `fib daddr . iif type local`: the destination is the address of the interface that the packet came in by.
func toOwnEnd() []expr.Any {
	return destination(expr.Fib{FlagIIF: true}, expr.CmpOpEq, unix.RTN_LOCAL)
}

// toMany is `fib daddr type != unicast`: a broadcast or multicast, or nowhere.
func toMany() []expr.Any { return destination(expr.Fib{}, expr.CmpOpNeq, unix.RTN_UNICAST) }

func destination(f expr.Fib, op expr.CmpOp, kind uint32) []expr.Any {
	f.Register, f.FlagDADDR, f.ResultADDRTYPE = 1, true, true
	return []expr.Any{&f, &expr.Cmp{Op: op, Register: 1, Data: number(kind)}}
}

// spoofed is `fib saddr . iif oif missing`: an answer would go by another interface than the one that the packet came in by.
func spoofed() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagSADDR: true, FlagIIF: true, ResultOIF: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: number(0)},
	}
}

// byProcess is `meta skuid >= 0`: a process's packet, and not one that the kernel makes or passes on.
func byProcess() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeySKUID, Register: 1}, &expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: number(0)}}
}

// byUsers is `meta skuid FIRST-LAST`.
func byUsers(first, last uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Byteorder{Op: expr.ByteorderHton, SourceRegister: 1, DestRegister: 1, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: binary.BigEndian.AppendUint32(nil, first)},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: binary.BigEndian.AppendUint32(nil, last)},
	}
}

// faster is `limit rate over RATE/second burst BURST packets`.
func faster(rate uint64, burst uint32) []expr.Any {
	return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Over: true, Unit: expr.LimitTimeSecond, Burst: burst}}
}

// more is `ct count over N`.
func more(n uint32) []expr.Any {
	return []expr.Any{&expr.Connlimit{Count: n, Flags: expr.NFT_CONNLIMIT_F_INV}}
}

// sendTo is `dnat ip to ADDRESS`, with a port if that is not 0.
func sendTo(a netip.Addr, port uint16) []expr.Any {
	return translate(expr.NATTypeDestNAT, a, port)
}

// sendAs is `snat ip to ADDRESS`.
func sendAs(a netip.Addr) []expr.Any { return translate(expr.NATTypeSourceNAT, a, 0) }

func translate(kind expr.NATType, a netip.Addr, port uint16) []expr.Any {
	ip := a.As4()
	parts := []expr.Any{&expr.Immediate{Register: 1, Data: ip[:]}}
	nat := &expr.NAT{Type: kind, Family: unix.NFPROTO_IPV4, RegAddrMin: 1}
	if port != 0 {
		parts = append(parts, &expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)})
		nat.RegProtoMin, nat.Specified = 2, true
	}
	return append(parts, nat)
}

// clampMSS is `tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu`: no segment is larger than the way out takes, for where
// nobody says so (RFC 2923, 2.1).
func clampMSS() []expr.Any {
	const syn, rst, maxSegment = 0x02, 0x04, 2 // RFC 9293, 3.1 and 3.2
	return slices.Concat(proto(unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syn}},
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: maxSegment, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}

// masquerade is `masquerade`.
func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }
func drop() []expr.Any   { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }

// reject is `jump refuse`.
func reject() []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: refuseChain}}
}

// jump is `jump CHAIN`.
func jump(c *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: c.Name}}
}
