package nestedhost_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warmboot/test/nestedhost"
)

// These name the environment variables with the binaries to test with: of one release, and such as need no libraries, as those of releases are.
const (
	firecrackerVar = "WARMBOOT_TEST_FIRECRACKER"
	jailerVar      = "WARMBOOT_TEST_JAILER"
)

// noXSAVE keeps guests' kernels from what the emulated processor says about its XSAVE, which contradicts itself. (Within QEMU they find that out and do
// without it; what Firecracker shows them of the processor lets them believe it, and their programs die of the first signal.)
const noXSAVE = "noxsave"

// bootWithFirecracker is a machine with the runtime image and Firecracker, installed as a user would have it.
func bootWithFirecracker(t *testing.T, with ...func(*nestedhost.Config)) *nestedhost.Machine {
	t.Helper()
	binaries := map[string]string{
		"firecracker": os.Getenv(firecrackerVar), "jailer": os.Getenv(jailerVar),
		// Those that `make build` has made: the runtime image has this very guest agent.
		"warmboot": "../../bin/warmboot", "warmboot-guest": "../../bin/warmboot-guest",
	}
	if binaries["firecracker"] == "" || binaries["jailer"] == "" {
		t.Skipf("SKIPPED: runs microVMs in a real Firecracker, in a machine that has KVM; run `make e2e-firecracker FIRECRACKER=binary JAILER=binary` with those of a release, which sets %s and %s",
			firecrackerVar, jailerVar)
	}
	m := bootWithImage(t, with...)
	for name, path := range binaries {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.CopyIn(t.Context(), path, "/usr/local/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	for name, pkg := range map[string]string{"registry": "test/registry", "udpecho": "test/e2e/udpecho"} {
		compile(t, m, "/usr/local/bin/"+name, "build", "warmboot/"+pkg)
	}
	// Without it the guests of this machine do not work.
	sh(t, m, "mkdir -p /etc/warmboot; echo CONTAINER_RUNTIME_KERNEL_ARGS="+noXSAVE+" >/etc/warmboot/environment")
	t.Log(sh(t, m, "firecracker --version; jailer --version; sha256sum /usr/local/bin/firecracker /usr/local/bin/jailer; uname -a"))
	return m
}

// TestFirecracker runs, in one machine, what there is to see of microVMs under Firecracker.
func TestFirecracker(t *testing.T) {
	m := bootWithFirecracker(t)
	suite := func(pkg, pattern string, env ...string) func(*testing.T, *nestedhost.Machine) {
		return func(t *testing.T, m *nestedhost.Machine) {
			runTestsFor(t, m, time.Hour, "warmboot/"+pkg, pattern, append(env, "WARMBOOT_E2E=1")...)
		}
	}
	const guest = "/root/vmm-guest"
	compile(t, m, guest, "build", "warmboot/internal/vmm/vmmtest/guest")
	for _, step := range []struct {
		name string
		run  func(*testing.T, *nestedhost.Machine)
	}{
		{"the driver", suite("internal/vmm/firecracker", "Real", firecrackerVar+"=/usr/local/bin/firecracker", "WARMBOOT_TEST_VMM_GUEST="+guest, "WARMBOOT_TEST_KERNEL_ARGS="+noXSAVE)},
		{"the network", suite("internal/hostnet", ".")},
		{"namespaces", suite("internal/netns", ".")},
		{"end to end", suite("test/e2e", "^(TestServe|TestSlots)$", "WARMBOOT_TEST_BIN=/usr/local/bin", "WARMBOOT_TEST_VMM=firecracker", "CONTAINER_RUNTIME_KERNEL_ARGS="+noXSAVE)},
		{"as a user has it", func(t *testing.T, m *nestedhost.Machine) { asAUser(t, m, "firecracker") }},
		{"with an image of one's own", withOwnImage},
	} {
		t.Run(step.name, func(t *testing.T) {
			begin := time.Now()
			step.run(t, m)
			t.Logf("took %.1fs", time.Since(begin).Seconds())
		})
	}
}

// isUnder fails the test unless the line of the log that says which VMM `serve` has chosen names this one, with KVM.
func isUnder(t *testing.T, m *nestedhost.Machine, vmm string) {
	t.Helper()
	line := sh(t, m, "journalctl -u warmboot --no-pager -o cat | grep 'MicroVMs run under' | tail -n 1")
	t.Log(line)
	if !strings.Contains(strings.ToLower(line), "run under "+vmm+" ") || !strings.Contains(line, " with KVM") {
		t.Errorf("serve has not chosen %s with KVM: %s", vmm, line)
	}
}
