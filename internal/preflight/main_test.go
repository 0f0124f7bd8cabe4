package preflight

import (
	"testing"

	"go.uber.org/goleak"

	"warmboot/internal/vmm/firecracker/standin"
)

// TestMain fails if a test leaves a goroutine. The test binary is also Firecracker's stand-in.
func TestMain(m *testing.M) {
	standin.Run()
	goleak.VerifyTestMain(m)
}
