package hostnet

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// TestGuardHoldsBackOnlyItsUsers makes real connections as real users against a real kernel rule. The child is this test binary
// itself.
func TestGuardHoldsBackOnlyItsUsers(t *testing.T) {
	if addr := os.Getenv("WARMBOOT_TEST_DIAL"); addr != "" {
		c, err := net.DialTimeout("tcp4", addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to set network rules and to run as other users")
	}
	t.Parallel()
	const first = 1_950_000_000
	allowed, forbidden := listenTCP(t), listenTCP(t)
	g := &guard{first: first, last: first + 9, ports: []uint16{portOf(allowed)}}
	if err := g.install(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.remove(); err != nil {
			t.Error(err)
		}
		if !dialAs(t, first+1, forbidden.Addr().String()) {
			t.Error("the rule still holds after its removal")
		}
	}()
	for _, tt := range []struct {
		name string
		uid  uint32
		to   net.Listener
		want bool
	}{
		{"a VMM to any port of the host", first, forbidden, false},
		{"the last VMM to any port of the host", first + 9, forbidden, false},
		{"a VMM to an allowed port", first + 1, allowed, true},
		{"the user before", first - 1, forbidden, true},
		{"the user after", first + 10, forbidden, true},
		{"root", 0, forbidden, true},
	} {
		if got := dialAs(t, tt.uid, tt.to.Addr().String()); got != tt.want {
			t.Errorf("%s: connected is %v, want %v", tt.name, got, tt.want)
		}
	}
}

func listenTCP(t *testing.T) net.Listener {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func portOf(l net.Listener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }

// dialAs reports whether a process of another user can connect.
func dialAs(t *testing.T, uid uint32, addr string) bool {
	t.Helper()
	// The binary is in a directory of root's alone; its descriptor can be executed by anybody who has it.
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd := exec.Command("/proc/self/fd/"+strconv.Itoa(3), "-test.run=^TestGuardHoldsBackOnlyItsUsers$")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = []string{"WARMBOOT_TEST_DIAL=" + addr, insideVar + "=1"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	out, err := cmd.CombinedOutput()
	var exited *exec.ExitError
	if err != nil && !errors.As(err, &exited) {
		t.Fatalf("%v: %s", err, out)
	}
	return err == nil
}
