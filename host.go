package warmboot

import (
	"errors"
	"regexp"
	"time"
)

// HostState tells whether a host's agent gives signs of life.
type HostState string

// The states of a host.
const (
	HostUp   HostState = "up"
	HostDown HostState = "down" // nothing was heard of it for too long; what runs there may well go on
)

// ErrHostClosed is the cause of an Unavailable error when a container was to go to a host that takes nothing new.
var ErrHostClosed = errors.New("it takes nothing new")

// Host is a machine that runs microVMs, under an agent.
type Host struct {
	ID      ID
	Name    string // unique
	Address string // host:port at which managers and other hosts reach its agent; empty for the one inside `warmboot serve`
	State   HostState
	// Cordoned keeps new containers and builds away. What is there goes on.
	Cordoned bool
	// Beat counts the signs of life. A host whose Beat stands still is down; clocks are not compared.
	Beat       int64
	LastSeenAt *time.Time
	CreatedAt  time.Time
	Inventory  HostInventory
}

// HostInventory is what an agent tells about its host. Sizes are in bytes.
type HostInventory struct {
	Version string `json:"version,omitempty"` // of warmboot
	VMM     string `json:"vmm"`               // as in fc_version: "v1.15.1", "qemu-7.2.22"
	VMMWhy  string `json:"vmm_why,omitempty"` // one line: why this VMM and accelerator
	// VMMWarning is one line: what is wrong with that VMM all the same; mostly empty.
	VMMWarning string `json:"vmm_warning,omitempty"`
	// Network is how microVMs are connected: "tap" or "user". In user mode nothing keeps egress policies and bandwidth limits.
	Network    string `json:"network,omitempty"`
	NetworkWhy string `json:"network_why,omitempty"` // one line: why not "tap"
	Arch       string `json:"arch,omitempty"`        // "x86_64"
	CPU        string `json:"cpu,omitempty"`         // what a guest sees
	BootID     string `json:"boot_id,omitempty"`     // changes when the machine is rebooted: /proc/sys/kernel/random/boot_id
	// Platform stands for everything, beside the runtime image, that a snapshot and the host it is restored on must have in
	// common: hosts of one platform can use each other's snapshots.
	Platform    string `json:"platform"`
	CPUs        int    `json:"cpus,omitempty"`
	MemoryBytes int64  `json:"memory_bytes,omitempty"`
	DiskBytes   int64  `json:"disk_bytes,omitempty"` // of the storage root's file system
	DiskFree    int64  `json:"disk_free_bytes,omitempty"`
	MaxVMs      int    `json:"max_vms,omitempty"` // how many microVMs it takes at the most
	VMs         int    `json:"vms"`               // how many there are, those of builds included
	// Snapshots are the runtime snapshots whose files it has; Images the digests of the runtime images.
	Snapshots []ID     `json:"snapshots,omitempty"`
	Images    []string `json:"images,omitempty"`
}

// hostName is what a machine's own name may be (RFC 1123), dots included.
var hostName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?$`)

// ValidateHostName reports an Invalid error for a name that a host cannot have.
func ValidateHostName(name string) error {
	if !hostName.MatchString(name) {
		return Errorf(Invalid, "host name", "%.80q is not a valid host name; use 1 to 63 letters, digits, '.' or '-'", name)
	}
	return nil
}

// Manager is one running control plane. Managers on one store are each other's equals.
type Manager struct {
	ID        ID     // fresh at each start
	Name      string // unique; the next start of the same manager has the same
	Beat      int64  // counts its signs of life
	StartedAt time.Time
}
