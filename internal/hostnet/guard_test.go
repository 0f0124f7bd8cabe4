package hostnet

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// TestGuardHoldsBackOnlyItsUsers makes real connections as real users against a real kernel rule. The child is this test binary
// itself.
func TestGuardHoldsBackOnlyItsUsers(t *testing.T) {
	if addr := os.Getenv("WARMBOOT_TEST_DIAL"); addr != "" {
		network, addr, _ := strings.Cut(addr, " ")
		if _, err := ask(nil, network, addr, reachedIn); err != nil {
			t.Fatal(err)
		}
		return
	}
	needRoot(t)
	t.Parallel()
	const first = 1_950_000_000
	const metadata = "192.0.0.192"
	world := newOutside(t, metadata)
	registry, private := serve(t, nil, anyPort(localhost), "registry"), serve(t, nil, anyPort(localhost), "database")
	names := serve(t, nil, netip.MustParseAddrPort("127.0.0.9:53"), "names")
	everywhere := serve(t, nil, anyPort(netip.IPv4Unspecified()), "host")
	server := serve(t, world.ns, anyPort(world.addr), "world")
	secrets := serve(t, world.ns, anyPort(netip.MustParseAddr(metadata)), "secrets")
	g := &guard{owner: owner(), first: first, last: first + 9, ports: []uint16{registry.Port()}}
	if err := g.install(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.remove(); err != nil {
			t.Error(err)
		}
		for _, network := range []string{"tcp", "udp"} {
			for _, to := range []netip.AddrPort{private, secrets} {
				if !dialAs(t, first+1, network, to) {
					t.Errorf("%s %s cannot be reached after the rules' removal", network, to)
				}
			}
		}
	}()
	for _, tt := range []struct {
		name string
		uid  uint32
		to   netip.AddrPort
		can  string // over which it is reached
	}{
		{"a VMM to the host's loopback", first, private, ""},
		{"the last VMM to the host's loopback", first + 9, private, ""},
		{"a VMM to another address of the host", first + 1, netip.AddrPortFrom(world.host, everywhere.Port()), ""},
		{"a VMM to a registry", first + 1, registry, "tcp"},
		{"a VMM to a name server on the host", first + 1, names, "tcp udp"},
		{"a VMM to a metadata service", first + 1, secrets, ""},
		{"a VMM to the world", first + 1, server, "tcp udp"},
		{"the user before to the host's loopback", first - 1, private, "tcp udp"},
		{"the user after to the host's loopback", first + 10, private, "tcp udp"},
		{"root to a metadata service", 0, secrets, "tcp udp"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			if got := dialAs(t, tt.uid, network, tt.to); got != strings.Contains(tt.can, network) {
				t.Errorf("%s, %s: an answer is %v, want %v", tt.name, network, got, !got)
			}
		}
	}
}

// Whoever reloads a firewall that begins with "flush ruleset" removes the guard too. It comes back, while there may be guests whom it is against.
func TestGuardComesBack(t *testing.T) {
	needRoot(t)
	t.Parallel()
	c := config(t)
	c.Mode = User
	n := open(t, c)
	s := take(t, n, Wants{})
	private := serve(t, nil, anyPort(localhost), "database")
	for range 2 {
		if dialAs(t, c.FirstUID+uint32(s.Number), "tcp", private) {
			t.Fatal("a VMM can reach the host's loopback")
		}
		removeTable(t, n.guard.table())
		waitFor(t, "the guard", func() bool { return tableExists(t, n.guard.table()) })
	}
	if dialAs(t, c.FirstUID+uint32(s.Number), "tcp", private) {
		t.Error("a VMM can reach the host's loopback")
	}
}

// The end of a server does not take away the guard of another one, even of one whose VMMs have the same users.
func TestGuardsOfTwoOwners(t *testing.T) {
	needRoot(t)
	t.Parallel()
	c := config(t)
	c.Mode = User
	mine := open(t, c)
	s := take(t, mine, Wants{})
	c.Owner = owner()
	theirs, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := theirs.Settle(); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, c)
	if dialAs(t, c.FirstUID+uint32(s.Number), "tcp", serve(t, nil, anyPort(localhost), "database")) {
		t.Error("a VMM can reach the host's loopback")
	}
}

// dialAs reports whether a process of another user gets an answer.
func dialAs(t *testing.T, uid uint32, network string, to netip.AddrPort) bool {
	t.Helper()
	// The binary is in a directory of root's alone; its descriptor can be executed by anybody who has it.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/"+strconv.Itoa(3), "-test.run=^TestGuardHoldsBackOnlyItsUsers$")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = []string{"WARMBOOT_TEST_DIAL=" + network + " " + to.String(), insideVar + "=1"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		t.Fatalf("%v: %s", err, out)
	}
	return err == nil
}
