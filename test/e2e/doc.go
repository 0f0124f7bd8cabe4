// Package e2e uses warmboot as its users do: real microVMs under QEMU, a real Docker in each, images pulled from a real registry,
// failures that really happen. `make vm` runs it; without WARMBOOT_E2E=1 it says that it did not run.
package e2e
