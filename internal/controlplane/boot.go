package controlplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"warmboot"
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
func (s *Service) boot(ctx context.Context, m MachineSpec, coldReason string) (bootResult, error) {
	id := m.Container.Short()
	if coldReason == "" {
		res, reason, err := s.warmBoot(ctx, m)
		if err != nil {
			return bootResult{}, err
		}
		if reason == "" {
			s.log.Info(fmt.Sprintf("Container %s VM created: %s via warm boot in %.2fs", id, m.VMID, res.took.Seconds()), "container_id", m.Container, "snapshot_id", res.snap.ID)
			return res, nil
		}
		s.log.Warn(fmt.Sprintf("Warm boot failed for container %s, falling back to cold boot: %s", id, reason), "container_id", m.Container)
		coldReason = reason
	}
	start := time.Now()
	booted, err := s.host.ColdBoot(ctx, m)
	took := time.Since(start)
	s.observer.Boot(warmboot.BootCold, took, booted.Phases, err)
	if err != nil {
		return bootResult{}, err
	}
	s.cold.record(m.Image.ID, took)
	s.log.Info(fmt.Sprintf("Container %s VM created: %s via cold boot in %.2fs", id, m.VMID, took.Seconds()), "container_id", m.Container)
	return bootResult{method: warmboot.BootCold, reason: coldReason, phases: booted.Phases, took: took}, nil
}

// warmBoot returns either a machine, or the reason why there is none and a cold boot is next, or an error that a cold boot would meet
// as well.
func (s *Service) warmBoot(ctx context.Context, m MachineSpec) (bootResult, string, error) {
	snap, reason, err := s.usableSnapshot(ctx, m.Image.ID)
	if err != nil || snap == nil {
		return bootResult{}, reason, err
	}
	start := time.Now()
	booted, err := s.host.WarmBoot(ctx, m, *snap)
	took := time.Since(start)
	s.observer.Boot(warmboot.BootWarm, took, booted.Phases, err)
	switch code := warmboot.CodeOf(err); {
	case err == nil:
		s.recordRestore(ctx, snap.ID, "")
		s.rebuilds.forget(m.Image.ID)
		return bootResult{method: warmboot.BootWarm, phases: booted.Phases, snap: snap, took: took}, "", nil
	case ctx.Err() != nil:
		return bootResult{}, "", ctx.Err()
	case code == warmboot.Conflict || code == warmboot.Invalid || code == warmboot.Exhausted:
		// The port is taken, or the host is full: nothing that a cold boot would do better.
		return bootResult{}, "", err
	case code == warmboot.Incompatible:
		// Made for something else: no fault of the snapshot's.
		if !errors.Is(err, ErrMachineSize) {
			s.log.Warn(fmt.Sprintf("Snapshot %s does not fit any more (%v): version migration, a new one is built", snap.ID.Short(), err), "snapshot_id", snap.ID)
			s.rebuildSoon(snap.RuntimeImageID, snap.ID)
		}
	default:
		s.recordRestore(ctx, snap.ID, err.Error())
	}
	s.observer.Fallback(string(warmboot.CodeOf(err)))
	return bootResult{}, err.Error(), nil
}

// recordRestore counts a use of a snapshot. A count that is lost costs little, a container that is lost much: so an error is
// logged and not returned.
func (s *Service) recordRestore(ctx context.Context, id warmboot.ID, failure string) {
	after, err := s.store.RecordRestore(ctx, id, time.Now().UTC(), failure)
	if err != nil {
		s.log.Error("The use of a snapshot could not be counted", "snapshot_id", id, "err", err)
		return
	}
	if failure != "" && after.State == warmboot.SnapshotUnhealthy {
		s.log.Warn(fmt.Sprintf("Snapshot %s is unhealthy after %d failures in a row; a new one is built", id.Short(), after.FailureStreak), "snapshot_id", id)
		s.changes.notify(id)
		s.rebuildSoon(after.RuntimeImageID, id)
	}
}
