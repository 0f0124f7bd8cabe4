package firecracker

import (
	"os"

	"warmboot"
	"warmboot/internal/vmm/process"
)

// jailed starts Firecracker by way of its jailer.
type jailed struct{}

var errNoJail = warmboot.Errorf(warmboot.Unavailable, "jail machine", "the jailer is not supported yet; start Firecracker without it")

func (jailed) name(p placed) string { return p.name }

func (jailed) start(order, func(*os.File) error) (*process.Process, error) { return nil, errNoJail }
