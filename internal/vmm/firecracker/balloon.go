package firecracker

import (
	"context"
	"errors"
	"time"

	"warmboot"
)

// balloon is the device that a machine gets if Config.Balloon says so: empty, and given back when the guest would rather kill a process.
// Without statistics, which cannot be switched on later, it would not tell how far the guest has come.
var balloon = Balloon{DeflateOnOOM: true, StatsPollingIntervalS: 1}

// How a guest's progress is followed; it tells nobody by itself.
const (
	reclaimStep  = 20 * time.Millisecond
	reclaimStill = 3 * time.Second // without any progress: it yields no more, and is not only waiting for a processor
)

// Reclaim has the guest do without mib MiB of its memory.
func (m *machine) Reclaim(ctx context.Context, mib int) (int, error) {
	const op = "reclaim memory"
	// With less than this for itself a guest kills its processes; deflate_on_oom comes too late for some of them.
	const least = 64
	if mib < 0 || mib > 0 && mib > m.kept.Spec.MemoryMiB-least {
		return 0, warmboot.Errorf(warmboot.Invalid, op, "a machine with %d MiB cannot do without %d; it needs %d", m.kept.Spec.MemoryMiB, mib, least)
	}
	got := 0
	err := m.command(ctx, op, func(c *Client) error {
		if err := c.PatchBalloon(ctx, mib); err != nil {
			var refused *Refusal
			if errors.As(err, &refused) {
				return warmboot.Errorf(warmboot.Conflict, op, "machine %s has no balloon that can be changed (%w)", m.handle.ID, err)
			}
			return err
		}
		tick := time.NewTicker(reclaimStep)
		defer tick.Stop()
		last := time.Now()
		for first := true; ; first = false {
			s, err := c.BalloonStats(ctx)
			if err != nil {
				return err
			}
			if s.ActualMiB != got || first {
				got, last = s.ActualMiB, time.Now()
			}
			if got == mib || time.Since(last) > reclaimStill {
				return nil
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
		}
	})
	if err != nil && ctx.Err() != nil && got > 0 {
		return got, nil
	}
	return got, err
}
