package nestedhost_test

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"warmboot/internal/vmm/vmmtest"
	"warmboot/test/nestedhost"
)

// remoteImage is where it is in the machine.
const remoteImage = "/var/lib/runtime-image"

// bootWithImage is boot, and copies the runtime image into the machine.
func bootWithImage(t *testing.T, with ...func(*nestedhost.Config)) *nestedhost.Machine {
	t.Helper()
	image := os.Getenv(vmmtest.ImageVar)
	if image == "" && os.Getenv(nestedVar) == "1" {
		t.Fatalf("%s is set, and %s is not: it must be the directory of a built runtime image", nestedVar, vmmtest.ImageVar)
	}
	m := boot(t, with...)
	if err := m.CopyIn(t.Context(), image, remoteImage); err != nil {
		t.Fatal(err)
	}
	return m
}

// compile builds a package as the arguments say, and copies the binary into the machine as name.
func compile(t *testing.T, m *nestedhost.Machine, name string, args ...string) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "binary")
	build := exec.CommandContext(t.Context(), "go", append(args[:len(args)-1:len(args)-1], "-ldflags=-s -w", "-o", binary, args[len(args)-1])...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build.Args, err, out)
	}
	if err := m.CopyIn(t.Context(), binary, name); err != nil {
		t.Fatal(err)
	}
}

// runTests runs tests of a package of ours in the machine: not one may be skipped.
func runTests(t *testing.T, m *nestedhost.Machine, pkg, pattern string, env ...string) {
	t.Helper()
	runTestsFor(t, m, 5*time.Minute, pkg, pattern, env...)
}

func runTestsFor(t *testing.T, m *nestedhost.Machine, limit time.Duration, pkg, pattern string, env ...string) {
	t.Helper()
	binary := "/root/" + path.Base(pkg) + ".test"
	var said bytes.Buffer
	compile(t, m, binary, "test", "-c", pkg)
	code, err := m.Exec(within(t, limit+time.Minute), nestedhost.Command{
		Argv:   []string{binary, "-test.v", "-test.failfast", "-test.timeout=" + limit.String(), "-test.run=" + pattern},
		Env:    append(env, vmmtest.ImageVar+"="+remoteImage, vmmtest.AcceleratorVar+"=kvm"),
		Stdout: io.MultiWriter(t.Output(), &said), Stderr: t.Output(),
	})
	if err != nil {
		t.Fatal(err)
	}
	if code != 0 {
		t.Errorf("the tests of %s ended with %d", pkg, code)
	}
	for _, line := range skips.FindAllString(said.String(), -1) {
		t.Errorf("the tests of %s: %s", pkg, line)
	}
	if !passes.Match(said.Bytes()) {
		t.Errorf("of %s no test has run", pkg)
	}
}

// What `go test -v` prints, and what our tests say when they leave something out without being skipped.
var (
	skips  = regexp.MustCompile(`(?m)^.*(--- SKIP|SKIPPED:).*$`)
	passes = regexp.MustCompile(`(?m)^--- PASS`)
)

// TestUnderKVM runs, in one machine, what needs KVM.
func TestUnderKVM(t *testing.T) {
	m := bootWithImage(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T, *nestedhost.Machine)
	}{
		{"the guest API over vsock", func(t *testing.T, m *nestedhost.Machine) {
			must(t, m, "modprobe", "vhost_vsock")
			runTests(t, m, "warmboot/internal/guest", "^TestVsock$", "WARMBOOT_TEST_VSOCK=1")
		}},
		{"the QEMU driver", func(t *testing.T, m *nestedhost.Machine) {
			const guest = "/root/vmm-guest"
			compile(t, m, guest, "build", "warmboot/internal/vmm/vmmtest/guest")
			runTests(t, m, "warmboot/internal/vmm/qemu", "^(TestConformance|TestConfinement|TestAnUncertainTryOfKVMIsNotRemembered)$", vmmtest.GuestVar+"="+guest)
		}},
		{"a control plane whose clock jumps", func(t *testing.T, m *nestedhost.Machine) {
			runTests(t, m, "warmboot/test/crash", "^TestClockJumps$", "WARMBOOT_TEST_CLOCK=1")
		}},
		{"warmboot as a user has it", func(t *testing.T, m *nestedhost.Machine) { asAUser(t, m, "qemu") }},
		{"its host is booted again, and loses its power", func(t *testing.T, m *nestedhost.Machine) {
			h := &host{m}
			must(t, m, "systemctl", "enable", "-q", "--now", "warmboot")
			h.serves(t)
			h.comesBack(t, h.reboot)
			sh(t, m, "systemd-run -q --unit=registry registry "+registry)
			h.comesBack(t, h.cut)
		}},
	} {
		t.Run(step.name, func(t *testing.T) { step.run(t, m) })
	}
}
