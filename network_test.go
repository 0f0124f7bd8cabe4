package warmboot

import (
	"net/netip"
	"strings"
	"testing"
)

func TestEgressValidate(t *testing.T) {
	t.Parallel()
	nets := func(texts ...string) (all []netip.Prefix) {
		for _, text := range texts {
			p, err := ParseEgressNetwork(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, p)
		}
		return all
	}
	for name, c := range map[string]struct {
		egress Egress
		says   string // "" if it is valid
	}{
		"none":                 {Egress{}, ""},
		"allow":                {Egress{Policy: EgressAllow}, ""},
		"deny":                 {Egress{Policy: EgressDeny}, ""},
		"list":                 {Egress{Policy: EgressList, Allow: nets("10.0.0.0/8", "192.0.2.7")}, ""},
		"names only":           {Egress{Policy: EgressList, DNS: true}, ""},
		"everything":           {Egress{Policy: EgressList, Allow: nets("0.0.0.0/0")}, ""}, // less what is never reachable
		"other":                {Egress{Policy: "maybe"}, `"maybe" is no policy`},
		"a list with deny":     {Egress{Policy: EgressDeny, Allow: nets("10.0.0.0/8")}, "policy \"list\" only"},
		"names with none":      {Egress{DNS: true}, "policy \"list\" only"},
		"an empty list":        {Egress{Policy: EgressList}, "lists nothing"},
		"metadata":             {Egress{Policy: EgressList, Allow: nets("169.254.169.254")}, "part of 169.254.0.0/16"},
		"loopback":             {Egress{Policy: EgressList, Allow: nets("127.0.0.0/8")}, "part of 127.0.0.0/8"},
		"IPv6":                 {Egress{Policy: EgressList, Allow: nets("2001:db8::/32")}, "no IPv6"},
		"a prefix that is not": {Egress{Policy: EgressList, Allow: []netip.Prefix{{}}}, "not an IPv4 network"},
		"too many":             {Egress{Policy: EgressList, Allow: make([]netip.Prefix, maxEgressNetworks+1)}, "no more than 256"},
	} {
		err := c.egress.Validate()
		if c.says == "" && err != nil || c.says != "" && (CodeOf(err) != Invalid || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
		if want := c.egress.Policy == EgressDeny || c.egress.Policy == EgressList; c.says == "" && c.egress.Limited() != want {
			t.Errorf("%s: limited is %v", name, !want)
		}
	}
}

func TestParseEgressNetwork(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"10.1.2.3/8": "10.0.0.0/8", "192.0.2.7": "192.0.2.7/32", "2001:db8::1": "2001:db8::1/128"} {
		if got, err := ParseEgressNetwork(text); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "example.com", "10.0.0.0/33", "10.0.0/8", "dns"} {
		if _, err := ParseEgressNetwork(text); CodeOf(err) != Invalid {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestBandwidthValidate(t *testing.T) {
	t.Parallel()
	for b, valid := range map[Bandwidth]bool{{}: true, {IngressMbit: 1}: true, {100, 100_000}: true, {-1, 0}: false, {0, 100_001}: false} {
		if err := b.Validate(); (err == nil) != valid || err != nil && CodeOf(err) != Invalid {
			t.Errorf("%+v: %v", b, err)
		}
	}
}
