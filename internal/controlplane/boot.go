package controlplane

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/telemetry/span"
)

// coldTimes remembers how long the latest cold boot of each image took: what a warm boot saves is measured against it. The
// zero value is ready.
type coldTimes struct {
	mu   sync.Mutex
	took map[warmboot.ID]time.Duration
}

func (c *coldTimes) record(image warmboot.ID, d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.took == nil {
		c.took = map[warmboot.ID]time.Duration{}
	}
	c.took[image] = d
}

// saved is how much less than the latest cold boot d is. A snapshot's own build is a cold boot too.
func (c *coldTimes) saved(image warmboot.ID, snap *warmboot.RuntimeSnapshot, d time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	cold, ok := c.took[image]
	if !ok {
		cold = time.Duration(snap.Metadata.ColdBootSeconds * float64(time.Second))
	}
	return max(cold-d, 0)
}

// bootResult is how a machine came up.
type bootResult struct {
	method warmboot.BootMethod
	reason string // why it was cold
	phases []warmboot.Phase
	snap   *warmboot.RuntimeSnapshot // of a warm boot
	took   time.Duration
}

// boot brings up the machine of a container: from a snapshot if one can be used, else from the kernel on. coldReason, if not
// empty, forbids the snapshot and says why.
func (s *Service) boot(ctx context.Context, host Host, hostID warmboot.ID, m MachineSpec, coldReason string) (_ bootResult, err error) {
	ctx, sp := span.Start(ctx, "boot", "vm_id", m.VMID)
	defer func() { sp.End(err) }()
	id := m.Container.ID.Short()
	if coldReason == "" {
		res, reason, err := s.warmBoot(ctx, host, hostID, m)
		if err != nil {
			return bootResult{}, err
		}
		if reason == "" {
			sp.Set("boot_method", warmboot.BootWarm)
			s.log.InfoContext(ctx, fmt.Sprintf("Container %s VM created: %s via warm boot in %.2fs", id, m.VMID, res.took.Seconds()), "container_id", m.Container.ID, "snapshot_id", res.snap.ID)
			return res, nil
		}
		s.fallBack(ctx, m.Container.ID, reason)
		coldReason = reason
	}
	sp.Set("boot_method", warmboot.BootCold, "boot_reason", coldReason)
	start := time.Now()
	booted, err := coldBoot(ctx, host, m)
	took := time.Since(start)
	s.Observer.Boot(warmboot.BootCold, took, booted.Phases, err)
	if err != nil {
		return bootResult{}, err
	}
	s.cold.record(m.Image.ID, took)
	s.log.InfoContext(ctx, fmt.Sprintf("Container %s VM created: %s via cold boot in %.2fs", id, m.VMID, took.Seconds()), "container_id", m.Container.ID)
	return bootResult{method: warmboot.BootCold, reason: coldReason, phases: booted.Phases, took: took}, nil
}

func (s *Service) fallBack(ctx context.Context, id warmboot.ID, reason string) {
	s.log.WarnContext(ctx, fmt.Sprintf("Warm boot failed for container %s, falling back to cold boot: %s", id.Short(), reason), "container_id", id)
}

func coldBoot(ctx context.Context, host Host, m MachineSpec) (_ Booted, err error) {
	ctx, sp := span.Start(ctx, "cold boot")
	defer func() { sp.End(err) }()
	return host.ColdBoot(ctx, m)
}

func restore(ctx context.Context, host Host, m MachineSpec, snap *warmboot.RuntimeSnapshot) (_ Booted, err error) {
	ctx, sp := span.Start(ctx, "warm boot", "snapshot_id", snap.ID)
	defer func() { sp.End(err) }()
	return host.WarmBoot(ctx, m, *snap)
}

// warmBoot returns either a machine, or the reason why there is none and a cold boot is next, or an error after which there is no use in one.
func (s *Service) warmBoot(ctx context.Context, host Host, hostID warmboot.ID, m MachineSpec) (bootResult, string, error) {
	snap, reason, err := s.usableSnapshot(ctx, m.Image.ID, hostID)
	if err != nil || snap == nil {
		return bootResult{}, reason, err
	}
	if reason, err := s.fetchSnapshot(ctx, host, hostID, m.Image, snap); err != nil || reason != "" {
		return bootResult{}, reason, err
	}
	start := time.Now()
	booted, err := restore(ctx, host, m, snap)
	took := time.Since(start)
	s.Observer.Boot(warmboot.BootWarm, took, booted.Phases, err)
	switch code := warmboot.CodeOf(err); {
	case err == nil:
		return bootResult{method: warmboot.BootWarm, phases: booted.Phases, snap: snap, took: took}, "", nil
	case ctx.Err() != nil:
		return bootResult{}, "", ctx.Err()
	case errors.Is(err, ErrUnreachable):
		return bootResult{}, "", err
	case code == warmboot.Conflict || code == warmboot.Invalid || code == warmboot.Exhausted:
		// The port is taken, the host or its disk is full: no fault of the snapshot's. A cold boot may do without what was lacking, such as room for a copy of
		// the snapshot's disk; if not, it says so.
	case code == warmboot.Incompatible:
		// Made for something else, or the host is too old to know how: no fault of the snapshot's either.
		if !errors.Is(err, ErrMachineSize) && !errors.Is(err, ErrUnknownCall) {
			s.log.WarnContext(ctx, fmt.Sprintf("Snapshot %s does not fit any more (%v): version migration, a new one is built", snap.ID.Short(), err), "snapshot_id", snap.ID)
			s.rebuildSoon(snap, s.platformOf(hostID))
		}
	default:
		s.recordFailure(ctx, snap, err.Error())
	}
	s.Observer.Fallback(string(warmboot.CodeOf(err)))
	return bootResult{}, err.Error(), nil
}

// fetchSnapshot sees to it that a host has a snapshot's files. If it cannot get them in time, it says why, and a cold boot is next.
func (s *Service) fetchSnapshot(ctx context.Context, host Host, hostID warmboot.ID, img warmboot.Image, snap *warmboot.RuntimeSnapshot) (reason string, err error) {
	has := func(h *warmboot.Host) bool {
		return snap.HostID == h.ID || slices.Contains(h.Inventory.Snapshots, snap.ID)
	}
	if h := s.hosts.host(hostID); h == nil || has(h) || snap.HostID == "" {
		return "", nil
	}
	fctx, sp := span.Start(ctx, "fetch snapshot", "snapshot_id", snap.ID)
	defer func() { sp.End(err) }()
	fctx, cancel := context.WithTimeout(fctx, s.SnapshotWait)
	defer cancel()
	err = host.FetchSnapshot(fctx, *snap, img, s.peers(hostID, has))
	if err == nil || ctx.Err() != nil || errors.Is(err, ErrUnreachable) {
		return "", errors.Join(ctx.Err(), err)
	}
	s.Observer.Fallback(FallbackNotFetched)
	return fmt.Sprintf("Runtime snapshot %s could not be fetched from another host: %v", snap.ID.Short(), err), nil
}

// platformOf is a host's, "" if it is not known.
func (s *Service) platformOf(id warmboot.ID) string {
	if h := s.hosts.host(id); h != nil {
		return h.Inventory.Platform
	}
	return ""
}

// recordSuccess counts a restore, once its machine has lived long enough to start its command. Where it ends a streak of failures it is stored at once; else with others, a moment later.
func (s *Service) recordSuccess(ctx context.Context, snap *warmboot.RuntimeSnapshot) {
	if snap.FailureStreak == 0 {
		s.uses.success(s, snap.ID)
		return
	}
	if err := s.store.RecordSuccesses(ctx, snap.ID, time.Now().UTC(), 1); err != nil {
		s.log.Error("The use of a snapshot could not be counted", "snapshot_id", snap.ID, "err", err)
	}
}

// recordFailure counts a failed restore. A count that is lost costs little, a container that is lost much: so an error is
// logged and not returned.
func (s *Service) recordFailure(ctx context.Context, snap *warmboot.RuntimeSnapshot, failure string) {
	after, err := s.store.RecordFailure(ctx, snap.ID, time.Now().UTC(), failure)
	if err != nil {
		s.log.Error("The use of a snapshot could not be counted", "snapshot_id", snap.ID, "err", err)
		return
	}
	if after.State == warmboot.SnapshotUnhealthy {
		s.log.Warn(fmt.Sprintf("Snapshot %s is unhealthy after %d failures in a row; a new one is built", snap.ID.Short(), after.FailureStreak), "snapshot_id", snap.ID)
		s.rebuildSoon(after, after.Platform)
	}
}
