package preflight

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"warmboot/internal/vmm/firecracker/standin"
)

// TestMain fails if a test leaves a goroutine. The test binary is also Firecracker's stand-in, and a host that holds Firecracker back.
func TestMain(m *testing.M) {
	standin.Run()
	if host := os.Getenv(heldVar); host != "" {
		if err := heldMain(host); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}
