package warmboot

import (
	"net/netip"
	"slices"
)

// EgressPolicy says where a container may connect to.
type EgressPolicy string

// The egress policies. The empty one is EgressAllow.
const (
	EgressAllow EgressPolicy = "allow" // anywhere
	EgressDeny  EgressPolicy = "deny"  // nowhere: not even names are resolved
	EgressList  EgressPolicy = "list"  // to what Egress lists, and nowhere else
)

// Egress is a container's egress policy. It is for connections that the container makes: what connects to its published ports is
// answered under each. It holds from before the container's first instruction on; only while Docker in its microVM pulls the image may that
// connect anywhere.
type Egress struct {
	Policy EgressPolicy   `json:"policy,omitempty"`
	Allow  []netip.Prefix `json:"allow,omitempty"` // of EgressList
	DNS    bool           `json:"dns,omitempty"`   // of EgressList: names are resolved, by the host's name server
}

// Bandwidth limits what a container's microVM receives and sends, in megabits (10^6) a second; 0 is no limit.
type Bandwidth struct {
	IngressMbit int `json:"ingress_mbit,omitempty"`
	EgressMbit  int `json:"egress_mbit,omitempty"`
}

// The limits of a policy's size and of bandwidths.
const (
	maxEgressNetworks = 256
	maxMbit           = 100_000
)

// NeverReachable are the networks that no container may connect to under any policy: this host and this link, several hosts at once,
// and what clouds tell a machine about itself, credentials included.
func NeverReachable() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),          // "this network" (RFC 1122, 3.2.1.3)
		netip.MustParsePrefix("127.0.0.0/8"),        // loopback (the same)
		netip.MustParsePrefix("169.254.0.0/16"),     // link-local (RFC 3927); 169.254.169.254 is the metadata service of AWS, Google Cloud, Azure and OpenStack
		netip.MustParsePrefix("168.63.129.16/32"),   // Azure's WireServer: https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
		netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud's metadata service: https://www.alibabacloud.com/help/ecs/user-guide/view-instance-metadata
		netip.MustParsePrefix("192.0.0.192/32"),     // the metadata service of Oracle Cloud's older machines
		netip.MustParsePrefix("224.0.0.0/4"),        // multicast (RFC 5771)
		netip.MustParsePrefix("240.0.0.0/4"),        // reserved (RFC 1112, 4), and the limited broadcast
	}
}

// Limited reports whether the policy holds anything back.
func (e Egress) Limited() bool { return e.Policy != "" && e.Policy != EgressAllow }

// Limited reports whether there is a limit.
func (b Bandwidth) Limited() bool { return b != Bandwidth{} }

// ParseEgressNetwork reads a network in CIDR notation, or one address.
func ParseEgressNetwork(text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, addrErr := netip.ParseAddr(text)
		if addrErr != nil {
			return netip.Prefix{}, Errorf(Invalid, "egress policy", "%.60q is neither a network like 203.0.113.0/24 nor an address", text)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	return p.Masked(), nil
}

// Validate reports an Invalid error for a policy that cannot be kept.
func (e Egress) Validate() error {
	bad := func(format string, args ...any) error { return Errorf(Invalid, "egress policy", format, args...) }
	switch e.Policy {
	case "", EgressAllow, EgressDeny:
		if len(e.Allow) > 0 || e.DNS {
			return bad("what is allowed can be listed with policy %q only", EgressList)
		}
		return nil
	case EgressList:
	default:
		return bad("%.60q is no policy; use %s, %s or %s", e.Policy, EgressAllow, EgressDeny, EgressList)
	}
	if len(e.Allow) == 0 && !e.DNS {
		return bad("policy %q lists nothing; use %q, or list a network", EgressList, EgressDeny)
	}
	if len(e.Allow) > maxEgressNetworks {
		return bad("%d networks are listed; no more than %d can be", len(e.Allow), maxEgressNetworks)
	}
	for _, p := range e.Allow {
		if !p.IsValid() || !p.Addr().Is4() {
			return bad("%s is not an IPv4 network; a microVM's network has no IPv6", p)
		}
		if i := slices.IndexFunc(NeverReachable(), func(never netip.Prefix) bool { return never.Bits() <= p.Bits() && never.Contains(p.Addr()) }); i >= 0 {
			return bad("%s is part of %s, which no container may connect to", p, NeverReachable()[i])
		}
	}
	return nil
}

// Validate reports an Invalid error for a limit that cannot be kept.
func (b Bandwidth) Validate() error {
	for _, mbit := range []int{b.IngressMbit, b.EgressMbit} {
		if mbit < 0 || mbit > maxMbit {
			return Errorf(Invalid, "bandwidth limit", "%d Mbit/s is not possible; use 1 to %d, or 0 for no limit", mbit, maxMbit)
		}
	}
	return nil
}
