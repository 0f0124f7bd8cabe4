package firecracker

import (
	"os"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// jailed starts Firecracker by way of its jailer.
type jailed struct{}

var errNoJail = warmboot.Errorf(warmboot.Unavailable, "jail machine", "the jailer is not supported yet; start Firecracker without it")

func (jailed) prepare(vmm.Spec) (string, error) { return "", errNoJail }

func (jailed) place(string, placed) (string, error) { return "", errNoJail }

func (jailed) displace(string, placed) error { return errNoJail }

func (jailed) start(string, []string, string, vmm.Spec, *os.File, *os.File) (*process.Process, error) {
	return nil, errNoJail
}

func (jailed) release(string) error { return nil }
