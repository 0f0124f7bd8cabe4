package controlplane

import (
	"context"
	"sync"
	"time"

	"warmboot"
)

// sighting is when a sign of life was last seen to have changed. The counts are compared and never the clocks of two machines: a clock
// that jumps kills nobody.
type sighting struct {
	beat  int64
	since time.Time // by our monotonic clock
}

// sweepEvery is how often what nobody is doing is looked for without a reason: a hint may have been lost.
const sweepEvery = 15 * time.Second

// members is what this manager knows of the others.
type members struct {
	mu    sync.Mutex
	seen  map[warmboot.ID]sighting
	swept time.Time
}

func (s *Service) join(ctx context.Context) error {
	return s.store.JoinManagers(ctx, &warmboot.Manager{ID: s.me, Name: s.Name, StartedAt: time.Now().UTC()})
}

// leave frees this manager's leases at once, so that others need not wait.
func (s *Service) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := s.store.LeaveManagers(ctx, s.me); err != nil {
		s.log.Warn("The other managers could not be told that this one ends; they find out by themselves", "err", err)
	}
}

// live gives signs of life and looks for those of other managers and of hosts, until the Service closes.
func (s *Service) live() {
	for s.wait(s.Beat) {
		if err := s.beat(s.ctx); err != nil && s.ctx.Err() == nil {
			s.log.Warn("The store could not be told that this manager lives", "err", err)
		}
	}
}

func (s *Service) beat(ctx context.Context) error {
	// Nothing here may take longer than others wait for the next sign of life.
	ctx, cancel := context.WithTimeout(ctx, s.DeadAfter)
	defer cancel()
	all, err := s.store.BeatManager(ctx, s.me)
	if warmboot.CodeOf(err) == warmboot.NotFound {
		s.lose(err)
		return err
	}
	if err != nil {
		s.members.forget() // the time in which nobody could be seen does not count
		s.hosts.forgetSightings()
		return err
	}
	died, dead := s.members.look(s.me, all, s.DeadAfter)
	for _, m := range dead {
		if err := s.store.RemoveManager(ctx, m.ID, m.Beat); err != nil {
			return err
		}
		s.log.Warn("Manager "+m.Name+" gives no sign of life; what it was doing is taken over", "manager_id", m.ID)
		died = true
	}
	up, err := s.beatHosts(ctx)
	if err != nil {
		return err
	}
	if died || up || s.members.sweepDue() {
		// A task may wait for a host; the next sign of life may not wait for that.
		return s.work.start(func() {
			if err := s.takeOver(s.ctx, died); err != nil && s.ctx.Err() == nil {
				s.log.Warn("What nobody is doing could not be taken over; it is tried again", "err", err)
			}
		})
	}
	return nil
}

// lose ends the Service's work: others have taken it over. The host would refuse it in any case.
func (s *Service) lose(err error) {
	select {
	case s.lost <- warmboot.Errorf(warmboot.Conflict, "manager "+s.Name, "%w; give each manager a name of its own with --name, and see that this one reaches the database in time", err):
	default:
	}
	s.cancel()
}

// look compares the managers with the last look. It reports whether one has gone that was there, and those that have been silent too
// long.
func (m *members) look(me warmboot.ID, all []*warmboot.Manager, deadAfter time.Duration) (gone bool, silent []*warmboot.Manager) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := map[warmboot.ID]sighting{}
	for _, other := range all {
		if other.ID == me {
			continue
		}
		seen, known := m.seen[other.ID]
		if !known || seen.beat != other.Beat {
			seen = sighting{other.Beat, time.Now()}
		}
		if time.Since(seen.since) > deadAfter {
			silent = append(silent, other)
			continue
		}
		now[other.ID] = seen
	}
	for id := range m.seen {
		if _, there := now[id]; !there {
			gone = true
		}
	}
	m.seen = now
	return gone, silent
}

func (m *members) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, seen := range m.seen {
		seen.since = time.Now()
		m.seen[id] = seen
	}
	m.swept = time.Time{}
}

// sweepSoon makes the next beat look.
func (m *members) sweepSoon() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.swept = time.Time{}
}

// sweepDue reports whether it is time to look without a reason; it is then done.
func (m *members) sweepDue() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Since(m.swept) < sweepEvery {
		return false
	}
	m.swept = time.Now()
	return true
}
