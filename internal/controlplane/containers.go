package controlplane

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"time"

	petname "github.com/dustinkirkland/golang-petname"

	"warmboot"
	"warmboot/internal/placement"
	"warmboot/internal/telemetry/span"
)

// WaitFor is a condition on a container.
type WaitFor string

// The conditions.
const (
	WaitBooted  WaitFor = "booted"  // its Docker has answered, which way is known; or stopped or failed
	WaitStarted WaitFor = "started" // neither creating nor starting any more: running, stopped or failed
	WaitStopped WaitFor = "stopped" // stopped or failed
)

// CreateContainer is what the caller asks for.
type CreateContainer struct {
	Name           string // made up if empty
	Image          string
	RuntimeImageID warmboot.ID // the newest if empty
	Spec           warmboot.ContainerSpec
	Auth           *RegistryAuth
}

// CreateContainer stores a container and starts to bring it up. It returns at once; WaitContainer tells when it runs.
func (s *Service) CreateContainer(ctx context.Context, in CreateContainer) (_ *warmboot.Container, err error) {
	ctx, sp := span.Start(ctx, "create container")
	defer func() { sp.End(err) }()
	img, err := s.runtimeImage(ctx, in.RuntimeImageID)
	if err != nil {
		return nil, err
	}
	if in.Name == "" {
		in.Name = petname.Generate(2, "-") + "-" + warmboot.NewID().Short()[:4]
	}
	if err := warmboot.ValidateContainerName(in.Name); err != nil {
		return nil, err
	}
	if err := validateImageRef(in.Image); err != nil {
		return nil, err
	}
	if err := cmp.Or(in.Spec.RestartPolicy.Validate(), notBoth("create container", in.Spec), in.Spec.Egress.Validate(), in.Spec.Bandwidth.Validate()); err != nil {
		return nil, err
	}
	for {
		c, err := s.createOnSomeHost(ctx, in, img)
		if err == nil {
			sp.Set("container_id", c.ID, "name", c.Name, "host", s.HostName(c.HostID))
		}
		if !errors.Is(err, warmboot.ErrHostClosed) {
			return c, err
		}
		if err := s.refreshHosts(ctx); err != nil { // another manager has closed the host a moment ago
			return nil, err
		}
	}
}

func (s *Service) createOnSomeHost(ctx context.Context, in CreateContainer, img *warmboot.Image) (_ *warmboot.Container, err error) {
	placed, stored, err := s.placeContainer(ctx, img.ID, in.Spec, nil)
	if err != nil {
		return nil, err
	}
	defer func() { stored(err) }()
	if in.Spec.PortMappings, err = s.reservePorts(ctx, placed.ID, in.Spec.PortMappings); err != nil {
		return nil, err
	}
	c := &warmboot.Container{
		ID: warmboot.NewID(), Name: in.Name, Image: in.Image, RuntimeImageID: img.ID, HostID: placed.ID, Spec: in.Spec,
		State: warmboot.ContainerCreating, CreatedAt: time.Now().UTC(), Lease: warmboot.Lease{}.Take(s.me), Private: in.Auth != nil,
	}
	t, err := s.tasks.begin(s.ctx, c.ID, "created")
	if err != nil {
		return nil, err
	}
	if err = s.store.CreateContainer(ctx, c); err != nil {
		t.end()
		return nil, err
	}
	s.Step("create: stored")
	return c, s.bringUp(s.holdOf(ctx, t, c), *c, *img, in.Auth)
}

// placeContainer chooses the host of a container that is to boot from an image. stored must be called once that is stored, or will not be.
func (s *Service) placeContainer(ctx context.Context, image warmboot.ID, spec warmboot.ContainerSpec, excluded map[warmboot.ID]bool) (_ *warmboot.Host, stored func(error), err error) {
	var ready []*warmboot.RuntimeSnapshot
	if s.hosts.several() { // else there is nothing to choose
		if ready, err = s.store.Snapshots(ctx, warmboot.SnapshotFilter{RuntimeImageID: image, States: []warmboot.SnapshotState{warmboot.SnapshotReady}}); err != nil {
			return nil, nil, err
		}
	}
	var host *warmboot.Host
	err = s.choose(ctx, func(all []placement.Host) error {
		choice, err := placement.Container(all, ready, spec, excluded)
		host = choice.Host
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	return host, s.hosts.place(host.ID), nil
}

// reservePorts asks a host for ports, if any are wanted.
func (s *Service) reservePorts(ctx context.Context, host warmboot.ID, ports []warmboot.PortMapping) ([]warmboot.PortMapping, error) {
	if len(ports) == 0 {
		return nil, nil
	}
	h, err := s.reach(host)
	if err != nil {
		return nil, err
	}
	return h.ReservePorts(ctx, ports)
}

func (s *Service) runtimeImage(ctx context.Context, id warmboot.ID) (*warmboot.Image, error) {
	if id == "" {
		return s.newestImage(ctx)
	}
	return s.store.Image(ctx, id)
}

// Containers lists containers, newest first.
func (s *Service) Containers(ctx context.Context, f warmboot.ContainerFilter) ([]*warmboot.Container, error) {
	return s.store.Containers(ctx, f)
}

// Container finds a container by id, name, or the beginning of its id.
func (s *Service) Container(ctx context.Context, ref string) (*warmboot.Container, error) {
	return s.store.FindContainer(ctx, ref)
}

// notBoth refuses a container that is to be both removed and started again when its command ends.
func notBoth(op string, spec warmboot.ContainerSpec) error {
	if spec.AutoRemove && spec.RestartPolicy.Name != "" && spec.RestartPolicy.Name != warmboot.RestartNo {
		return warmboot.Errorf(warmboot.Invalid, op, "a container that is removed at its end cannot have the restart policy %s; leave out one of the two", spec.RestartPolicy)
	}
	return nil
}

// WaitContainer returns the container as soon as the condition holds. One that is removed when its command ends is not found then.
func (s *Service) WaitContainer(ctx context.Context, ref string, cond WaitFor) (*warmboot.Container, error) {
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	for {
		changed := s.changes.of(c.ID)
		if c, err = s.store.Container(ctx, c.ID); err != nil {
			return nil, err
		}
		if cond == WaitBooted && c.BootMethod != "" {
			return c, nil
		}
		switch c.State {
		case warmboot.ContainerStopped, warmboot.ContainerFailed:
			return c, nil
		case warmboot.ContainerRunning, warmboot.ContainerStopping:
			if cond != WaitStopped {
				return c, nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// defaultGrace is how long a command may take to end by itself where nobody has said.
const defaultGrace = 10 * time.Second

// StopContainer lets the command end within grace and shuts the microVM down; disk and logs stay. It returns the container once it
// is stopped; if the caller goes away before, it is stopped all the same. Stopping a stopped container does nothing.
func (s *Service) StopContainer(ctx context.Context, ref string, grace time.Duration) (*warmboot.Container, error) {
	const op = "stop container"
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	switch c.State {
	case warmboot.ContainerStopped:
		return s.keepStopped(ctx, c)
	case warmboot.ContainerStopping:
		return s.WaitContainer(ctx, string(c.ID), WaitStopped)
	case warmboot.ContainerRunning:
	default:
		return nil, warmboot.Errorf(warmboot.Conflict, op, "container %s is %s, not running", c.Name, c.State)
	}
	if _, err := s.reach(c.HostID); err != nil {
		return nil, err
	}
	// The state is in the store a moment before the task that brought it there is over.
	t, err := s.tasks.after(ctx, s.ctx, c.ID, "stopped")
	if err != nil {
		return nil, err
	}
	h, c, err := s.acquire(ctx, t, func(c *warmboot.Container) error {
		switch c.State {
		case warmboot.ContainerStopped:
			return errStopped
		case warmboot.ContainerRunning:
			c.State, c.StoppedByUser = warmboot.ContainerStopping, true
			return nil
		}
		return warmboot.Errorf(warmboot.Conflict, op, "container %s is %s, not running", c.Name, c.State)
	})
	if errors.Is(err, errStopped) {
		return s.store.FindContainer(ctx, ref)
	}
	if err != nil {
		return nil, err
	}
	if err := s.work.start(func() {
		defer h.end()
		s.stop(h, c, grace)
	}); err != nil {
		h.abandon()
		h.end()
		return nil, err
	}
	stopped, err := s.WaitContainer(ctx, string(c.ID), WaitStopped)
	if c.Spec.AutoRemove && warmboot.CodeOf(err) == warmboot.NotFound {
		c.State = warmboot.ContainerDeleting // the last that it was
		return c, nil
	}
	return stopped, err
}

// errStopped says that a container has stopped by itself before it could be told to.
var errStopped = errors.New("it is stopped")

// keepStopped notes that somebody wants a container stopped that is: its restart policy must not bring it up again.
func (s *Service) keepStopped(ctx context.Context, c *warmboot.Container) (*warmboot.Container, error) {
	if c.StoppedByUser || c.Spec.RestartPolicy.Name == "" || c.Spec.RestartPolicy.Name == warmboot.RestartNo {
		return c, nil
	}
	return s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		if c.State == warmboot.ContainerStopped {
			c.StoppedByUser = true
		}
		return nil
	})
}

// stop carries out what StopContainer has begun. If the host does not answer, it is done when the host is back.
func (s *Service) stop(h *hold, c *warmboot.Container, grace time.Duration) {
	h, sp := h.span("stop container", "host", s.HostName(c.HostID))
	host, err := s.reach(c.HostID)
	defer func() { sp.End(err) }()
	code := -1
	if err == nil {
		code, err = host.StopContainer(h.ctx, h.ref(), grace)
	}
	if h.ctx.Err() != nil || errors.Is(err, ErrUnreachable) {
		h.abandon()
		return
	}
	s.Step("stop: stopped on host")
	end := Ended{Code: code}
	if err != nil {
		end.Reason = err.Error()
	}
	s.recordEnd(h, c, end, false)
}

// StartContainer boots a stopped container again, from its own disk; one that runs or starts already is left alone. That is a cold boot: the memory of a snapshot would not
// fit a disk that has changed since.
func (s *Service) StartContainer(ctx context.Context, ref string) (*warmboot.Container, error) {
	return s.startAgain(ctx, ref, startedAgain, func(c *warmboot.Container) { c.Restarts = 0 })
}

// startedAgain is why the boot of a container that has run before is cold.
const startedAgain = "It was started again, from its own disk"

// startAgain is StartContainer, for whoever asks. note notes who that is.
func (s *Service) startAgain(ctx context.Context, ref, reason string, note func(*warmboot.Container)) (*warmboot.Container, error) {
	const op = "start container"
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	refused := func(c *warmboot.Container) error {
		return warmboot.Errorf(warmboot.Conflict, op, "container %s is %s; only a stopped one can be started", c.Name, c.State)
	}
	switch c.State {
	case warmboot.ContainerRunning, warmboot.ContainerStarting: // whoever asks again, because the answer was lost, has what they want
		return c, nil
	case warmboot.ContainerStopped:
	default:
		return nil, refused(c)
	}
	img, err := s.store.Image(ctx, c.RuntimeImageID)
	if err != nil {
		return nil, err
	}
	if _, err := s.reservePorts(ctx, c.HostID, c.Spec.PortMappings); err != nil {
		return nil, err
	}
	if _, err := s.reach(c.HostID); err != nil { // its disk is there and nowhere else
		return nil, err
	}
	// The state is in the store a moment before the task that brought it there is over.
	t, err := s.tasks.after(ctx, s.ctx, c.ID, "started")
	if err != nil {
		return nil, err
	}
	h, c, err := s.acquire(ctx, t, func(c *warmboot.Container) error {
		if c.State != warmboot.ContainerStopped {
			return refused(c)
		}
		c.State, c.BootMethod, c.BootReason, c.SnapshotID, c.Phases, c.StoppedByUser = warmboot.ContainerStarting, "", reason, "", nil, false
		note(c)
		return nil
	})
	if err != nil {
		return nil, err
	}
	s.Step("start: stored")
	return c, s.bringUp(h, *c, *img, nil)
}

// DeleteContainer removes a container and all that is its. One whose command runs is only removed with force. A create or start
// that is under way is ended, whichever manager is at it. A container on a host that is down can be deleted with force: the host removes
// what it has of it when it is back. Where a condition does not hold it is an error of that, and nothing is ended.
func (s *Service) DeleteContainer(ctx context.Context, ref string, force bool, conditions ...func(*warmboot.Container) error) error {
	const op = "delete container"
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return err
	}
	if !force && (c.State == warmboot.ContainerRunning || c.State == warmboot.ContainerStopping) {
		return warmboot.Errorf(warmboot.Conflict, op, "container %s is %s; stop it first, or delete it with force", c.Name, c.State)
	}
	if !force && !s.canReach(c) {
		return warmboot.Errorf(warmboot.Unavailable, op, "host %s, which has container %s, is down; delete it with force, or when the host is back", s.HostName(c.HostID), c.Name)
	}
	if err := holds(c, conditions); err != nil {
		return err
	}
	t, err := s.tasks.interrupt(s.ctx, c.ID, "deleted")
	if err != nil {
		return err
	}
	h, c, err := s.acquire(ctx, t, func(c *warmboot.Container) error {
		if err := holds(c, conditions); err != nil {
			return err
		}
		c.State = warmboot.ContainerDeleting
		return nil
	})
	if warmboot.CodeOf(err) == warmboot.Conflict {
		return s.deleteElsewhere(ctx, ref, conditions)
	}
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	if err := s.work.start(func() {
		defer h.end()
		done <- s.remove(h, c)
	}); err != nil {
		h.abandon()
		h.end()
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// deleteElsewhere asks the manager that is doing something to a container to delete it instead, by the container's state, and waits
// until it is gone.
func (s *Service) deleteElsewhere(ctx context.Context, ref string, conditions []func(*warmboot.Container) error) error {
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return err
	}
	if c.State != warmboot.ContainerDeleting {
		if c, err = s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
			if err := holds(c, conditions); err != nil {
				return err
			}
			c.State = warmboot.ContainerDeleting
			return nil
		}); err != nil {
			return err
		}
	}
	for {
		changed := s.changes.of(c.ID)
		if _, err := s.store.Container(ctx, c.ID); warmboot.CodeOf(err) == warmboot.NotFound {
			return nil
		} else if err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return errClosing
		}
	}
}

// remove carries out a deletion.
func (s *Service) remove(h *hold, c *warmboot.Container) (err error) {
	h, sp := h.span("delete container", "host", s.HostName(c.HostID))
	defer func() { sp.End(err) }()
	s.Step("delete: stored")
	if err = s.removeFromHost(h, c); err != nil {
		s.log.Error("A container could not be deleted; it is tried again", "container_id", c.ID, "err", err)
		h.abandon()
		return err
	}
	s.Step("delete: removed from host")
	ctx, cancel := h.lastWords()
	defer cancel()
	if _, err = insist(ctx, func() (struct{}, error) { return struct{}{}, s.store.DeleteContainer(ctx, c.ID) }); warmboot.CodeOf(err) == warmboot.NotFound {
		err = nil
	}
	if err != nil {
		s.log.Error("The deletion of a container could not be recorded; it is tried again", "container_id", c.ID, "err", err)
		return err
	}
	s.collectSoon()
	return nil
}

// removeFromHost removes what a host has of a container. A host that does not answer does so when it says hello again: it then has what
// was deleted.
func (s *Service) removeFromHost(h *hold, c *warmboot.Container) error {
	if c.HostID == "" {
		return nil
	}
	host, err := s.reach(c.HostID)
	if err == nil {
		err = host.RemoveContainer(h.ctx, h.ref())
	}
	if errors.Is(err, ErrUnreachable) {
		s.log.Warn("Host "+s.HostName(c.HostID)+" is down; it removes the container when it is back", "container_id", c.ID)
		return nil
	}
	return err
}

// Logs streams a container's output. A container that never ran has none.
func (s *Service) Logs(ctx context.Context, ref string, opts LogOptions) (LogReader, error) {
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	if opts.Follow {
		if c, err = s.WaitContainer(ctx, string(c.ID), WaitStarted); err != nil {
			return nil, err
		}
	}
	host, err := s.reach(c.HostID)
	if err != nil {
		return nil, err
	}
	return host.Logs(ctx, c.ID, opts)
}

// Exec runs a command in a running container.
func (s *Service) Exec(ctx context.Context, ref string, spec ExecSpec) (ExecSession, error) {
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	if c.State != warmboot.ContainerRunning {
		return nil, warmboot.Errorf(warmboot.Conflict, "exec", "container %s is %s, not running", c.Name, c.State)
	}
	if len(spec.Command) == 0 {
		return nil, warmboot.Errorf(warmboot.Invalid, "exec", "a command is needed")
	}
	host, err := s.reach(c.HostID)
	if err != nil {
		return nil, err
	}
	return host.Exec(ctx, c.ID, spec)
}

// hostname is the guest's: the container's name as far as a host name can hold it (RFC 1123).
func hostname(name string) string {
	return strings.Trim(strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(name)), "-")
}
