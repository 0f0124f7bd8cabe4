package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// noTraces fails the test if, when everything is over, there is something on this machine that was not there before: processes, mounts, network
// interfaces and namespaces, nftables tables, cgroups, files where temporary ones are. Only a machine that is all ours can be asked for so much.
func noTraces(t *testing.T) {
	t.Helper()
	if !onFirecracker {
		return
	}
	before := traces(t)
	t.Cleanup(func() {
		for _, now := range traces(t) {
			if !slices.Contains(before, now) {
				t.Errorf("there is left: %s", now)
			}
		}
	})
}

func traces(t *testing.T) (all []string) {
	t.Helper()
	for _, name := range tables(t) {
		all = append(all, "nftables table "+name)
	}
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(links)) {
		all = append(all, "network interface "+strings.Fields(line)[1])
	}
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		all = append(all, "mount "+strings.Fields(lines.Text())[4])
	}
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range processes {
		if name, err := os.ReadFile(p + "/comm"); err == nil && slices.Contains([]string{"firecracker", "jailer", "warmboot", "qemu-system-x86"}, strings.TrimSpace(string(name))) {
			all = append(all, "process "+filepath.Base(p)+" "+string(name))
		}
		if ns, err := os.Readlink(p + "/ns/net"); err == nil && !slices.Contains(all, "network namespace "+ns) {
			all = append(all, "network namespace "+ns)
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/warmboot/*/", "/run/netns/*", "/run/warmboot*", "/tmp/*", "/var/tmp/*", "/srv/*", "/dev/shm/*"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	return all
}
