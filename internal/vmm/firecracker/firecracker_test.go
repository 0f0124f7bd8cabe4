package firecracker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
	"warmboot/internal/vmm/vmmtest"
)

// jailedVar, if set, has the tests start the stand-in in jails; cgroupVar names the cgroup of the tests that have started these.
const (
	jailedVar = "WARMBOOT_TEST_FIRECRACKER_JAILED"
	cgroupVar = "WARMBOOT_TEST_FIRECRACKER_CGROUP"
)

func jailing() bool { return os.Getenv(jailedVar) != "" }

// owner is a user that nothing else runs as.
var owner = vmm.Owner{UID: 1_900_098_001, GID: 1_900_098_001, Readers: 1_900_098_000}

func TestConformance(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1.7.0", "1.12.1", "1.15.1", "1.16.2", "1.17.0"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			conformance(t, standin.Profile{Version: version})
		})
	}
}

// newDriver makes a driver whose machines have groups of their own wherever there are cgroups, even if they cannot be limited.
func newDriver(c Config) *Driver {
	d := New(c)
	if root, err := hierarchy(); err != nil || root == "" {
		return d
	}
	d.jail.cgroups.name = testCgroup()
	if d.jail.unlimited {
		d.jail.unlimited, d.jail.cgroups.wanted, d.jail.cgroups.limits = false, nil, func(vmm.Spec) []limit { return nil }
	}
	return d
}

// testCgroup is the name of the tests' cgroup, theirs alone.
func testCgroup() string {
	if name := os.Getenv(cgroupVar); name != "" {
		return name
	}
	return fmt.Sprintf("warmboot-test-%d", os.Getpid())
}

// groupOf is the path of a machine's cgroup; "" if there are none here.
func groupOf(t testing.TB, id string) string {
	t.Helper()
	root, err := hierarchy()
	if err != nil {
		t.Fatal(err)
	}
	if root == "" {
		return ""
	}
	return filepath.Join(root, testCgroup(), id)
}

// limitable reports whether machines can be limited here.
func limitable() bool {
	root, err := hierarchy()
	if err != nil || root == "" {
		return false
	}
	text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	return err == nil && !slices.ContainsFunc(controllers, func(c string) bool { return !slices.Contains(strings.Fields(string(text)), c) })
}

func conformance(t *testing.T, p standin.Profile) {
	dir := shared(t)
	config := configFor(t, p)
	config.StateDir, config.Balloon = t.TempDir(), true
	vmmtest.Run(t, vmmtest.Suite{
		New:        func(*testing.T) vmm.Driver { return newDriver(config) },
		Again:      func(*testing.T, vmm.Driver) vmm.Driver { return newDriver(config) },
		Spec:       func(t *testing.T) vmm.Spec { return machineSpec(t, dir) },
		Kill:       func(t *testing.T, _ vmm.Driver, m vmm.Machine) { kill(t, m.Handle().PID) },
		Alive:      func(t *testing.T, _ vmm.Driver, id string) bool { return find(t, config.Binary, id) != 0 },
		NoForwards: true,
		BalloonMiB: 160,
	})
}

// configFor is the configuration of a driver of the stand-in.
func configFor(t testing.TB, p standin.Profile) Config {
	t.Helper()
	kernel := filepath.Join(shared(t), "kernel")
	write(t, kernel, kerneltest.ELF(4096))
	if jailing() {
		return jailedConfig(t, p, kernel)
	}
	return Config{Unjailed: true, Binary: standin.Install(t, p), ProbeKernel: kernel}
}

func jailedConfig(t testing.TB, p standin.Profile, kernel string) Config {
	t.Helper()
	program, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return Config{Unlimited: !limitable(), Binary: standin.InstallJailed(t, p, program), ProbeKernel: kernel}
}

// machineSpec is a machine with all its parts but a network. Its files lie in dir.
func machineSpec(t testing.TB, dir string) vmm.Spec {
	t.Helper()
	spec := vmm.Spec{
		VCPUs: 1, MemoryMiB: 32, Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"),
		RootDisk: vmm.Disk{Path: filepath.Join(dir, "root"), Format: vmm.Raw}, DataDisk: vmm.Disk{Path: filepath.Join(dir, "data"), Format: vmm.Raw},
		Owner: owner,
	}
	write(t, spec.Kernel, kerneltest.ELF(4096))
	write(t, spec.Initrd, []byte("initrd"))
	write(t, spec.RootDisk.Path, []byte("the root disk"))
	write(t, spec.DataDisk.Path, make([]byte, 4096))
	if os.Geteuid() == 0 {
		if err := os.Chown(spec.DataDisk.Path, int(owner.UID), int(owner.GID)); err != nil {
			t.Fatal(err)
		}
	}
	return spec
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

// shared is a temporary directory that others may pass through and read.
func shared(t testing.TB) string {
	t.Helper()
	d, err := os.MkdirTemp("", "fctest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// find returns the process of a machine that runs a binary, in its jail or not, or 0.
func find(t testing.TB, binary, id string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if args := strings.Split(string(text), "\x00"); err == nil && len(args) > 3 && (args[0] == binary || args[0] == "/"+filepath.Base(binary)) && args[1] == "--id" && args[2] == id {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	return 0
}
