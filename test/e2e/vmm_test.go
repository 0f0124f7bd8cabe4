package e2e

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// vmmVar names the environment variable that says under which VMM microVMs run in these tests, "qemu" if it is not set. Firecracker is what `serve` must
// come to by itself.
const vmmVar = "WARMBOOT_TEST_VMM"

// What follows from vmmVar.
var (
	onFirecracker bool
	// patience is how many times as long as elsewhere things may take. Where these tests meet Firecracker, the processor that has the virtualization
	// for it is itself emulated, and there is one.
	patience time.Duration = 1
)

func underWhat() error {
	switch vmm := os.Getenv(vmmVar); vmm {
	case "", "qemu":
		network := "user" // nothing happens to this machine's network
		if os.Getenv(ownNetworkVar) != "" {
			network = "auto"
		}
		return errors.Join(os.Setenv("MANAGER_NETWORK", network), os.Setenv("MANAGER_VMM", "qemu")) // whatever else this machine has
	case "firecracker":
		onFirecracker, patience = true, 6
		return os.Unsetenv("MANAGER_VMM")
	default:
		return fmt.Errorf("%s is %q; it must be qemu or firecracker", vmmVar, vmm)
	}
}

// chosen is how the line of the log begins that says what `serve` has chosen.
func chosen() string {
	if onFirecracker {
		return `INFO MicroVMs run under Firecracker v\d+\.\d+\.\d+ with KVM binary=`
	}
	return `INFO MicroVMs run under QEMU \d`
}

// snapshotOf is how the version in a snapshot of ours begins.
func snapshotOf() string {
	if onFirecracker {
		return "v1."
	}
	return "qemu-"
}
