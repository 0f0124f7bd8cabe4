package controlplane

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"warmboot"
)

// maxTakeovers is how often a create or start is taken up before it counts as failed: one that always takes its manager down with it
// must not do that for ever.
const maxTakeovers = 50

// takeOver takes up what nobody is doing although the store says that somebody is: a manager has died, or could not tell the store how
// something ended. What is on a host that is down waits for that. death says that there is a reason to look closely.
func (s *Service) takeOver(ctx context.Context, death bool) error {
	if death {
		if err := s.rescueJobs(ctx); err != nil {
			return err
		}
	}
	moving, err := s.store.Containers(ctx, warmboot.ContainerFilter{States: warmboot.MovingStates()})
	if err != nil {
		return err
	}
	for _, c := range moving {
		if c.Lease.HeldByOther(s.me) || s.tasks.busy(c.ID) || !s.canReach(c) {
			continue
		}
		if err := s.resume(ctx, c); err != nil && warmboot.CodeOf(err) != warmboot.Conflict && warmboot.CodeOf(err) != warmboot.NotFound {
			return err
		}
	}
	if death {
		s.collectSoon()
	}
	return s.takeOverBuilds(ctx, death)
}

// rescueJobs lets the jobs of dead managers be done again.
func (s *Service) rescueJobs(ctx context.Context) error {
	all, err := s.store.BeatManager(ctx, s.me)
	if err != nil {
		return err
	}
	var alive []warmboot.ID
	for _, m := range all {
		alive = append(alive, m.ID)
	}
	return s.Queue.Rescue(ctx, alive)
}

// canReach reports whether something can be done about a container. One without a host has nothing anywhere.
func (s *Service) canReach(c *warmboot.Container) bool {
	if c.HostID == "" {
		return true
	}
	_, err := s.reach(c.HostID)
	return err == nil
}

// resume goes on with what was being done to a container. It is a Conflict if somebody does already.
func (s *Service) resume(ctx context.Context, c *warmboot.Container) error {
	t, err := s.tasks.begin(s.ctx, c.ID, "taken over")
	if err != nil {
		return err
	}
	h, now, err := s.acquire(ctx, t, func(now *warmboot.Container) error {
		if now.State != c.State {
			return warmboot.Errorf(warmboot.Conflict, "take over container", "container %s is %s by now", now.Name, now.State)
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.log.Info(fmt.Sprintf("Container %s is %s and nobody sees to it: it is taken over", c.ID.Short(), c.State), "container_id", c.ID, "generation", h.lease.Generation)
	err = s.work.start(func() {
		defer h.end()
		s.resumed(h, now)
	})
	if err != nil {
		h.abandon()
		h.end()
	}
	return err
}

func (s *Service) resumed(h *hold, c *warmboot.Container) {
	switch c.State {
	case warmboot.ContainerDeleting:
		_ = s.remove(h, c) // it has told the log, and gives the container back for another try
	case warmboot.ContainerStopping:
		s.stop(h, c, defaultGrace)
	case warmboot.ContainerCreating, warmboot.ContainerStarting:
		img, err := insist(h.ctx, func() (*warmboot.Image, error) { return s.store.Image(h.ctx, c.RuntimeImageID) })
		switch {
		case err != nil:
		case c.State == warmboot.ContainerCreating && c.Private:
			err = warmboot.Errorf(warmboot.Canceled, "create container", "warmboot ended before the container was up, and the registry's credentials, which are never stored, ended with it; create it again")
		case h.lease.Generation > maxTakeovers+1:
			err = warmboot.Errorf(warmboot.Internal, "create container", "it was taken up %d times, and each time warmboot ended before the container was up; look at the log, and create it again", maxTakeovers)
		default:
			err = s.clear(h, c)
		}
		if err != nil {
			s.notBroughtUp(h, c, err)
			return
		}
		s.provision(h, c, img, nil)
	}
}

// clear releases what an earlier attempt to bring a container up has left on its host.
func (s *Service) clear(h *hold, c *warmboot.Container) error {
	host, err := s.reach(c.HostID)
	if err != nil {
		return err
	}
	if c.State == warmboot.ContainerStarting { // its disk stays
		_, err = host.StopContainer(h.ctx, h.ref(), 0)
		return err
	}
	return host.RemoveContainer(h.ctx, h.ref())
}

// reconcile compares what a host says that it has with what the store says. rebooted says that all its machines are gone for that.
func (s *Service) reconcile(ctx context.Context, hello Hello, rebooted bool) error {
	host, err := s.reach(hello.ID)
	if err != nil {
		return err
	}
	rows, err := s.store.Containers(ctx, warmboot.ContainerFilter{HostID: hello.ID})
	if err != nil {
		return err
	}
	var now map[warmboot.ID]bool
	have := map[warmboot.ID]HostContainer{}
	for _, h := range hello.Containers {
		have[h.ID] = h
	}
	for _, c := range rows {
		h := have[c.ID]
		if c.State == warmboot.ContainerRunning && !h.Running && !rebooted {
			// What it said is older than the rows, so this one may have been started since. What it says now is newer.
			if now == nil {
				if now, err = running(ctx, host); err != nil {
					return err
				}
			}
			h.Running = now[c.ID]
		}
		if err := s.reconcileContainer(ctx, host, c, h, rebooted); err != nil {
			return err
		}
		delete(have, c.ID)
	}
	return s.reconcileUnknown(ctx, host, hello, have)
}

// running are the containers of a host whose machines run.
func running(ctx context.Context, host Host) (map[warmboot.ID]bool, error) {
	all, err := host.Containers(ctx)
	runs := map[warmboot.ID]bool{}
	for _, h := range all {
		runs[h.ID] = h.Running
	}
	return runs, err
}

// reconcileContainer sees to one container of a host that has said hello. What is moving is left to those who move it.
func (s *Service) reconcileContainer(ctx context.Context, host Host, c *warmboot.Container, h HostContainer, rebooted bool) error {
	older := h.Generation > c.Lease.Generation // than the host remembers: the store was restored from a backup
	if older {
		if _, err := s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
			c.Lease.Generation = max(c.Lease.Generation, h.Generation)
			return nil
		}); err != nil {
			return err
		}
	}
	switch {
	case c.State == warmboot.ContainerRunning && h.Running:
		s.log.Info("Container "+c.ID.Short()+" is still running", "container_id", c.ID)
	case c.State == warmboot.ContainerRunning:
		reason := "its microVM ended while warmboot was not running"
		if rebooted {
			reason = "its host was booted again"
		}
		if err := s.ended(ctx, Ended{Container: c.ID, Code: -1, Reason: reason}, rebooted); warmboot.CodeOf(err) != warmboot.Unavailable { // else somebody else is at it
			return err
		}
	case c.State == warmboot.ContainerStopped && rebooted && c.ShouldRestart(true):
		s.restart(c.ID, true)
	case c.State == warmboot.ContainerStopped && h.Running && older:
		return ignoreConflict(s.startedSince(ctx, c.ID))
	case (c.State == warmboot.ContainerStopped || c.State == warmboot.ContainerFailed) && h.Running: // its release failed, or was cut short
		t, err := s.tasks.begin(s.ctx, c.ID, "released")
		if err != nil {
			return nil // whoever does something to it sees to the rest
		}
		hold, _, err := s.acquire(ctx, t, func(*warmboot.Container) error { return nil })
		if err != nil {
			return ignoreConflict(err)
		}
		defer hold.end()
		defer hold.abandon()
		if _, err := host.StopContainer(ctx, hold.ref(), 0); err != nil {
			s.log.Error("The microVM of a container that has ended could not be released", "container_id", c.ID, "err", err)
		}
	}
	return nil
}

// startedSince takes note that a container runs which the store has as stopped, because it is older than its start.
func (s *Service) startedSince(ctx context.Context, id warmboot.ID) error {
	t, err := s.tasks.begin(s.ctx, id, "taken note of")
	if err != nil {
		return err
	}
	hold, c, err := s.acquire(ctx, t, func(c *warmboot.Container) error { c.State = warmboot.ContainerStarting; return nil })
	if err != nil {
		return err
	}
	defer hold.end()
	s.log.Warn(fmt.Sprintf("Container %s (%s) runs and was not known to have been started again. Was the database restored from a backup?", c.Name, c.ID.Short()), "container_id", c.ID)
	_, err = hold.release(func(c *warmboot.Container) error {
		now := time.Now().UTC()
		c.State, c.StartedAt, c.FinishedAt, c.ExitCode, c.Error = warmboot.ContainerRunning, &now, nil, nil, ""
		return nil
	})
	return err
}

// forgotten are containers of a host that the store must have forgotten, as when it was restored from a backup: it has neither their rows nor
// a note of their deletion, and yet their commands have once been started. They are known again when the host says hello.
func (s *Service) forgotten(ctx context.Context, on []HostContainer, known map[warmboot.ID]bool) (map[warmboot.ID]bool, error) {
	all := map[warmboot.ID]bool{}
	for _, h := range on {
		if !known[h.ID] && h.Container != nil {
			all[h.ID] = true
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	deleted, err := s.store.DeletedContainers(ctx, slices.Collect(maps.Keys(all)))
	maps.DeleteFunc(all, func(id warmboot.ID, _ bool) bool { return deleted[id] })
	return all, err
}

// reconcileUnknown sees to what a host has and the store does not know as this host's. What was deleted, or placed elsewhere, while the
// host was away is removed there; what the store has forgotten is known again.
func (s *Service) reconcileUnknown(ctx context.Context, host Host, hello Hello, unknown map[warmboot.ID]HostContainer) error {
	forgotten, err := s.forgotten(ctx, slices.Collect(maps.Values(unknown)), nil)
	if err != nil {
		return err
	}
	for id, h := range unknown {
		row, err := s.store.Container(ctx, id)
		switch {
		case err == nil && row.HostID == "": // of a time when there was but one host
			if _, err := s.store.UpdateContainer(ctx, id, func(c *warmboot.Container) error { c.HostID = hello.ID; return nil }); err != nil {
				return err
			}
			row.HostID = hello.ID
			if err := s.reconcileContainer(ctx, host, row, h, false); err != nil {
				return err
			}
			continue
		case err != nil && warmboot.CodeOf(err) != warmboot.NotFound:
			return err
		}
		if err != nil && forgotten[id] {
			if err := s.adopt(ctx, hello, h); err != nil {
				s.log.Error("A container that nobody knows could not be taken in; it is left alone", "container_id", id, "err", err)
			}
			continue
		}
		s.log.Warn("Host "+hello.Name+" has a container that nobody wants; it is removed", "container_id", id)
		if err := host.RemoveContainer(ctx, ContainerRef{ID: id}); err != nil {
			s.log.Error("It could not be removed", "container_id", id, "err", err)
		}
	}
	return nil
}

// adopt stores a container that is on a host and not in the store.
func (s *Service) adopt(ctx context.Context, hello Hello, h HostContainer) error {
	c := *h.Container
	now := time.Now().UTC()
	c.HostID, c.State, c.Lease, c.StartedAt, c.FinishedAt = hello.ID, warmboot.ContainerRunning, warmboot.Lease{Generation: h.Generation}, &now, nil
	if !h.Running {
		c.State, c.FinishedAt = warmboot.ContainerStopped, &now
	}
	if c.CreatedAt.IsZero() {
		c.CreatedAt = now
	}
	err := s.store.CreateContainer(ctx, &c)
	if warmboot.CodeOf(err) == warmboot.Conflict { // the name has been given to another
		c.Name = fmt.Sprintf("%.50s-%s", c.Name, c.ID.Short())
		err = s.store.CreateContainer(ctx, &c)
	}
	if err == nil {
		s.log.Warn(fmt.Sprintf("Container %s (%s) is on host %s and was not known any more; it is known again. Was the database restored from a backup?", c.Name, c.ID.Short(), hello.Name), "container_id", c.ID)
	}
	return err
}

func ignoreConflict(err error) error {
	if warmboot.CodeOf(err) == warmboot.Conflict || warmboot.CodeOf(err) == warmboot.NotFound {
		return nil
	}
	return err
}
