// Package preflight looks at a host before warmboot runs on it, and tells in words what is there, what is missing, and the
// command that puts it right. It leaves everything as it was, but for an empty cgroup and what VMMs were found able to do. Fix puts right
// what it can by itself.
package preflight

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"warmboot/internal/hostnet"
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/install"
)

// Status is the outcome of a check.
type Status string

// The outcomes.
const (
	OK   Status = "ok"
	Warn Status = "warn" // it works, but slower, or without something that not everybody needs
	Fail Status = "fail" // warmboot cannot do its work
)

// Check is one thing that was looked at.
type Check struct {
	Name   string `json:"name"`
	Status Status `json:"status"`
	Detail string `json:"detail"`        // what was found
	Fix    string `json:"fix,omitempty"` // what to do about it; empty when nothing needs to be done
}

// Config says what to look at. Zero fields take the defaults of `warmboot serve`.
type Config struct {
	StorageRoot string // DefaultStorageRoot if empty; need not exist yet
	Listen      string // DefaultListen if empty
	OwnerBase   uint32 // the first user id of the VMM processes; DefaultOwnerBase if 0
	Network     string // "auto", "tap" or "user"; "auto" if empty
	NetworkCIDR string // where microVMs with TAPs have their addresses; hostnet.DefaultCIDR if empty
	// VMM is what serve would choose from. TAPs and StateDir are filled in.
	VMM choice.Config
	// RuntimeRootfs is the root disk of a runtime image that serve registers by itself; empty: none.
	RuntimeRootfs string
	// Install is how Fix gets Firecracker.
	Install install.Config
}

// The defaults of Config.
const (
	DefaultStorageRoot = "/srv/fc"
	DefaultListen      = "127.0.0.1:18080"
	DefaultOwnerBase   = 1_900_000_000
)

// ownerRange is how many user ids from OwnerBase on must be free.
const ownerRange = 1 << 16

// withDefaults fills in what is empty.
func (c Config) withDefaults() Config {
	if c.StorageRoot == "" {
		c.StorageRoot = DefaultStorageRoot
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.OwnerBase == 0 {
		c.OwnerBase = DefaultOwnerBase
	}
	c.VMM.TAPs = func(ctx context.Context) error {
		cidr, err := c.cidr()
		if err != nil {
			return err
		}
		return hostnet.CanTAP(ctx, hostnet.Mode(c.Network), cidr)
	}
	// What a server has found out need not be found out again. Without one there is no place for it.
	if dir := filepath.Join(c.StorageRoot, "vmm"); c.VMM.StateDir == "" {
		if _, err := os.Stat(dir); err == nil {
			c.VMM.StateDir = dir
		}
	}
	return c
}

// How long a check may take: trying KVM with each VMM; network slots, for which the kernel may have to load its modules; and any other.
const (
	tryLimit     = 90 * time.Second
	networkLimit = 30 * time.Second
	checkLimit   = 5 * time.Second
)

// Run makes all checks, in the order in which somebody would put things right. Most take no time; trying KVM takes a second where it
// works, and half a minute for each VMM where it is so broken that nothing is heard of it.
func Run(ctx context.Context, c Config) []Check {
	c = c.withDefaults()
	tctx, cancel := context.WithTimeout(ctx, tryLimit)
	t, err := try(tctx, c)
	cancel()
	if err != nil {
		return []Check{{"VMM", Fail, choice.Plain(err), "MANAGER_VMM must be auto, firecracker or qemu"}}
	}
	// of makes a check of what was tried.
	of := func(check func(tried) Check) func(context.Context, Config) Check {
		return func(context.Context, Config) Check { return check(t) }
	}
	qemuOnly := func(check func(context.Context, Config) Check) func(context.Context, Config) Check {
		return func(ctx context.Context, c Config) Check { return t.spared(check(ctx, c)) }
	}
	network := func(_ context.Context, c Config) Check {
		nctx, cancel := context.WithTimeout(ctx, networkLimit)
		defer cancel()
		return checkNetwork(nctx, c)
	}
	var checks []Check
	for _, check := range []func(context.Context, Config) Check{
		checkUser, checkKernel, of(func(t tried) Check { return kvm(t.kvm) }), qemuOnly(checkQEMU), of(func(t tried) Check { return t.firecracker(c.VMM.Firecracker) }), t.jailer, of(func(t tried) Check { return t.chosen(c.VMM.Want) }),
		of(func(t tried) Check { return t.cgroup }), qemuOnly(checkQEMUImg), checkMkfs, checkMmdebstrap, checkKeyring,
		checkMemory, checkDisk, checkTraversal, checkReflink, checkImage, checkPort, checkOwners,
		checkTAP, checkNFTables, checkForwarding, network, checkClock,
	} {
		cctx, cancel := context.WithTimeout(ctx, checkLimit)
		checks = append(checks, check(cctx, c))
		cancel()
	}
	return checks
}

// Worst is the worst status among checks; OK if there are none.
func Worst(checks []Check) Status {
	worst := OK
	for _, c := range checks {
		if c.Status == Fail || c.Status == Warn && worst == OK {
			worst = c.Status
		}
	}
	return worst
}
