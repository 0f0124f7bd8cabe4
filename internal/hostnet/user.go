package hostnet

import (
	"net/netip"

	"warmboot"
	"warmboot/internal/vmm"
)

// userNetworks is where guests in user mode have their addresses. The host never sees them. Every microVM has a /24 for itself.
var userNetworks = netip.MustParsePrefix("100.64.0.0/10")

// takeUser takes a slot in user mode: a number, and what follows from it.
func (n *Net) takeUser(w Wants) (*Slot, error) {
	if err := n.checkUser(w); err != nil {
		return nil, err
	}
	number, err := n.numbers.take()
	if err != nil {
		return nil, err
	}
	return &Slot{
		Number: number, net: n,
		Network: vmm.Network{Subnet: netip.PrefixFrom(offset(userNetworks.Addr(), number<<8), 24), Forwards: w.Forwards},
	}, nil
}

// checkUser refuses what nobody would keep in user mode.
func (n *Net) checkUser(w Wants) error {
	if w.Egress.Limited() || w.Bandwidth.Limited() {
		return warmboot.Errorf(warmboot.Invalid, "limit network", "this host's microVMs are connected in user mode, which keeps no egress policy and no bandwidth limit (%s); leave them out, or have the host mended: `warmboot doctor` says how", n.why)
	}
	return nil
}
