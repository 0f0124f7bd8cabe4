package controlplane

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"warmboot"
	"warmboot/internal/telemetry/span"
)

// bringUp boots and starts a container that is in state creating or starting, in the background.
func (s *Service) bringUp(h *hold, c warmboot.Container, img warmboot.Image, auth *RegistryAuth) error {
	err := s.work.start(func() {
		defer h.end()
		s.provision(h, &c, &img, auth)
	})
	if err != nil {
		h.abandon()
		h.end()
	}
	return err
}

// provision takes a container from creating or starting to running, or says why not. Where a host that has just been chosen cannot
// boot it, another is chosen; the disk of one that is started again is on its host and nowhere else.
func (s *Service) provision(h *hold, c *warmboot.Container, img *warmboot.Image, auth *RegistryAuth) {
	excluded := map[warmboot.ID]bool{}
	for {
		started, err := s.provisionOn(h, c, img, auth)
		switch {
		case err == nil:
			return
		case started || c.State != warmboot.ContainerCreating || h.ctx.Err() != nil || !worthAnotherHost(err):
			s.notBroughtUp(h, c, err)
			return
		}
		excluded[c.HostID] = true
		next, placeErr := s.placeElsewhere(h, c, excluded)
		for errors.Is(placeErr, warmboot.ErrHostClosed) && s.refreshHosts(h.ctx) == nil {
			next, placeErr = s.placeElsewhere(h, c, excluded)
		}
		if placeErr != nil {
			s.notBroughtUp(h, c, err)
			return
		}
		s.log.WarnContext(h.ctx, fmt.Sprintf("Container %s goes to host %s, because host %s did not bring it up: %v", c.ID.Short(), s.HostName(next.HostID), s.HostName(c.HostID), err), "container_id", c.ID)
		c = next
	}
}

// worthAnotherHost reports whether an error tells of the host and not of the container.
func worthAnotherHost(err error) bool {
	return errors.Is(err, ErrUnreachable) || warmboot.CodeOf(err) == warmboot.Exhausted
}

// placeElsewhere chooses another host. What the one before may still have of the container it removes when it says hello again: its
// row is another host's then.
func (s *Service) placeElsewhere(h *hold, c *warmboot.Container, excluded map[warmboot.ID]bool) (_ *warmboot.Container, err error) {
	next, stored, err := s.placeContainer(h.ctx, c.RuntimeImageID, c.Spec, excluded)
	if err != nil {
		return nil, err
	}
	defer func() { stored(err) }()
	if _, err := s.reservePorts(h.ctx, next.ID, c.Spec.PortMappings); err != nil {
		return nil, err
	}
	return h.update(h.ctx, func(c *warmboot.Container) error { c.HostID = next.ID; return nil })
}

// provisionOn brings a container up on its host. started tells whether its command may have been started.
func (s *Service) provisionOn(h *hold, c *warmboot.Container, img *warmboot.Image, auth *RegistryAuth) (started bool, err error) {
	start := time.Now()
	h, sp := h.span("bring container up", "host", s.HostName(c.HostID), "image", c.Image)
	defer func() { sp.End(err) }()
	host, err := s.reach(c.HostID)
	if err != nil {
		return false, err
	}
	if err := s.fetchImage(h.ctx, host, c.HostID, img); err != nil {
		return false, err
	}
	res, phases, started, err := s.bootAndStart(h, host, c, img, auth, coldReason(c))
	if res.method == warmboot.BootWarm && errors.Is(err, ErrNotStarted) && h.ctx.Err() == nil {
		if reason, undone := s.undoWarmBoot(h, host, res.snap, err); undone {
			res, phases, started, err = s.bootAndStart(h, host, c, img, auth, reason)
		}
	}
	if err != nil {
		return started, err
	}
	s.Step("create: started")
	// Not h.release: if the store is away for long the container goes on running, and the store is told when it is back.
	if _, err := h.update(h.ctx, func(c *warmboot.Container) error {
		now := time.Now().UTC()
		c.State, c.StartedAt, c.FinishedAt, c.ExitCode, c.Error = warmboot.ContainerRunning, &now, nil, nil, ""
		c.Phases = slices.Concat(res.phases, phases)
		c.Lease = c.Lease.Release()
		return nil
	}); err != nil {
		return true, err
	}
	took, saved, gain := time.Since(start), "", time.Duration(0)
	if res.method == warmboot.BootWarm {
		gain = s.cold.saved(img.ID, res.snap, res.took)
		saved = fmt.Sprintf(" (saved ~%.0fs)", gain.Seconds())
	}
	s.Observer.Start(res.method, took, gain, phases)
	s.log.InfoContext(h.ctx, fmt.Sprintf("Container %s fully provisioned in %.2fs via %s boot%s", c.ID.Short(), took.Seconds(), res.method, saved), "container_id", c.ID)
	return true, nil
}

// bootAndStart boots a container's machine and has its command started in it. started tells whether that may have happened.
func (s *Service) bootAndStart(h *hold, host Host, c *warmboot.Container, img *warmboot.Image, auth *RegistryAuth, coldReason string) (res bootResult, _ []warmboot.Phase, started bool, err error) {
	vmID := "vm-" + warmboot.NewID().Short()
	res, err = s.boot(h.ctx, host, c.HostID, MachineSpec{Container: h.ref(), VMID: vmID, Hostname: hostname(c.Name), Image: *img, Spec: c.Spec}, coldReason)
	if err != nil {
		return res, nil, false, err
	}
	s.Step("create: booted")
	booted, err := h.update(h.ctx, func(c *warmboot.Container) error {
		c.BootMethod, c.BootReason, c.VMID, c.Phases, c.SnapshotID = res.method, res.reason, vmID, res.phases, ""
		if res.snap != nil {
			c.SnapshotID = res.snap.ID
		}
		return nil
	})
	if err != nil {
		return res, nil, false, err
	}
	phases, err := s.startCommand(h.ctx, host, booted, auth)
	if res.snap != nil && !errors.Is(err, ErrNotStarted) {
		s.recordSuccess(h.ctx, res.snap)
	}
	return res, phases, true, err
}

// ErrNotStarted is the cause of an Unavailable error when a container's machine has ended before its command was started, or when its restart policy
// lets the command be started again anyway.
var ErrNotStarted = errors.New("its command can be started in another")

// undoWarmBoot removes what is left of a machine that a snapshot gave and that has ended before its command was started: Docker has answered in it, and yet it may be the
// snapshot that is wrong. It returns why the next boot is cold.
func (s *Service) undoWarmBoot(h *hold, host Host, snap *warmboot.RuntimeSnapshot, cause error) (reason string, undone bool) {
	s.Observer.Fallback(string(warmboot.CodeOf(cause)))
	s.recordFailure(h.ctx, snap, cause.Error())
	id := h.ref().ID
	if err := host.RemoveContainer(h.ctx, h.ref()); err != nil {
		s.log.ErrorContext(h.ctx, "What is left of a machine that has ended could not be removed", "container_id", id, "err", err)
		return "", false
	}
	s.fallBack(h.ctx, id, cause.Error())
	return cause.Error(), true
}

// startCommand has a container's image pulled and its command started, in the machine that has booted for it.
func (s *Service) startCommand(ctx context.Context, host Host, c *warmboot.Container, auth *RegistryAuth) (_ []warmboot.Phase, err error) {
	ctx, sp := span.Start(ctx, "start command")
	defer func() { sp.End(err) }()
	return host.StartContainer(ctx, *c, auth, func(step string) {
		sp.Event(step)
		s.log.DebugContext(ctx, fmt.Sprintf("Container %s: %s", c.ID.Short(), step), "container_id", c.ID)
	})
}

// coldReason says why a container may not start from a snapshot, "" if it may.
func coldReason(c *warmboot.Container) string {
	switch {
	case c.State == warmboot.ContainerStarting: // its own disk fits no snapshot's memory
		return cmp.Or(c.BootReason, startedAgain)
	case c.Spec.ColdBoot:
		return "A cold boot was asked for"
	}
	return ""
}

// fetchImage sees to it that a host has a runtime image. One that says so already is not asked.
func (s *Service) fetchImage(ctx context.Context, host Host, id warmboot.ID, img *warmboot.Image) (err error) {
	has := func(h *warmboot.Host) bool { return slices.Contains(h.Inventory.Images, img.Digest) }
	if h := s.hosts.host(id); h != nil && has(h) {
		return nil
	}
	ctx, sp := span.Start(ctx, "fetch runtime image", "image_id", img.ID)
	defer func() { sp.End(err) }()
	return host.FetchImage(ctx, *img, s.peers(id, has))
}

// notBroughtUp releases what a create or start that did not succeed has on the host, and says why in the row. A start that failed keeps
// its disk: the container is stopped again, not lost. What only the end of this manager, or the silence of the host, has cut short is
// left as it is: it is taken up by another manager, by the next start, or when the host is back.
func (s *Service) notBroughtUp(h *hold, c *warmboot.Container, cause error) {
	log := s.log.With("container_id", c.ID)
	if errors.Is(cause, errLost) {
		log.Warn("Another manager has taken over container " + c.ID.Short())
		return
	}
	ctx, cancel := h.lastWords()
	defer cancel()
	host, err := s.reach(c.HostID)
	if err == nil {
		if c.State == warmboot.ContainerStarting {
			_, err = host.StopContainer(ctx, h.ref(), 0)
		} else {
			err = host.RemoveContainer(ctx, h.ref())
		}
	}
	if err != nil {
		log.Error("What a container that did not come up has on the host could not be released", "err", err)
	}
	switch {
	case h.ctx.Err() != nil && s.ctx.Err() == nil: // it is being deleted, and whoever interrupted this goes on with that
		return
	case (s.ctx.Err() != nil || errors.Is(cause, ErrUnreachable)) && !c.Private:
		h.abandon()
		return
	}
	s.Observer.StartFailed(warmboot.CodeOf(cause))
	log.ErrorContext(ctx, fmt.Sprintf("Container %s could not be started", c.ID.Short()), "err", cause)
	state, text := warmboot.ContainerFailed, cause.Error()
	if c.State == warmboot.ContainerStarting {
		state = warmboot.ContainerStopped
	}
	if s.ctx.Err() != nil {
		text = "warmboot was asked to end before the container was up; create it again"
	}
	after, err := h.release(func(c *warmboot.Container) error {
		now := time.Now().UTC()
		c.State, c.Error, c.FinishedAt, c.VMID = state, text, &now, ""
		return nil
	})
	// A restart that nobody asked for is nobody's to ask for again; it may have failed only because everything on the host started at once.
	if err == nil && s.ctx.Err() == nil && state == warmboot.ContainerStopped && after.Restarts > 0 && after.ShouldRestart(false) {
		err = s.restartLater(after, false)
	}
	if err != nil && warmboot.CodeOf(err) != warmboot.Conflict && warmboot.CodeOf(err) != warmboot.NotFound {
		log.Error("The failure could not be recorded, or the container will not be started again", "err", err)
	}
}
