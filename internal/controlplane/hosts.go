package controlplane

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/placement"
)

// ErrUnreachable is the cause of an Unavailable error when a host did not answer: whether it has done what it was asked is not known.
var ErrUnreachable = errors.New("the host does not answer")

// hosts is what this manager knows of the hosts: the store's rows, read again at each beat, and what it has heard itself since.
type hosts struct {
	mu      sync.Mutex
	known   map[warmboot.ID]*warmboot.Host
	loads   map[warmboot.ID]int      // containers that are not stopped, by the store
	placing map[*placing]bool        // those that this manager has placed and the store may not have counted yet
	beating map[warmboot.ID]bool     // hosts that gave a sign of life since the store was told
	seen    map[warmboot.ID]sighting // of their beats in the store
	greeted map[warmboot.ID]bool     // those that have said hello to this manager
}

// placing is a container that has just been placed.
type placing struct {
	host   warmboot.ID
	stored bool // its row is
}

// HostHello implements Reports.
func (s *Service) HostHello(ctx context.Context, hello Hello) error {
	if err := warmboot.ValidateHostName(hello.Name); err != nil {
		return err
	}
	rebooted, err := s.keepHost(ctx, hello)
	if err != nil {
		return err
	}
	if err := s.store.BeatHosts(ctx, []warmboot.ID{hello.ID}, time.Now().UTC()); err != nil {
		return err
	}
	if err := s.refreshHosts(ctx); err != nil {
		return err
	}
	if err := s.reconcile(ctx, hello, rebooted); err != nil {
		return err
	}
	s.log.Info(fmt.Sprintf("Host %s is here, with %s and %d containers", hello.Name, hello.Inventory.VMM, len(hello.Containers)), "host_id", hello.ID, "why", hello.Inventory.VMMWhy)
	if err := s.missSnapshots(ctx, hello); err != nil {
		return err
	}
	s.hosts.greet(hello.ID)
	s.snapshotsForPlatform(ctx, hello.Inventory.Platform)
	s.collectSoon() // what was deleted while it, or every manager, was away
	return s.takeOver(ctx, false)
}

// keepHost stores a host that has said hello. It reports whether its machine was booted since it did so last.
func (s *Service) keepHost(ctx context.Context, hello Hello) (rebooted bool, err error) {
	_, err = s.store.UpdateHost(ctx, hello.ID, func(h *warmboot.Host) error {
		rebooted = h.Inventory.BootID != hello.Inventory.BootID
		h.Name, h.Address, h.State, h.Inventory = hello.Name, hello.Address, warmboot.HostUp, hello.Inventory
		return nil
	})
	switch code := warmboot.CodeOf(err); {
	case code == warmboot.Conflict:
		return false, warmboot.Errorf(warmboot.Conflict, "greet host", "another host has the name %s; give this one another with --name", hello.Name)
	case code != warmboot.NotFound:
		return rebooted, err
	case !hello.Inside:
		return false, warmboot.Errorf(warmboot.Denied, "greet host", "this host was removed from the cluster; it can join again with a new token")
	}
	return false, s.store.CreateHost(ctx, &warmboot.Host{
		ID: hello.ID, Name: hello.Name, Address: hello.Address, State: warmboot.HostUp, CreatedAt: time.Now().UTC(), Inventory: hello.Inventory,
	})
}

// missSnapshots looks for the files of snapshots that a host is to have and does not tell of, as when the database is older than the host: restored
// from a backup.
func (s *Service) missSnapshots(ctx context.Context, hello Hello) error {
	ready, err := s.store.Snapshots(ctx, warmboot.SnapshotFilter{States: []warmboot.SnapshotState{warmboot.SnapshotReady}})
	if err != nil {
		return err
	}
	for _, snap := range ready {
		if snap.HostID == hello.ID && !slices.Contains(hello.Inventory.Snapshots, snap.ID) {
			if err := s.scrub(ctx, snap); err != nil { // which asks the host again: a build may have just ended
				return err
			}
		}
	}
	return nil
}

// HostBeat implements Reports. The store is told of all hosts' signs of life together, a moment later. Each manager hears each host's hello once
// before: what happened while there was no manager, or is in no backup of the database that was restored meanwhile, nobody else tells.
func (s *Service) HostBeat(ctx context.Context, id warmboot.ID, inventory *warmboot.HostInventory) error {
	s.hosts.mu.Lock()
	h := s.hosts.known[id]
	known := h != nil && h.State == warmboot.HostUp && s.hosts.greeted[id]
	if known {
		s.hosts.beating[id] = true
	}
	s.hosts.mu.Unlock()
	if !known {
		return warmboot.Errorf(warmboot.NotFound, "host beat", "host %s is not known here, or was taken for dead; it has to say hello", id)
	}
	if inventory == nil {
		return nil
	}
	after, err := s.store.UpdateHost(ctx, id, func(h *warmboot.Host) error { h.Inventory = *inventory; return nil })
	if err == nil {
		s.hosts.mu.Lock()
		s.hosts.known[id] = after
		s.hosts.mu.Unlock()
	}
	return err
}

// beatHosts tells the store which hosts live, and finds those that do not any more. It reports whether one that was down is up.
func (s *Service) beatHosts(ctx context.Context) (up bool, err error) {
	s.hosts.mu.Lock()
	var ids []warmboot.ID
	for id := range s.hosts.beating {
		ids = append(ids, id)
	}
	clear(s.hosts.beating)
	s.hosts.mu.Unlock()
	if len(ids) > 0 {
		if err := s.store.BeatHosts(ctx, ids, time.Now().UTC()); err != nil {
			return false, err
		}
	}
	before := s.hosts.states()
	if err := s.refreshHosts(ctx); err != nil {
		return false, err
	}
	for _, h := range s.hosts.silent(s.HostDownAfter) {
		if err := s.hostDown(ctx, h); err != nil {
			return up, err
		}
	}
	for id, state := range s.hosts.states() {
		up = up || state == warmboot.HostUp && before[id] == warmboot.HostDown
	}
	return up, nil
}

// hostDown notes that a host gives no sign of life, unless it has just given one. Its containers stay as they are: they may well run.
func (s *Service) hostDown(ctx context.Context, silent *warmboot.Host) error {
	down := false
	_, err := s.store.UpdateHost(ctx, silent.ID, func(h *warmboot.Host) error {
		down = h.State == warmboot.HostUp && h.Beat == silent.Beat
		if down {
			h.State = warmboot.HostDown
		}
		return nil
	})
	if err != nil || !down {
		return err
	}
	s.log.Error(fmt.Sprintf("Host %s gives no sign of life for %s and counts as down; its containers are left alone until it is back", silent.Name, s.HostDownAfter), "host_id", silent.ID)
	return s.refreshHosts(ctx)
}

// refreshHosts reads the hosts, and how much is on them, from the store.
func (s *Service) refreshHosts(ctx context.Context) error {
	all, err := s.store.Hosts(ctx, "", 0)
	if err != nil {
		return err
	}
	var loads map[warmboot.ID]int
	if len(all) > 1 { // else there is nothing to choose
		if loads, err = s.store.ContainerLoad(ctx); err != nil {
			return err
		}
	}
	s.hosts.mu.Lock()
	defer s.hosts.mu.Unlock()
	s.hosts.known = map[warmboot.ID]*warmboot.Host{}
	for _, h := range all {
		s.hosts.known[h.ID] = h
	}
	s.hosts.loads = loads
	for p := range s.hosts.placing {
		if p.stored { // it has been counted, but for what was stored in these few milliseconds; a host that is full all the same says so
			delete(s.hosts.placing, p)
		}
	}
	return nil
}

func (h *hosts) states() map[warmboot.ID]warmboot.HostState {
	h.mu.Lock()
	defer h.mu.Unlock()
	states := map[warmboot.ID]warmboot.HostState{}
	for id, host := range h.known {
		states[id] = host.State
	}
	return states
}

// silent are the hosts that are up by the store and have given no sign of life for so long.
func (h *hosts) silent(limit time.Duration) []*warmboot.Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := map[warmboot.ID]sighting{}
	var silent []*warmboot.Host
	for id, host := range h.known {
		seen, known := h.seen[id]
		if !known || seen.beat != host.Beat {
			seen = sighting{host.Beat, time.Now()}
		}
		now[id] = seen
		if host.State == warmboot.HostUp && time.Since(seen.since) > limit {
			silent = append(silent, host)
		}
	}
	h.seen = now
	return silent
}

func (h *hosts) greet(id warmboot.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.greeted[id] = true
}

func (h *hosts) forgetSightings() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.seen)
}

// host is what is known of a host, nil if nothing is.
func (h *hosts) host(id warmboot.ID) *warmboot.Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.known[id]
}

// all are the hosts with their loads, in order of their names.
func (h *hosts) all() []placement.Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	placed := map[warmboot.ID]int{}
	for p := range h.placing {
		placed[p.host]++
	}
	var all []placement.Host
	for id, host := range h.known {
		all = append(all, placement.Host{Host: host, VMs: h.loads[id] + placed[id]})
	}
	slices.SortFunc(all, func(a, b placement.Host) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// choose has pick choose among the hosts. If none will do it is asked again with what the store has now: another manager may have just heard
// of one.
func (s *Service) choose(ctx context.Context, pick func([]placement.Host) error) error {
	err := pick(s.hosts.all())
	if err == nil {
		return nil
	}
	if err := s.refreshHosts(ctx); err != nil {
		return err
	}
	return pick(s.hosts.all())
}

// several says that there is more than one host to choose from.
func (h *hosts) several() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.known) > 1
}

// place counts a container that goes to a host. done must be called once its row is stored, or never will be.
func (h *hosts) place(id warmboot.ID) (done func(error)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.known) == 1 {
		return func(error) {} // there is nothing to choose
	}
	p := &placing{host: id}
	h.placing[p] = true
	return func(err error) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if p.stored = true; err != nil {
			delete(h.placing, p)
		}
	}
}

// reach is the way to a host that is up.
func (s *Service) reach(id warmboot.ID) (Host, error) {
	h := s.hosts.host(id)
	switch {
	case h == nil:
		return nil, warmboot.Errorf(warmboot.Unavailable, "reach host", "the host is not known (%w); it may have been removed", ErrUnreachable)
	case h.State != warmboot.HostUp:
		return nil, warmboot.Errorf(warmboot.Unavailable, "reach host", "host %s is down (%w); `warmboot host ls` shows since when", h.Name, ErrUnreachable)
	}
	return s.Config.Hosts.Host(h)
}

var errNoHost = warmboot.Errorf(warmboot.Unavailable, "choose host", "no host has joined; `warmboot host token` prints what one needs for that")

// anyHost is nil if a host is up.
func (s *Service) anyHost() error {
	var last error = errNoHost
	for _, h := range s.hosts.all() {
		if _, last = s.reach(h.ID); last == nil {
			return nil
		}
	}
	return last
}

// peers are the hosts, other than one, that can be asked for files.
func (s *Service) peers(except warmboot.ID, has func(*warmboot.Host) bool) []Peer {
	var peers []Peer
	for _, h := range s.hosts.all() {
		if h.ID != except && h.State == warmboot.HostUp && h.Address != "" && has(h.Host) {
			peers = append(peers, Peer{ID: h.ID, Address: h.Address})
		}
	}
	return peers
}

// Hosts lists the hosts in order of their names: at most limit after a name; 0 and "" mean all.
func (s *Service) Hosts(ctx context.Context, after string, limit int) ([]*warmboot.Host, error) {
	return s.store.Hosts(ctx, after, limit)
}

// Host finds a host by id or name.
func (s *Service) Host(ctx context.Context, ref string) (*warmboot.Host, error) {
	return s.store.FindHost(ctx, ref)
}

// HostState tells whether a host is up, "" if it is not known.
func (s *Service) HostState(id warmboot.ID) warmboot.HostState {
	if h := s.hosts.host(id); h != nil {
		return h.State
	}
	return ""
}

// HostName is a host's name, "" if it is not known.
func (s *Service) HostName(id warmboot.ID) string {
	if h := s.hosts.host(id); h != nil {
		return h.Name
	}
	return ""
}

// CordonHost keeps new containers and builds away from a host, or lets them come again.
func (s *Service) CordonHost(ctx context.Context, ref string, cordoned bool) (*warmboot.Host, error) {
	return s.UpdateHost(ctx, ref, &cordoned)
}

// UpdateHost cordons a host, or does not any more, if the conditions hold; nil leaves it as it is.
func (s *Service) UpdateHost(ctx context.Context, ref string, cordoned *bool, conditions ...func(*warmboot.Host) error) (*warmboot.Host, error) {
	h, err := s.store.FindHost(ctx, ref)
	if err != nil {
		return nil, err
	}
	h, err = s.store.UpdateHost(ctx, h.ID, func(h *warmboot.Host) error {
		if err := holds(h, conditions); err != nil {
			return err
		}
		set(&h.Cordoned, cordoned)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, s.refreshHosts(ctx)
}

// DrainHost cordons a host and stops its containers, each with the grace given; their disks and logs stay. It returns once nothing
// runs there, with the containers that could not be stopped in the error.
func (s *Service) DrainHost(ctx context.Context, ref string, grace time.Duration) (*warmboot.Host, error) {
	h, err := s.CordonHost(ctx, ref, true)
	if err != nil {
		return nil, err
	}
	// One that is only coming up now can be stopped as soon as it has.
	all, err := s.store.Containers(ctx, warmboot.ContainerFilter{HostID: h.ID, States: []warmboot.ContainerState{
		warmboot.ContainerCreating, warmboot.ContainerStarting, warmboot.ContainerRunning, warmboot.ContainerStopping,
	}})
	if err != nil {
		return nil, err
	}
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, c := range all {
		wg.Go(func() {
			now, err := s.WaitContainer(ctx, string(c.ID), WaitStarted)
			if err == nil && now.State != warmboot.ContainerFailed {
				_, err = s.StopContainer(ctx, string(c.ID), grace)
			}
			if warmboot.CodeOf(err) != warmboot.NotFound { // deleted meanwhile
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return h, errors.Join(errs...)
}

// RemoveHost forgets a host that is down and has nothing any more. Its agent may join again with a new token.
func (s *Service) RemoveHost(ctx context.Context, ref string, conditions ...func(*warmboot.Host) error) error {
	h, err := s.store.FindHost(ctx, ref)
	if err != nil {
		return err
	}
	if h.State == warmboot.HostUp {
		return warmboot.Errorf(warmboot.Conflict, "remove host", "host %s is up; drain it, and end its agent first", h.Name)
	}
	if err := s.store.DeleteHost(ctx, h.ID, conditions...); err != nil {
		return err
	}
	s.log.Info("Host "+h.Name+" was removed", "host_id", h.ID)
	return s.refreshHosts(ctx)
}

// platforms are those of all hosts, down or not.
func (s *Service) platforms() map[string]bool {
	of := map[string]bool{}
	for _, h := range s.hosts.all() {
		of[h.Inventory.Platform] = true
	}
	return of
}

// outdated are the platforms of these snapshots that no host has any more.
func (s *Service) outdated(all []*warmboot.RuntimeSnapshot) []string {
	of, gone := s.platforms(), map[string]bool{}
	for _, snap := range all {
		if !of[snap.Platform] {
			gone[snap.Platform] = true
		}
	}
	return slices.Collect(maps.Keys(gone))
}
