// Package agent is the host runtime: it owns the microVMs, disks, addresses and snapshot artifacts of one host and carries out
// what the control plane decides (controlplane.Host). It knows which VMM it drives only by the vmm.Driver it is given.
//
// Everything of a container lies in one directory, ROOT/containers/ID: its record, its data disk, its saved log, and
// while its microVM runs, the VMM's own files. The record is enough to take charge of the microVM again after this process has
// died.
package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/disk"
	"warmboot/internal/hostnet"
	"warmboot/internal/rollback"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
)

// Config is what an Agent needs. Zero values of the optional fields take the defaults named.
type Config struct {
	Root   string // the storage root
	Driver vmm.Driver
	// Other is a driver that earlier processes may have started microVMs with: those that still run are taken charge of, and nothing new
	// is started with it. It need not work. Nil: there is none.
	Other vmm.Driver
	// VMMWhy and VMMWarning are one line each to be told: why this VMM, and what is wrong with it. By default, what the driver says.
	VMMWhy, VMMWarning string
	Log                *slog.Logger

	// ImageRoots are the directories below which runtime images may lie; ROOT/images always may.
	ImageRoots []string
	// PlainHTTPRegistries are the registries, as host[:port], that a guest's Docker may speak to without TLS. A registry on
	// the host's own loopback must be listed to be reachable at all.
	PlainHTTPRegistries []string

	VCPUs     int   // of a microVM whose container does not ask for more: DefaultVCPUs
	MemoryMiB int   // likewise: DefaultMemoryMiB
	DiskBytes int64 // of a data disk, sparse: DefaultDiskBytes

	RestoreTimeout time.Duration // restore to Docker answering: DefaultRestoreTimeout
	BootTimeout    time.Duration // cold boot to Docker answering: DefaultBootTimeout
	AnswerTimeout  time.Duration // in which Docker may be silent while a container is started in its machine: DefaultAnswerTimeout

	// OwnerBase is the group that may read snapshots when this process is root, and each VMM has one of the ids after it as its user and group.
	// DefaultOwnerBase if 0.
	OwnerBase uint32
	// ID and Name are this host's; by default they are kept in ROOT/host.json, and the name is the machine's.
	ID   warmboot.ID
	Name string
	// Address is where managers and other hosts reach this agent; empty inside `warmboot serve`.
	Address string
	// Version of warmboot, to be told.
	Version string
	// MaxVMs is how many microVMs the control plane may place here; by default as many as have four times the memory of this machine
	// together, because a restored microVM shares most of its memory with others.
	MaxVMs int
	// Peers fetches files from other hosts; nil: there are none.
	Peers Peers
	// Beat is how often the control plane is told that this host lives: DefaultBeat.
	Beat time.Duration
	// Network says how microVMs are connected. Owner, FirstUID, Registries and Log are filled in.
	Network hostnet.Config
	// KernelArgs are added to the guest's kernel command line.
	KernelArgs []string
}

// The defaults of Config.
const (
	DefaultVCPUs          = 1
	DefaultMemoryMiB      = 512
	DefaultDiskBytes      = 8 << 30
	DefaultRestoreTimeout = 20 * time.Second
	DefaultBootTimeout    = 4 * time.Minute
	DefaultAnswerTimeout  = 2 * time.Minute
	DefaultBeat           = 5 * time.Second
	// DefaultOwnerBase lies in a range that systemd's allocation of user ids (https://systemd.io/UIDS-GIDS/) leaves unused.
	DefaultOwnerBase = 1_900_000_000
)

// Agent runs microVMs on this host. It is safe for concurrent use. It implements controlplane.Host.
type Agent struct {
	Config
	caps     vmm.Capabilities
	disks    *disk.Store
	verifier *snapshot.Verifier
	net      *hostnet.Net
	images   *imageIndex
	commands commands
	warm     turns
	cold     turns
	starts   turns
	exits    exits
	fetches  fetches
	bootID   string
	unlock   func() error
	ctx      context.Context // ends when the agent closes
	cancel   context.CancelFunc

	mu         sync.Mutex // taken before a container's, never after
	containers map[warmboot.ID]*container
	builds     map[warmboot.ID]*building // snapshots that are being built or fetched
}

var _ controlplane.Host = (*Agent)(nil)

// Open makes an agent ready: it finds out what the VMM can do here, takes charge of the microVMs that still run below
// the storage root, and removes what was half made. Only one agent may use a storage root at a time; a second one is a Conflict.
func Open(ctx context.Context, c Config) (*Agent, error) {
	setDefaults(&c)
	actx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a := &Agent{Config: c, ctx: actx, cancel: cancel, verifier: snapshot.NewVerifier(), warm: newTurns(warmTurns), cold: newTurns(coldTurns), starts: newTurns(startTurns), containers: map[warmboot.ID]*container{}, builds: map[warmboot.ID]*building{}}
	var undo rollback.Stack
	defer undo.Unwind()
	undo.Push("begin work", func() error { cancel(); return nil })
	if err := a.makeRoot(); err != nil {
		return nil, err
	}
	unlock, err := lockRoot(c.Root)
	if err != nil {
		return nil, err
	}
	a.unlock = unlock
	undo.Push("lock storage root", unlock)
	if err := a.identify(); err != nil {
		return nil, err
	}
	if a.caps, err = c.Driver.Probe(ctx); err != nil {
		return nil, err
	}
	if err := a.openNetwork(ctx); err != nil {
		return nil, err
	}
	undo.Push("open network", a.net.Close)
	if err := a.limitVMs(); err != nil {
		return nil, err
	}
	if a.images, err = openImageIndex(filepath.Join(c.Root, "images")); err != nil {
		return nil, err
	}
	if a.disks, err = disk.Open(ctx, disk.Config{Dir: filepath.Join(c.Root, "disk-templates"), Driver: a.caps.Driver, Group: a.group()}); err != nil {
		return nil, err
	}
	if err := a.recover(ctx); err != nil {
		return nil, err
	}
	undo.Move()
	return a, nil
}

func setDefaults(c *Config) {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&c.VCPUs, DefaultVCPUs)
	def(&c.MemoryMiB, DefaultMemoryMiB)
	if c.DiskBytes == 0 {
		c.DiskBytes = DefaultDiskBytes
	}
	if c.RestoreTimeout == 0 {
		c.RestoreTimeout = DefaultRestoreTimeout
	}
	if c.BootTimeout == 0 {
		c.BootTimeout = DefaultBootTimeout
	}
	if c.AnswerTimeout == 0 {
		c.AnswerTimeout = DefaultAnswerTimeout
	}
	if c.Beat == 0 {
		c.Beat = DefaultBeat
	}
	if c.OwnerBase == 0 {
		c.OwnerBase = DefaultOwnerBase
	}
	c.ImageRoots = append([]string{filepath.Join(c.Root, "images")}, c.ImageRoots...)
}

// Close lets go of the microVMs without ending them: they go on running, and the next Open takes charge of them.
func (a *Agent) Close() error {
	a.cancel()
	a.mu.Lock()
	all := a.containers
	a.containers = map[warmboot.ID]*container{}
	a.mu.Unlock()
	for _, c := range all {
		c.disconnect()
	}
	return errors.Join(a.net.Close(), a.unlock())
}

// Capabilities is what the driver found out about this host.
func (a *Agent) Capabilities() vmm.Capabilities { return a.caps }

// group is the group that may come to snapshots by their paths: vmm.Owner.Readers, or our own if we are not root.
func (a *Agent) group() int {
	if os.Geteuid() != 0 {
		return os.Getegid()
	}
	return int(a.OwnerBase)
}

// makeRoot makes the directories below the storage root. Every VMM's user may pass through them; only its group may read
// further down.
func (a *Agent) makeRoot() error {
	for _, d := range []string{a.Root, filepath.Join(a.Root, "containers"), filepath.Join(a.Root, "builds")} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return &warmboot.Error{Code: warmboot.Internal, Op: "open storage root", Msg: "set MANAGER_STORAGE_ROOT to a directory that can be written", Err: err}
		}
	}
	if os.Geteuid() != 0 {
		return nil
	}
	// A VMM that is not root must be able to reach its files.
	for d := a.Root; d != "/"; d = filepath.Dir(d) {
		info, err := os.Stat(d)
		if err != nil {
			return &warmboot.Error{Code: warmboot.Internal, Op: "open storage root", Err: err}
		}
		if info.Mode()&0o001 == 0 {
			return warmboot.Errorf(warmboot.Invalid, "open storage root", "%s does not let other users pass (mode %04o), so an unprivileged VMM could not reach its files; choose another MANAGER_STORAGE_ROOT or `chmod o+x %s`", d, info.Mode().Perm(), d)
		}
	}
	return nil
}

// find returns what the host has of a container.
func (a *Agent) find(id warmboot.ID) (*container, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.containers[id]; c != nil {
		return c, nil
	}
	return nil, warmboot.Errorf(warmboot.NotFound, "find container", "this host has nothing of container %s", id)
}

func (a *Agent) add(c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.containers[c.id] = c
}

func (a *Agent) drop(c *container) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.containers[c.id] == c {
		delete(a.containers, c.id)
	}
}

// Containers lists what this host has.
func (a *Agent) Containers(context.Context) ([]controlplane.HostContainer, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []controlplane.HostContainer
	for id, c := range a.containers {
		all = append(all, c.tell(id))
	}
	return all, nil
}
