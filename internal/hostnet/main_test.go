package hostnet

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
)

// insideVar says that this is the test binary in the network namespace that stands for the host.
const insideVar = "WARMBOOT_TEST_HOSTNET"

// needVar makes tests that cannot run fail instead of being skipped.
const needVar = "WARMBOOT_E2E"

// TestMain runs the tests in a network namespace of their own, which they take for the host: whatever they do, nothing happens to the
// machine's network, and nothing is left of it. It fails if a test leaves a goroutine.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv(insideVar) == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), insideVar+"=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			os.Exit(exit.ExitCode())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "tests need root's right to make network namespaces:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Geteuid() == 0 {
		if err := prepareHost(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

func prepareHost() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(lo), os.WriteFile(forwardFile, []byte("1"), 0))
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv(needVar) != "" {
		t.Fatal("network slots need root, and " + needVar + " asks for them")
	}
	t.Skip("SKIPPED: needs root to make network namespaces, TAPs and network rules")
}
