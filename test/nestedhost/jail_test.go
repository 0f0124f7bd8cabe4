package nestedhost_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"warmboot/internal/vmm/firecracker/standin"
	"warmboot/internal/vmm/vmmtest"
	"warmboot/test/nestedhost"
)

// TestJails runs, in a machine with cgroup v2, what there is to see of jails and their limits: with the stand-in, and with real ones where it is
// told of some.
func TestJails(t *testing.T) {
	binaries := map[string]string{"firecracker": os.Getenv("WARMBOOT_TEST_FIRECRACKER"), "jailer": os.Getenv("WARMBOOT_TEST_JAILER")}
	real := binaries["firecracker"] != "" && binaries["jailer"] != ""
	var m *nestedhost.Machine
	if real {
		m = bootWithImage(t)
	} else {
		m = boot(t)
	}
	const program = "/root/standin"
	compile(t, m, program, "build", "warmboot/internal/vmm/firecracker/standin/program")
	const pkg = "warmboot/internal/vmm/firecracker"
	runTestsFor(t, m, 20*time.Minute, pkg, "^(TestAllInJails|TestJail.*|TestMounts.*)$", standin.ProgramVar+"="+program)
	if !real {
		t.Log("SKIPPED: the rest starts a real Firecracker in its real jailer; set WARMBOOT_TEST_FIRECRACKER and WARMBOOT_TEST_JAILER to their paths")
		return
	}
	for name, path := range binaries {
		path, err := filepath.Abs(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.CopyIn(t.Context(), path, "/usr/local/bin/"+name); err != nil {
			t.Fatal(err)
		}
	}
	const guest = "/root/vmm-guest"
	compile(t, m, guest, "build", "warmboot/internal/vmm/vmmtest/guest")
	runTestsFor(t, m, 20*time.Minute, pkg, "^TestReal.*$", "WARMBOOT_TEST_FIRECRACKER=/usr/local/bin/firecracker", vmmtest.GuestVar+"="+guest, "WARMBOOT_TEST_KERNEL_ARGS=noxsave")
}
