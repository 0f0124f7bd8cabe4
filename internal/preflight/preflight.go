// Package preflight looks at a host before warmboot runs on it, and tells in words what is there, what is missing, and the
// command that puts it right. It leaves everything as it was.
package preflight

import (
	"context"
	"time"
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
	NetworkCIDR string // where microVMs with TAPs have their addresses; hostnet.DefaultCIDR if empty
}

// The defaults of Config.
const (
	DefaultStorageRoot = "/srv/fc"
	DefaultListen      = "127.0.0.1:18080"
	DefaultOwnerBase   = 1_900_000_000
)

// ownerRange is how many user ids from OwnerBase on must be free.
const ownerRange = 1 << 16

// Run makes all checks, in the order in which somebody would put things right. No single check takes longer than five seconds.
func Run(ctx context.Context, c Config) []Check {
	if c.StorageRoot == "" {
		c.StorageRoot = DefaultStorageRoot
	}
	if c.Listen == "" {
		c.Listen = DefaultListen
	}
	if c.OwnerBase == 0 {
		c.OwnerBase = DefaultOwnerBase
	}
	var checks []Check
	for _, check := range []func(context.Context, Config) Check{
		checkUser, checkKernel, checkKVM, checkQEMU, checkQEMUImg, checkMkfs, checkMmdebstrap, checkKeyring,
		checkMemory, checkDisk, checkTraversal, checkReflink, checkPort, checkOwners, checkTAP, checkNFTables, checkForwarding, checkNetwork,
	} {
		cctx, cancel := context.WithTimeout(ctx, 5*time.Second)
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
