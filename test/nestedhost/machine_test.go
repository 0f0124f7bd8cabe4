package nestedhost_test

import (
	"bytes"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/test/nestedhost"
)

// TestMachine is what tests may do to a machine, in one life of one machine, since booting is what costs time.
func TestMachine(t *testing.T) {
	m := boot(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *nestedhost.Machine)
	}{
		{"is a host", isHost},
		{"runs commands", runsCommands},
		{"files go in and out", files},
		{"reboots", reboots},
		{"keeps what was synced when its power is cut", powerCut},
		{"its clock can be set back", clock},
		{"says that it hangs", hangs},
		{"says that its kernel panicked", panics},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			begin := time.Now()
			step.run(t, m)
			t.Logf("took %.1fs", time.Since(begin).Seconds())
		}) {
			break
		}
	}
}

func isHost(t *testing.T, m *nestedhost.Machine) {
	if state, err := m.Run(t.Context(), "systemctl", "is-system-running", "--wait"); err != nil || state != "running" {
		t.Errorf("systemd is %q (%v):\n%s", state, err, sh(t, m, "systemctl --failed --no-legend"))
	}
	for what, line := range map[string]string{
		"KVM for the group kvm":  "test $(stat -c '%a %G' /dev/kvm | tr -d ' ') = 660kvm",
		"a processor with SVM":   "grep -q -w svm /proc/cpuinfo && grep -q -w npt /proc/cpuinfo",
		"cgroup v2":              "grep -q -w memory /sys/fs/cgroup/cgroup.controllers",
		"nftables":               "nft add table inet x && nft list tables | grep -q 'inet x' && nft delete table inet x",
		"network namespaces":     "ip netns add x && ip link add name v1 type veth peer name v2 && ip link set dev v2 netns x && ip link delete dev v1 && ip netns delete x",
		"TUN devices":            "ip tuntap add dev tap0 mode tap && ip link delete tap0",
		"vhost-vsock":            "modprobe vhost_vsock && test -c /dev/vhost-vsock",
		"room":                   "test $(df --output=avail / | tail -n 1) -gt 12000000",
		"no way to the Internet": "test -z \"$(ip -o link | grep -v ' lo: ')\"",
		"a QEMU of its own":      "qemu-system-x86_64 -version && qemu-img --version",
		"a kernel in /boot":      "test -s /boot/vmlinuz-$(uname -r)",
	} {
		if _, err := m.Run(t.Context(), "sh", "-ec", line); err != nil {
			t.Errorf("it has not %s: %v", what, err)
		}
	}
}

func runsCommands(t *testing.T, m *nestedhost.Machine) {
	var stdout, stderr bytes.Buffer
	code, err := m.Exec(t.Context(), nestedhost.Command{
		Argv: []string{"sh", "-c", `cat; pwd; echo "$X" >&2; exit 7`}, Env: []string{"X=a b"}, Dir: "/etc",
		Stdin: strings.NewReader("input\n"), Stdout: &stdout, Stderr: &stderr,
	})
	if code != 7 || err != nil || stdout.String() != "input\n/etc\n" || stderr.String() != "a b\n" {
		t.Errorf("exit code %d, %v, wrote %q and %q", code, err, stdout.String(), stderr.String())
	}
	if _, err := m.Run(t.Context(), "sh", "-c", "echo why; exit 3"); err == nil || !strings.Contains(err.Error(), "exit code 3") || !strings.Contains(err.Error(), "why") {
		t.Errorf("a command that fails gives %v", err)
	}
	if _, err := m.Run(t.Context(), "no-such-program"); warmboot.CodeOf(err) != warmboot.NotFound {
		t.Errorf("a command that does not exist gives %v", err)
	}
	if _, err := m.Run(within(t, time.Second), "sleep", "1000"); warmboot.CodeOf(err) != warmboot.Timeout {
		t.Errorf("a command that takes too long gives %v", err)
	}
	if out := sh(t, m, "pgrep -x sleep || echo none"); out != "none" {
		t.Errorf("the command that took too long still runs: %s", out)
	}
}

func files(t *testing.T, m *nestedhost.Machine) {
	const size = 128 << 20
	dir := filepath.Join(t.TempDir(), "tree")
	if err := os.MkdirAll(filepath.Join(dir, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	content := make([]byte, size)
	rand.Read(content)
	for path, text := range map[string][]byte{"big": content, "deep/small": []byte("small")} {
		if err := os.WriteFile(filepath.Join(dir, path), text, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("big", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := m.CopyIn(t.Context(), dir, "/srv/new/tree"); err != nil {
		t.Fatal(err)
	}
	t.Logf("in: %.0f MB/s", size/1e6/time.Since(begin).Seconds())
	if got := sh(t, m, "cd /srv/new/tree; readlink link; stat -c %a big; cat deep/small; echo more >>big"); got != "big\n640\nsmall" {
		t.Errorf("inside: %q", got)
	}
	begin = time.Now()
	back := filepath.Join(t.TempDir(), "back")
	if err := m.CopyOut(t.Context(), "/srv/new/tree", back); err != nil {
		t.Fatal(err)
	}
	t.Logf("out: %.0f MB/s", size/1e6/time.Since(begin).Seconds())
	if got, err := os.ReadFile(filepath.Join(back, "big")); err != nil || !bytes.Equal(got, append(bytes.Clone(content), "more\n"...)) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "big")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("a change inside has changed the file outside (%v)", err)
	}
	if err := m.CopyOut(t.Context(), "/no-such-file", back+"2"); err == nil || !strings.Contains(err.Error(), "no-such-file") {
		t.Errorf("a file that is not there gives %v", err)
	}
}

func bootID(t *testing.T, m *nestedhost.Machine) string {
	t.Helper()
	return must(t, m, "cat", "/proc/sys/kernel/random/boot_id")
}

func reboots(t *testing.T, m *nestedhost.Machine) {
	sh(t, m, "echo kept >/root/over-a-reboot; echo gone >/run/over-a-reboot")
	before := bootID(t, m)
	if err := m.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bootID(t, m) == before {
		t.Error("it has not rebooted")
	}
	if got := sh(t, m, "cat /root/over-a-reboot; ls /run/over-a-reboot 2>/dev/null || true"); got != "kept" {
		t.Errorf("over the reboot came %q", got)
	}
}

func powerCut(t *testing.T, m *nestedhost.Machine) {
	before := bootID(t, m)
	sh(t, m, "echo synced >/root/synced; sync; echo lost >/root/lost")
	if err := m.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Run(t.Context(), "true"); warmboot.CodeOf(err) != warmboot.Conflict {
		t.Errorf("a machine that is off gives %v", err)
	}
	if err := m.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	if bootID(t, m) == before {
		t.Error("it has not booted again")
	}
	if got := sh(t, m, "cat /root/synced; cat /root/lost 2>/dev/null || true"); got != "synced" {
		t.Errorf("over the power cut came %q", got)
	}
}

func clock(t *testing.T, m *nestedhost.Machine) {
	past := time.Date(2020, 2, 29, 12, 0, 0, 0, time.UTC)
	if err := m.SetClock(t.Context(), past); err != nil {
		t.Fatal(err)
	}
	is, err := time.Parse(time.RFC3339, must(t, m, "date", "-u", "+%Y-%m-%dT%H:%M:%SZ"))
	if err != nil || is.Sub(past) < 0 || is.Sub(past) > time.Minute {
		t.Errorf("its clock says %v (%v), set was %v", is, err, past)
	}
}

func hangs(t *testing.T, m *nestedhost.Machine) {
	sh(t, m, "echo the last word >/dev/console")
	m.Freeze(true)
	begin := time.Now()
	_, err := m.Run(within(t, 2*time.Second), "true")
	if warmboot.CodeOf(err) != warmboot.Timeout || !strings.Contains(err.Error(), "the last word") {
		t.Errorf("a machine that hangs gives %v", err)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("that took %v", took)
	}
	m.Freeze(false)
	if _, err := m.Run(within(t, time.Minute), "true"); err != nil {
		t.Errorf("the machine that hung for a moment gives %v", err)
	}
}

func panics(t *testing.T, m *nestedhost.Machine) {
	_, err := m.Run(within(t, time.Minute), "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000")
	if warmboot.CodeOf(err) != warmboot.Internal || !strings.Contains(err.Error(), "sysrq triggered crash") {
		t.Errorf("a kernel that panics gives %v", err)
	}
}
