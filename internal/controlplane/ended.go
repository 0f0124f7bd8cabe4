package controlplane

import (
	"context"
	"errors"
	"fmt"
	"time"

	"warmboot"
)

// endedWait is how long a report of an end waits for whoever is still doing something to the container.
const endedWait = 5 * time.Second

// ContainerEnded implements Reports. It is an Unavailable error while another manager is at the container: the host tells it again.
func (s *Service) ContainerEnded(ctx context.Context, host warmboot.ID, end Ended) error {
	ctx, cancel := context.WithTimeout(ctx, endedWait)
	defer cancel()
	for {
		changed := s.changes.of(end.Container)
		c, err := s.store.Container(ctx, end.Container)
		switch {
		case warmboot.CodeOf(err) == warmboot.NotFound:
			return nil
		case err != nil:
			return err
		case c.HostID != host:
			return nil // it was placed elsewhere since
		case c.State == warmboot.ContainerRunning:
			return s.ended(ctx, end, false)
		case c.State != warmboot.ContainerCreating && c.State != warmboot.ContainerStarting:
			return nil // whoever stops or deletes it takes care of the rest
		}
		// It has ended so soon that its start is not recorded yet.
		select {
		case <-changed:
		case <-ctx.Done():
			return warmboot.Errorf(warmboot.Unavailable, "record end of container", "container %s is still being started", end.Container)
		}
	}
}

// ended releases a container that has ended by itself, and starts it again if its restart policy wants that. It returns once the end
// is this manager's to see to. rebooted says that its host was booted again.
func (s *Service) ended(ctx context.Context, end Ended, rebooted bool) error {
	// The state is in the store a moment before the task that brought it there is over.
	t, err := s.tasks.after(ctx, s.ctx, end.Container, "cleaned up after its end")
	if err != nil {
		return warmboot.Errorf(warmboot.Unavailable, "record end of container", "%w", err)
	}
	h, c, err := s.acquire(ctx, t, func(c *warmboot.Container) error {
		if c.State != warmboot.ContainerRunning {
			return errStopped
		}
		c.State = warmboot.ContainerStopping
		return nil
	})
	switch {
	case errors.Is(err, errStopped) || warmboot.CodeOf(err) == warmboot.NotFound:
		return nil
	case warmboot.CodeOf(err) == warmboot.Conflict:
		return warmboot.Errorf(warmboot.Unavailable, "record end of container", "%w", err)
	case err != nil:
		return err
	}
	if err := s.work.start(func() {
		defer h.end()
		host, err := s.reach(c.HostID)
		if err == nil {
			_, err = host.StopContainer(h.ctx, h.ref(), 0)
		}
		if err != nil {
			s.log.Error("The microVM of a container that has ended could not be released", "container_id", c.ID, "err", err)
		}
		s.recordEnd(h, c, end, rebooted)
	}); err != nil {
		h.abandon()
		h.end()
		return err
	}
	return nil
}

// recordEnd moves a container to stopped and gives its lease back, and starts it again if its restart policy wants that; one that is to be
// removed at its end is.
func (s *Service) recordEnd(h *hold, c *warmboot.Container, how Ended, rebooted bool) {
	end := func(c *warmboot.Container) error {
		now := time.Now().UTC()
		c.State, c.FinishedAt, c.VMID, c.Error, c.ExitCode = warmboot.ContainerStopped, &now, "", how.Reason, nil
		if c.Spec.AutoRemove {
			c.State = warmboot.ContainerDeleting
		}
		if how.Code >= 0 {
			c.ExitCode = &how.Code
		}
		return nil
	}
	ctx, cancel := h.lastWords()
	defer cancel()
	var after *warmboot.Container
	var err error
	if c.Spec.AutoRemove { // the lease is needed to remove it
		after, err = h.update(ctx, end)
	} else {
		after, err = h.release(end)
	}
	if err != nil {
		if !errors.Is(err, errLost) {
			s.log.Error("The end of a container could not be recorded", "container_id", h.id, "err", err)
		}
		return
	}
	s.log.Info(fmt.Sprintf("Container %s ended", h.id.Short()), "container_id", h.id, "exit_code", how.Code, "reason", how.Reason)
	if after.State == warmboot.ContainerDeleting {
		_ = s.remove(h, after) // it has told the log, and gives the container back for another try
		return
	}
	// While its machine lives, the Docker in it restarts the command: an end with a known code is one that the policy accepts, unless the machine died before
	// Docker had answered that.
	if (how.Code < 0 || how.Cut) && after.ShouldRestart(rebooted) {
		s.restart(h.id, rebooted)
	}
}

// The waits before a container is restarted: they double from one restart to the next.
const (
	restartFirst = time.Second
	restartMost  = 5 * time.Minute
	// restartGood is how long a container has to have run for its next restart to count as the first.
	restartGood = 10 * time.Minute
)

// restart starts a container that ran again in a moment, because its restart policy says so.
func (s *Service) restart(id warmboot.ID, rebooted bool) {
	c, err := s.store.UpdateContainer(s.ctx, id, func(c *warmboot.Container) error {
		if c.StartedAt != nil && c.FinishedAt != nil && c.FinishedAt.Sub(*c.StartedAt) > restartGood {
			c.Restarts = 0
		}
		return nil
	})
	if err == nil {
		err = s.restartLater(c, rebooted)
	}
	if err != nil && s.ctx.Err() == nil {
		s.log.Error("A container that should be started again will not be", "container_id", id, "err", err)
	}
}

// restartLater has the queue start a container again, after a wait that grows with the number of its restarts.
func (s *Service) restartLater(c *warmboot.Container, rebooted bool) error {
	wait := min(restartFirst<<min(c.Restarts, 20), restartMost)
	s.log.Info(fmt.Sprintf("Container %s is started again in %s: its restart policy is %s", c.ID.Short(), wait, c.Spec.RestartPolicy), "container_id", c.ID)
	return s.Queue.Restart(s.ctx, Restart{Container: c.ID, Rebooted: rebooted, Count: c.Restarts}, wait)
}

// RunRestart is the queue's: it starts a container again if its restart policy still wants that.
func (s *Service) RunRestart(ctx context.Context, r Restart) error {
	c, err := s.store.Container(ctx, r.Container)
	if warmboot.CodeOf(err) == warmboot.NotFound {
		return nil
	}
	if err != nil {
		return err
	}
	if c.State != warmboot.ContainerStopped || !c.ShouldRestart(r.Rebooted) {
		return nil
	}
	_, err = s.startAgain(ctx, string(c.ID), fmt.Sprintf("%s, because its restart policy is %s", startedAgain, c.Spec.RestartPolicy), func(c *warmboot.Container) { c.Restarts++ })
	return ignoreConflict(err)
}
