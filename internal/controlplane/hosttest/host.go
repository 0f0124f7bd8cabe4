// Package hosttest is a controlplane.Host that keeps its machines in memory, for tests of what stands above a host. It
// keeps the Host's promises (idempotent stops, nothing left after an error); a test makes a step fail or stand still
// through the On fields.
package hosttest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
)

// VMM is what the host says that it runs machines with.
const VMM = "qemu-7.2.22"

// Root is the directory below which the host allows runtime images.
const Root = "/srv/images/"

// Host is a controlplane.Host. Make it with New. The On fields are set before the host is used; a nil one does nothing.
type Host struct {
	ID       warmboot.ID
	Name     string
	Platform string // of its inventory; hosts of one platform can use each other's snapshots
	Warning  string // about its VMM
	MaxVMs   int
	BootID   string
	Address  string // at which it says that it can be reached; it is inside the control plane's process if empty

	OnBuild func(ctx context.Context, snap warmboot.RuntimeSnapshot) error
	OnWarm  func(ctx context.Context, m controlplane.MachineSpec, snap warmboot.RuntimeSnapshot) error
	OnCold  func(ctx context.Context, m controlplane.MachineSpec) error
	OnStart func(ctx context.Context, c warmboot.Container) error
	// OnInspect runs before a runtime image is looked at.
	OnInspect func(img warmboot.Image) error
	// OnUpdate runs before a container's restart policy is taken over.
	OnUpdate func(ctx context.Context, c warmboot.Container) error
	// OnStop runs before a command is told to end.
	OnStop func(ctx context.Context, id warmboot.ID) error
	// OnRemove runs before a container's things are removed.
	OnRemove func(ctx context.Context, id warmboot.ID) error
	// OnScrub runs when a snapshot's files are read again.
	OnScrub func(ctx context.Context, snap warmboot.RuntimeSnapshot) error
	// OnFetch runs when a snapshot's files are to be got from another host.
	OnFetch func(ctx context.Context, snap warmboot.RuntimeSnapshot, peers []controlplane.Peer) error

	closed     chan struct{}
	mu         sync.Mutex
	reports    func() controlplane.Reports // who is told what happens here
	away       bool                        // it cannot be reached
	newest     map[warmboot.ID]int64       // the latest lease obeyed, by container
	gone       []warmboot.ID               // removed, and still in newest, the oldest first
	nextPort   uint16
	used       map[uint16]bool // host ports that something else uses
	machines   map[warmboot.ID]*machine
	snapshots  map[warmboot.ID]bool
	garbage    []controlplane.Garbage // besides machines and snapshots
	buildsRun  int
	warm, cold int
}

// machine is what the host has of a container.
type machine struct {
	running  bool
	started  *warmboot.Container // once its command is
	snapshot warmboot.ID         // it was restored from; its files must stay
	created  bool                // Docker knows the container
	exited   chan struct{}
	code     int
	cut      bool
	crashed  bool
	logs     []controlplane.LogLine
	more     chan struct{} // closed when logs or exited change
}

// New returns a host without machines.
func New() *Host {
	return &Host{
		ID: warmboot.NewID(), Name: "box", Platform: "p", BootID: "first", closed: make(chan struct{}),
		nextPort: 40000, used: map[uint16]bool{}, machines: map[warmboot.ID]*machine{}, snapshots: map[warmboot.ID]bool{}, newest: map[warmboot.ID]int64{},
	}
}

// Close ends what the host does by itself.
func (h *Host) Close() { close(h.closed) }

// Hosts is the way to some of these hosts.
type Hosts []*Host

// Host implements controlplane.Hosts.
func (all Hosts) Host(h *warmboot.Host) (controlplane.Host, error) {
	for _, host := range all {
		if host.ID == h.ID {
			return host, host.reachable()
		}
	}
	return nil, warmboot.Errorf(warmboot.Unavailable, "reach host", "%w", controlplane.ErrUnreachable)
}

// Join introduces the host and lets it report to whoever reports gives from then on.
func (h *Host) Join(ctx context.Context, reports func() controlplane.Reports) error {
	h.mu.Lock()
	h.reports = reports
	h.mu.Unlock()
	return h.SayHello(ctx)
}

// SayHello introduces the host again, as after a restart of its agent.
func (h *Host) SayHello(ctx context.Context) error {
	if err := h.reachable(); err != nil {
		return err
	}
	inv, _ := h.Inventory(ctx)
	all, _ := h.Containers(ctx)
	return h.reports().HostHello(ctx, controlplane.Hello{ID: h.ID, Name: h.Name, Address: cmp.Or(h.Address, h.Name+":7000"), Inside: h.Address == "", Inventory: inv, Containers: all})
}

// Beat gives a sign of life.
func (h *Host) Beat(ctx context.Context) error {
	if err := h.reachable(); err != nil {
		return err
	}
	inv, _ := h.Inventory(ctx)
	return h.reports().HostBeat(ctx, h.ID, &inv)
}

// Away makes the host unreachable, or reachable again. What runs there goes on.
func (h *Host) Away(away bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = away
}

func (h *Host) reachable() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away {
		return warmboot.Errorf(warmboot.Unavailable, "reach host", "%w", controlplane.ErrUnreachable)
	}
	return nil
}

// Reboot ends every machine, as a power cut does.
func (h *Host) Reboot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.BootID += "+"
	for _, m := range h.machines {
		if m.running {
			m.crashed, m.running = true, false
			close(m.more)
			m.more = make(chan struct{})
		}
	}
}

// obey refuses what is asked for under an older lease than one that was obeyed.
func (h *Host) obey(ref controlplane.ContainerRef) error {
	if err := h.reachable(); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if ref.Generation != 0 && ref.Generation < h.newest[ref.ID] {
		return warmboot.Errorf(warmboot.Conflict, "obey", "lease %d of container %s has come after %d", h.newest[ref.ID], ref.ID, ref.Generation)
	}
	h.newest[ref.ID] = max(h.newest[ref.ID], ref.Generation)
	return nil
}

// Inventory implements controlplane.Host.
func (h *Host) Inventory(context.Context) (warmboot.HostInventory, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	inv := warmboot.HostInventory{
		VMM: VMM, VMMWhy: "kept in memory by a test", VMMWarning: h.Warning, Network: "tap", Platform: h.Platform, MaxVMs: h.MaxVMs, VMs: len(h.machines), BootID: h.BootID,
		Snapshots: slices.Sorted(maps.Keys(h.snapshots)),
	}
	return inv, nil
}

// FetchImage implements controlplane.Host. Images are everywhere.
func (h *Host) FetchImage(context.Context, warmboot.Image, []controlplane.Peer) error { return nil }

// FetchSnapshot implements controlplane.Host.
func (h *Host) FetchSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, _ warmboot.Image, peers []controlplane.Peer) error {
	if h.OnFetch != nil {
		if err := h.OnFetch(ctx, snap, peers); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snapshots[snap.ID] = true
	return nil
}

// InspectImage implements controlplane.Host. The content of an image is its paths.
func (h *Host) InspectImage(_ context.Context, img warmboot.Image) (warmboot.Image, error) {
	if err := h.reachable(); err != nil {
		return img, err
	}
	if h.OnInspect != nil {
		if err := h.OnInspect(img); err != nil {
			return img, err
		}
	}
	for _, p := range []string{img.KernelPath, img.InitrdPath, img.RootfsPath} {
		if p != "" && (!strings.HasPrefix(p, Root) || strings.Contains(p, "..")) {
			return img, warmboot.Errorf(warmboot.Denied, "inspect image", "%s lies outside the allowed root %s", p, Root)
		}
	}
	img.Digest = fmt.Sprintf("%064x", len(img.KernelPath+img.InitrdPath+img.RootfsPath))
	img.SizeBytes = 400 << 20
	return img, nil
}

// UsePort makes a host port taken by something that is no container.
func (h *Host) UsePort(port uint16) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.used[port] = true
}

// ReservePorts implements controlplane.Host.
func (h *Host) ReservePorts(_ context.Context, ports []warmboot.PortMapping) ([]warmboot.PortMapping, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := slices.Clone(ports)
	for i := range out {
		if h.used[out[i].HostPort] {
			return nil, warmboot.Errorf(warmboot.Conflict, "reserve port", "host port %d is in use by another program", out[i].HostPort)
		}
		if out[i].HostPort == 0 {
			h.nextPort++
			out[i].HostPort = h.nextPort
		}
	}
	return out, nil
}

// BuildSnapshot implements controlplane.Host.
func (h *Host) BuildSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, step func(string)) (controlplane.Built, error) {
	h.mu.Lock()
	h.buildsRun++
	h.mu.Unlock()
	step("booting")
	if h.OnBuild != nil {
		if err := h.OnBuild(ctx, snap); err != nil {
			return controlplane.Built{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return controlplane.Built{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.snapshots[snap.ID] = true
	return controlplane.Built{
		Path:      fmt.Sprintf("/srv/fc/runtime-snapshots/%s/%s", img.ID, snap.ID),
		FCVersion: VMM,
		Metadata:  warmboot.SnapshotMetadata{SizeBytes: 900_000_000, MemSizeBytes: 512_000_000, DockerVersion: "26.1.5", VCPUs: 1, ColdBootSeconds: 60},
	}, nil
}

// RemoveSnapshot implements controlplane.Host.
func (h *Host) RemoveSnapshot(_ context.Context, snap warmboot.RuntimeSnapshot) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, m := range h.machines {
		if m.snapshot == snap.ID {
			return warmboot.Errorf(warmboot.Conflict, "remove snapshot", "a machine was restored from snapshot %s", snap.ID)
		}
	}
	delete(h.snapshots, snap.ID)
	return nil
}

// WarmBoot implements controlplane.Host.
func (h *Host) WarmBoot(ctx context.Context, m controlplane.MachineSpec, snap warmboot.RuntimeSnapshot) (controlplane.Booted, error) {
	if err := h.obey(m.Container); err != nil {
		return controlplane.Booted{}, err
	}
	if err := h.room(); err != nil {
		return controlplane.Booted{}, err
	}
	if h.OnWarm != nil {
		if err := h.OnWarm(ctx, m, snap); err != nil {
			return controlplane.Booted{}, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.snapshots[snap.ID] {
		return controlplane.Booted{}, warmboot.Errorf(warmboot.Corrupt, "restore snapshot", "the files of snapshot %s are gone", snap.ID)
	}
	h.warm++
	h.machines[m.Container.ID] = newMachine(snap.ID)
	return controlplane.Booted{Phases: []warmboot.Phase{
		{Name: warmboot.PhaseDisk, Duration: 10 * time.Millisecond}, {Name: warmboot.PhaseVMM, Duration: 60 * time.Millisecond},
		{Name: warmboot.PhaseRestore, Duration: 80 * time.Millisecond}, {Name: warmboot.PhaseReidentify, Duration: 20 * time.Millisecond},
		{Name: warmboot.PhaseDocker, Duration: 5 * time.Millisecond},
	}}, nil
}

// ColdBoot implements controlplane.Host.
func (h *Host) ColdBoot(ctx context.Context, m controlplane.MachineSpec) (controlplane.Booted, error) {
	if err := h.obey(m.Container); err != nil {
		return controlplane.Booted{}, err
	}
	if err := h.room(); err != nil {
		return controlplane.Booted{}, err
	}
	if h.OnCold != nil {
		if err := h.OnCold(ctx, m); err != nil {
			return controlplane.Booted{}, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.cold++
	fresh := newMachine("")
	if old := h.machines[m.Container.ID]; old != nil {
		fresh.created, fresh.logs, fresh.snapshot = old.created, old.logs, old.snapshot
	}
	h.machines[m.Container.ID] = fresh
	return controlplane.Booted{Phases: []warmboot.Phase{
		{Name: warmboot.PhaseDisk, Duration: 10 * time.Millisecond}, {Name: warmboot.PhaseVMM, Duration: 60 * time.Millisecond},
		{Name: warmboot.PhaseBoot, Duration: 4 * time.Second}, {Name: warmboot.PhaseDocker, Duration: 9 * time.Second},
	}}, nil
}

// room refuses one machine too many.
func (h *Host) room() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	running := 0
	for _, m := range h.machines {
		if m.running {
			running++
		}
	}
	if h.MaxVMs > 0 && running >= h.MaxVMs {
		return warmboot.Errorf(warmboot.Exhausted, "prepare microVM", "this host takes no more than %d microVMs", h.MaxVMs)
	}
	return nil
}

func newMachine(snapshot warmboot.ID) *machine {
	return &machine{running: true, snapshot: snapshot, exited: make(chan struct{}), more: make(chan struct{})}
}

// StartContainer implements controlplane.Host.
func (h *Host) StartContainer(ctx context.Context, c warmboot.Container, _ *controlplane.RegistryAuth, step func(string)) ([]warmboot.Phase, error) {
	if err := h.obey(controlplane.ContainerRef{ID: c.ID, Generation: c.Lease.Generation}); err != nil {
		return nil, err
	}
	step("pulling " + c.Image)
	if h.OnStart != nil {
		if err := h.OnStart(ctx, c); err != nil {
			return nil, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[c.ID]
	if m == nil || !m.running {
		return nil, warmboot.Errorf(warmboot.Unavailable, "start container", "container %s has no machine", c.ID)
	}
	m.started = &c
	go h.report(c.ID, m)
	if m.created {
		return []warmboot.Phase{{Name: warmboot.PhaseStart, Duration: 300 * time.Millisecond}}, nil
	}
	m.created = true
	return []warmboot.Phase{{Name: warmboot.PhasePull, Duration: time.Second}, {Name: warmboot.PhaseStart, Duration: 300 * time.Millisecond}}, nil
}

// UpdateContainer implements controlplane.Host.
func (h *Host) UpdateContainer(ctx context.Context, c warmboot.Container) error {
	if err := h.obey(controlplane.ContainerRef{ID: c.ID, Generation: c.Lease.Generation}); err != nil {
		return err
	}
	if h.OnUpdate != nil {
		if err := h.OnUpdate(ctx, c); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[c.ID]
	if m == nil || m.started == nil {
		return warmboot.Errorf(warmboot.Conflict, "update container", "container %s has no machine", c.ID)
	}
	m.started = &c
	return nil
}

// report tells the end of a command that ends by itself, again and again until it is taken note of.
func (h *Host) report(id warmboot.ID, m *machine) {
	select {
	case <-m.exited:
	case <-h.closed:
		return
	}
	for {
		h.mu.Lock()
		end, told, reports := controlplane.Ended{Container: id, Code: m.code, Cut: m.cut}, !m.running && !m.crashed || h.machines[id] != m, h.reports
		if m.crashed {
			end.Code, end.Reason = -1, "wait: the microVM ended unexpectedly"
		}
		h.mu.Unlock()
		if told || reports == nil {
			return // it was stopped or removed
		}
		r := reports()
		if r == nil || h.reachable() == nil && r.ContainerEnded(context.Background(), h.ID, end) == nil {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond): // nothing tells when the control plane is ready to listen
		case <-h.closed:
			return
		}
	}
}

// StopContainer implements controlplane.Host. A command that is told to end does so at once, with exit code 143.
func (h *Host) StopContainer(ctx context.Context, ref controlplane.ContainerRef, _ time.Duration) (int, error) {
	if err := h.obey(ref); err != nil {
		return -1, err
	}
	id := ref.ID
	if h.OnStop != nil {
		if err := h.OnStop(ctx, id); err != nil {
			return -1, err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[id]
	if m == nil {
		return -1, nil
	}
	m.running = false
	m.end(143)
	return m.code, nil
}

// end ends the command, unless it has ended. The host's lock is held.
func (m *machine) end(code int) {
	select {
	case <-m.exited:
	default:
		m.code = code
		close(m.exited)
		close(m.more)
		m.more = make(chan struct{})
	}
}

// goneKept is of how many removed containers it is remembered who removed them.
const goneKept = 4096

// RemoveContainer implements controlplane.Host.
func (h *Host) RemoveContainer(ctx context.Context, ref controlplane.ContainerRef) error {
	if err := h.obey(ref); err != nil {
		return err
	}
	id := ref.ID
	if h.OnRemove != nil {
		if err := h.OnRemove(ctx, id); err != nil {
			return err
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[id]
	delete(h.machines, id)
	if m != nil {
		m.end(137)
		h.gone = append(h.gone, id)
	}
	if len(h.gone) > goneKept {
		delete(h.newest, h.gone[0])
		h.gone = h.gone[1:]
	}
	return nil
}

// Containers implements controlplane.Host.
func (h *Host) Containers(context.Context) ([]controlplane.HostContainer, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []controlplane.HostContainer
	for _, id := range slices.Sorted(maps.Keys(h.machines)) {
		all = append(all, controlplane.HostContainer{ID: id, Running: h.machines[id].running, Generation: h.newest[id], Container: h.machines[id].started})
	}
	return all, nil
}

// snapshotBytes is how large the host says that a snapshot is.
const snapshotBytes = 900_000_000

// Garbage implements controlplane.Host.
func (h *Host) Garbage(context.Context) ([]controlplane.Garbage, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.Clone(h.garbage)
	for _, id := range slices.Sorted(maps.Keys(h.machines)) {
		all = append(all, controlplane.Garbage{Kind: controlplane.GarbageContainer, ID: id, Path: "/srv/fc/containers/" + string(id)})
	}
	for _, id := range slices.Sorted(maps.Keys(h.snapshots)) {
		all = append(all, controlplane.Garbage{Kind: controlplane.GarbageSnapshot, ID: id, Path: "/srv/fc/runtime-snapshots/x/" + string(id), Bytes: snapshotBytes})
	}
	return all, nil
}

// ImageFiles implements controlplane.Host. A runtime image needs the path of its kernel.
func (h *Host) ImageFiles(_ context.Context, images []*warmboot.Image) (map[string]bool, error) {
	used := map[string]bool{}
	for _, img := range images {
		used[img.KernelPath] = true
	}
	return used, nil
}

// Discard implements controlplane.Host.
func (h *Host) Discard(_ context.Context, g controlplane.Garbage) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.garbage = slices.DeleteFunc(h.garbage, func(other controlplane.Garbage) bool { return other == g })
	return nil
}

// Litter puts garbage on the host.
func (h *Host) Litter(g ...controlplane.Garbage) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.garbage = append(h.garbage, g...)
}

// ScrubSnapshot implements controlplane.Host.
func (h *Host) ScrubSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) error {
	if h.OnScrub != nil {
		return h.OnScrub(ctx, snap)
	}
	if !h.HasSnapshot(snap.ID) {
		return warmboot.Errorf(warmboot.NotFound, "scrub snapshot", "the files of snapshot %s are gone", snap.ID)
	}
	return nil
}

// Exit ends the command of a container by itself.
func (h *Host) Exit(id warmboot.ID, code int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.machines[id].end(code)
}

// ExitCut ends the command of a container by itself, and its machine before anybody could ask whether the command is started again.
func (h *Host) ExitCut(id warmboot.ID, code int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.machines[id].cut = true
	h.machines[id].end(code)
}

// Crash ends the machine of a container.
func (h *Host) Crash(id warmboot.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[id]
	m.crashed, m.running = true, false
	m.end(-1)
}

// Counts tells how many warm and cold boots have succeeded and how many builds have begun.
func (h *Host) Counts() (warm, cold, builds int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.warm, h.cold, h.buildsRun
}

// HasSnapshot tells whether the files of a snapshot are there.
func (h *Host) HasSnapshot(id warmboot.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.snapshots[id]
}
