// Package hostnet keeps guests away from what listens on the host itself.
//
// In user-mode networking it is the VMM's own process that connects to wherever the guest wants to go, and the network's gateway
// stands for the host: without more, a container could reach every service on the host's loopback, a database without a
// password or this very API among them. A Guard closes that with one nftables rule on the user ids that VMMs run as.
package hostnet

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"warmboot"
)

// Config says whom the guard holds back, and from what it does not.
type Config struct {
	FirstUID, LastUID uint32 // the users that VMMs run as
	// Ports are the TCP ports on this host that guests may still reach: local registries. DNS (53, UDP and TCP) always is: a
	// guest's name server is the host's, which may well be a local one.
	Ports []uint16
}

// Guard is a rule in the kernel.
type Guard struct {
	table *nftables.Table
}

// NewGuard puts the rule in place; it replaces one that an earlier process left for the same users. Without the right to do so, or
// without nftables in the kernel, it is an Unavailable error.
func NewGuard(c Config) (*Guard, error) {
	const op = "guard host network"
	if os.Geteuid() != 0 {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "only root can set network rules")
	}
	conn, err := nftables.New()
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Unavailable, Op: op, Err: err}
	}
	g := &Guard{table: &nftables.Table{Family: nftables.TableFamilyINet, Name: fmt.Sprintf("warmboot-%d", c.FirstUID)}}
	// Adding before deleting makes the deletion succeed whether or not the table was there; all of it is one transaction.
	conn.AddTable(g.table)
	conn.DelTable(g.table)
	conn.AddTable(g.table)
	accept := nftables.ChainPolicyAccept
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: g.table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter, Policy: &accept,
	})
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		ports := []uint16{53}
		if proto == unix.IPPROTO_TCP {
			ports = append(ports, c.Ports...)
		}
		allowed, err := portSet(conn, g.table, ports)
		if err != nil {
			return nil, &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
		}
		conn.AddRule(&nftables.Rule{Table: g.table, Chain: chain, Exprs: rule(c, proto, allowed)})
	}
	if err := conn.Flush(); err != nil {
		return nil, &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "the kernel did not take the nftables rule", Err: err}
	}
	return g, nil
}

func portSet(conn *nftables.Conn, table *nftables.Table, ports []uint16) (*nftables.Set, error) {
	slices.Sort(ports)
	var elements []nftables.SetElement
	for _, p := range slices.Compact(ports) {
		elements = append(elements, nftables.SetElement{Key: binaryutil.BigEndian.PutUint16(p)})
	}
	set := &nftables.Set{Table: table, Anonymous: true, Constant: true, KeyType: nftables.TypeInetService}
	return set, conn.AddSet(set, elements)
}

// rule is, in nft's own words:
//
//	meta l4proto PROTO meta skuid FIRST-LAST ct state new fib daddr type local th dport != ALLOWED reject
//
// Only new connections count: an answer on a published port goes to a local address too.
func rule(c Config, proto byte, allowed *nftables.Set) []expr.Any {
	uid := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Meta{Key: expr.MetaKeySKUID, Register: 1},
		&expr.Byteorder{Op: expr.ByteorderHton, SourceRegister: 1, DestRegister: 1, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: uid(c.FirstUID)},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: uid(c.LastUID)},
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: allowed.Name, SetID: allowed.ID, Invert: true},
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH},
	}
}

// Close takes the rule away. Call it only when no VMM runs any more.
func (g *Guard) Close() error {
	conn, err := nftables.New()
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "remove host network guard", Err: err}
	}
	conn.DelTable(g.table)
	if err := conn.Flush(); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "remove host network guard", Err: err}
	}
	return nil
}
