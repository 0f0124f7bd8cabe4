package cli

import (
	"fmt"
	"net"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"warmboot"
	"warmboot/api"
)

func TestParsePort(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]api.PortMapping{
		"80":                   {ContainerPort: 80, Protocol: "tcp"},
		"53/udp":               {ContainerPort: 53, Protocol: "udp"},
		"8080:80":              {HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		":80":                  {ContainerPort: 80, Protocol: "tcp"},
		"0.0.0.0:8080:80/tcp":  {HostIP: "0.0.0.0", HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		"127.0.0.1::80":        {HostIP: "127.0.0.1", ContainerPort: 80, Protocol: "tcp"},
		"[::1]:8080:80":        {HostIP: "::1", HostPort: 8080, ContainerPort: 80, Protocol: "tcp"},
		"[::]:65535:65535/udp": {HostIP: "::", HostPort: 65535, ContainerPort: 65535, Protocol: "udp"},
	} {
		got, err := parsePort(s)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("parsePort(%q): %v, %s", s, err, diff)
		}
	}
	for _, s := range []string{"", ":", "0", "65536", "-1", "80:", "0:80", "x:80", "80/sctp", "80/", "localhost:80:80", ":80:80", "1.2.3:80:80", "8000-8010:80", "[::1:80:80", "+80"} {
		if got, err := parsePort(s); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("parsePort(%q) = %+v, %v; want an Invalid error", s, got, err)
		}
	}
}

func TestParsePortReadsWhatItMeans(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := api.PortMapping{
			HostIP:        rapid.SampledFrom([]string{"127.0.0.1", "10.1.2.3", "::1", "fe80::1"}).Draw(t, "ip"),
			HostPort:      rapid.IntRange(1, 65535).Draw(t, "host"),
			ContainerPort: rapid.IntRange(1, 65535).Draw(t, "container"),
			Protocol:      rapid.SampledFrom([]string{"tcp", "udp"}).Draw(t, "protocol"),
		}
		s := fmt.Sprintf("%s:%d/%s", net.JoinHostPort(want.HostIP, strconv.Itoa(want.HostPort)), want.ContainerPort, want.Protocol)
		if got, err := parsePort(s); err != nil || got != want {
			t.Fatalf("parsePort(%q) = %+v, %v; want %+v", s, got, err, want)
		}
	})
}

func FuzzParsePort(f *testing.F) {
	f.Add("127.0.0.1:8080:80/tcp")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePort(s)
		if err == nil && (p.ContainerPort < 1 || p.ContainerPort > 65535 || p.HostPort < 0 || p.HostPort > 65535) {
			t.Errorf("parsePort(%q) = %+v", s, p)
		}
	})
}

func TestParseMemory(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]int{"": 0, "512m": 512, "1g": 1024, "1.5g": 1536, "1048577": 2, "1048576": 1} {
		if got, err := parseMemory(s); err != nil || got != want {
			t.Errorf("parseMemory(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "-1m", "many", "1k", "m"} {
		if _, err := parseMemory(s); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("parseMemory(%q): %v", s, err)
		}
	}
}

func TestFindByPrefix(t *testing.T) {
	t.Parallel()
	ids := []string{"0195f2c4-7a1b-4c3d-9e8f-0123456789ab", "0195f2c4-8000-4c3d-9e8f-0123456789ab"}
	self := func(s string) string { return s }
	for ref, want := range map[string]warmboot.Code{
		"0195f2c47a1b": "", "0195F2C4-7a": "", ids[1]: "", "0195": warmboot.Conflict, "ff": warmboot.NotFound, "": warmboot.NotFound, "xyz": warmboot.NotFound,
	} {
		if got, err := findByPrefix("runtime image", ref, ids, self); warmboot.CodeOf(err) != want || err == nil && got == "" {
			t.Errorf("findByPrefix(%q) = %q, %v; want %q", ref, got, err, want)
		}
	}
}

func TestParseEgress(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		policy string
		allow  []string
		want   *api.Egress
		fails  bool
	}{
		"nothing":              {want: nil},
		"allow":                {policy: "allow", want: &api.Egress{Policy: "allow"}},
		"deny":                 {policy: "deny", want: &api.Egress{Policy: "deny"}},
		"a list":               {allow: []string{"10.1.2.3/8", "dns", "192.0.2.1"}, want: &api.Egress{Policy: "list", Allow: []string{"10.0.0.0/8", "192.0.2.1/32"}, DNS: true}},
		"all others denied":    {policy: "deny", allow: []string{"dns"}, want: &api.Egress{Policy: "list", DNS: true}},
		"allowed and listed":   {policy: "allow", allow: []string{"dns"}, fails: true},
		"another policy":       {policy: "maybe", fails: true},
		"a list without items": {policy: "list", fails: true},
		"a name":               {allow: []string{"example.com"}, fails: true},
	} {
		got, err := parseEgress(tt.policy, tt.allow)
		if (err != nil) != tt.fails || err != nil && warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(tt.want, got); err == nil && diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}
