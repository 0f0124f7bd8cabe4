package nestedhost_test

import (
	"testing"
	"time"

	"warmboot/internal/vmm/firecracker/standin"
)

// TestFirecrackerInJails runs the driver's suite with the stand-in in jails where cgroup v2 holds machines to their limits, and has doctor install what is
// jailed then. (TestFirecracker runs the real jailer.)
func TestFirecrackerInJails(t *testing.T) {
	m := boot(t)
	const program = "/root/standin"
	compile(t, m, program, "build", "warmboot/internal/vmm/firecracker/standin/program")
	runTestsFor(t, m, 20*time.Minute, "warmboot/internal/vmm/firecracker", "^(TestConformance|TestJail.*|TestMounts.*)$",
		standin.ProgramVar+"="+program, "WARMBOOT_TEST_FIRECRACKER_JAILED=1")
	runTests(t, m, "warmboot/cmd/warmboot", "^TestDoctorInstallsFirecrackerWithItsJailer$", standin.ProgramVar+"="+program)
}
