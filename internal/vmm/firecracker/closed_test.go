package firecracker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"warmboot/internal/vmm/firecracker/standin"
)

// A jailed machine has a user and a group of its own and is in no other. A guest that has broken out of another one finds nothing that is open to it,
// not even as a reader of snapshots, and cannot write to what it shares.
func TestJailIsClosedToOthers(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	m := r.mustRestore(t)
	pid, dir := m.Handle().PID, m.Handle().Dir
	root := fmt.Sprintf("/proc/%d/root", pid)
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if ids := fmt.Sprintf("\nUid:\t%[1]d\t%[1]d\t%[1]d\t%[1]d\nGid:\t%[2]d\t%[2]d\t%[2]d\t%[2]d\n", owner.UID, owner.GID); err != nil || !strings.Contains(string(text), ids) || !strings.Contains(string(text), "\nGroups:\t \n") {
		t.Errorf("it is not of its user and its group alone: %s, %v", text, err)
	}
	for _, path := range []string{dir, filepath.Join(dir, jailDir), filepath.Join(dir, machineFile), root + "/", root + "/dev/kvm", root + "/dev/net/tun"} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v, %v", path, info, err)
		}
	}
	sibling := func(name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.UID + 1, Gid: owner.GID + 1, Groups: owner.Groups()}}
		out, err := cmd.CombinedOutput()
		t.Logf("%s %s: %v, %.80q", name, args, err, out)
		return err
	}
	for _, file := range []string{r.snap.MemoryFile, r.snap.StateFile} {
		if err := sibling("head", "-c", "1", file); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if err := sibling("dd", "if=/dev/null", "conv=notrunc", "of="+file); err == nil {
			t.Errorf("%s can be written", file)
		}
	}
	for _, try := range [][]string{{"ls", dir}, {"ls", root + "/"}, {"head", "-c", "1", root + "/data"}, {"head", "-c", "1", fmt.Sprintf("/proc/%d/mem", pid)}, {"sh", "-c", fmt.Sprintf("kill -9 %d", pid)}} {
		if err := sibling(try[0], try[1:]...); err == nil {
			t.Errorf("%q worked", try)
		}
	}
	mustAsk(t, m, "read", "7")
}
