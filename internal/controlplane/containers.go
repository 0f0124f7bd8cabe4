package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	petname "github.com/dustinkirkland/golang-petname"

	"warmboot"
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
	ColdBoot       bool
}

// CreateContainer stores a container and starts to bring it up. It returns at once; WaitContainer tells when it runs.
func (s *Service) CreateContainer(ctx context.Context, in CreateContainer) (*warmboot.Container, error) {
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
	if in.Spec.PortMappings, err = s.host.ReservePorts(ctx, in.Spec.PortMappings); err != nil {
		return nil, err
	}
	c := &warmboot.Container{
		ID: warmboot.NewID(), Name: in.Name, Image: in.Image, RuntimeImageID: img.ID, Spec: in.Spec,
		State: warmboot.ContainerCreating, CreatedAt: time.Now().UTC(),
	}
	tctx, end, err := s.tasks.begin(s.ctx, c.ID, "created")
	if err != nil {
		return nil, err
	}
	if err := s.store.CreateContainer(ctx, c); err != nil {
		end()
		return nil, err
	}
	coldReason := ""
	if in.ColdBoot {
		coldReason = "A cold boot was asked for"
	}
	return c, s.bringUp(tctx, end, *c, *img, in.Auth, coldReason)
}

func (s *Service) runtimeImage(ctx context.Context, id warmboot.ID) (*warmboot.Image, error) {
	if id == "" {
		return s.newestImage(ctx)
	}
	return s.store.Image(ctx, id)
}

// bringUp boots and starts a container that is in state creating or starting, in the background, as the task that ctx and end
// are of.
func (s *Service) bringUp(ctx context.Context, end func(), c warmboot.Container, img warmboot.Image, auth *RegistryAuth, coldReason string) error {
	err := s.work.start(func() {
		err := s.provision(ctx, c, img, auth, coldReason)
		if err != nil {
			s.provisionFailed(ctx, c, err)
		}
		end()
		if err == nil {
			s.watch(c.ID)
		}
		s.changes.notify(c.ID)
	})
	if err != nil {
		end()
	}
	return err
}

// provision takes a container from creating or starting to running.
func (s *Service) provision(ctx context.Context, c warmboot.Container, img warmboot.Image, auth *RegistryAuth, coldReason string) error {
	start := time.Now()
	vmID := "vm-" + warmboot.NewID().Short()
	res, err := s.boot(ctx, MachineSpec{Container: c.ID, VMID: vmID, Hostname: hostname(c.Name), Image: img, Spec: c.Spec}, coldReason)
	if err != nil {
		return err
	}
	booted, err := s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		c.BootMethod, c.BootReason, c.VMID, c.Phases = res.method, res.reason, vmID, res.phases
		c.SnapshotID = ""
		if res.snap != nil {
			c.SnapshotID = res.snap.ID
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.changes.notify(c.ID)
	phases, err := s.host.StartContainer(ctx, *booted, auth, func(step string) {
		s.log.Debug(fmt.Sprintf("Container %s: %s", c.ID.Short(), step), "container_id", c.ID)
	})
	if err != nil {
		return err
	}
	if _, err := s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		now := time.Now().UTC()
		c.State, c.StartedAt, c.FinishedAt, c.ExitCode, c.Error = warmboot.ContainerRunning, &now, nil, nil, ""
		c.Phases = append(c.Phases, phases...)
		return nil
	}); err != nil {
		return err
	}
	took, saved, gain := time.Since(start), "", time.Duration(0)
	if res.method == warmboot.BootWarm {
		gain = s.cold.saved(img.ID, res.snap, res.took)
		saved = fmt.Sprintf(" (saved ~%.0fs)", gain.Seconds())
	}
	s.observer.Start(res.method, took, gain, phases)
	s.log.Info(fmt.Sprintf("Container %s fully provisioned in %.2fs via %s boot%s", c.ID.Short(), took.Seconds(), res.method, saved), "container_id", c.ID)
	return nil
}

// provisionFailed releases what a failed create or start has on the host and says why in the row. A start that failed keeps its
// disk: the container is stopped again, not lost.
func (s *Service) provisionFailed(ctx context.Context, c warmboot.Container, cause error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	log := s.log.With("container_id", c.ID)
	s.observer.StartFailed(warmboot.CodeOf(cause))
	state, text := warmboot.ContainerFailed, cause.Error()
	if errors.Is(cause, context.Canceled) {
		text = "warmboot was asked to end before the container was up; create it again"
	}
	var err error
	if c.State == warmboot.ContainerStarting {
		state = warmboot.ContainerStopped
		_, err = s.host.StopContainer(ctx, c.ID, 0)
	} else {
		err = s.host.RemoveContainer(ctx, c.ID)
	}
	if err != nil {
		log.Error("What a failed container has on the host could not be released", "err", err)
	}
	log.Error(fmt.Sprintf("Container %s could not be started", c.ID.Short()), "err", cause)
	if _, err := s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		now := time.Now().UTC()
		c.State, c.Error, c.FinishedAt, c.VMID = state, text, &now, ""
		return nil
	}); err != nil && warmboot.CodeOf(err) != warmboot.Conflict && warmboot.CodeOf(err) != warmboot.NotFound {
		log.Error("The failure could not be recorded", "err", err)
	}
}

// watch waits in the background for a running container's command to end.
func (s *Service) watch(id warmboot.ID) {
	// While the Service closes nobody watches; the next Start does.
	_ = s.work.start(func() {
		code, err := s.host.WaitExit(s.ctx, id)
		if s.ctx.Err() != nil {
			return
		}
		ctx, end, busy := s.tasks.begin(s.ctx, id, "cleaned up after its end")
		if busy != nil {
			return // whoever stops or deletes it takes care of the rest
		}
		defer s.changes.notify(id)
		defer end()
		text := ""
		if err != nil {
			code, text = -1, err.Error()
		}
		if _, stopErr := s.host.StopContainer(ctx, id, 0); stopErr != nil {
			s.log.Error("The microVM of a container that has ended could not be released", "container_id", id, "err", stopErr)
		}
		s.recordEnd(ctx, id, code, text)
	})
}

// recordEnd moves a container to stopped. code is -1 if it is not known.
func (s *Service) recordEnd(ctx context.Context, id warmboot.ID, code int, text string) {
	_, err := s.store.UpdateContainer(ctx, id, func(c *warmboot.Container) error {
		now := time.Now().UTC()
		c.State, c.FinishedAt, c.VMID, c.Error, c.ExitCode = warmboot.ContainerStopped, &now, "", text, nil
		if code >= 0 {
			c.ExitCode = &code
		}
		return nil
	})
	if err != nil {
		s.log.Error("The end of a container could not be recorded", "container_id", id, "err", err)
		return
	}
	s.log.Info(fmt.Sprintf("Container %s ended", id.Short()), "container_id", id, "exit_code", code, "reason", text)
}

// Containers lists containers, newest first.
func (s *Service) Containers(ctx context.Context, f warmboot.ContainerFilter) ([]*warmboot.Container, error) {
	return s.store.Containers(ctx, f)
}

// Container finds a container by id, name, or the beginning of its id.
func (s *Service) Container(ctx context.Context, ref string) (*warmboot.Container, error) {
	return s.store.FindContainer(ctx, ref)
}

// WaitContainer returns the container as soon as the condition holds.
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
		return c, nil
	case warmboot.ContainerStopping:
		return s.WaitContainer(ctx, string(c.ID), WaitStopped)
	case warmboot.ContainerRunning:
	default:
		return nil, warmboot.Errorf(warmboot.Conflict, op, "container %s is %s, not running", c.Name, c.State)
	}
	// The state is in the store a moment before the task that brought it there is over.
	tctx, end, err := s.tasks.after(ctx, s.ctx, c.ID, "stopped")
	if err != nil {
		return nil, err
	}
	ended := false
	if _, err := s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		if ended = c.State == warmboot.ContainerStopped; ended {
			return nil
		}
		if c.State != warmboot.ContainerRunning {
			return warmboot.Errorf(warmboot.Conflict, op, "container %s is %s, not running", c.Name, c.State)
		}
		c.State = warmboot.ContainerStopping
		return nil
	}); err != nil || ended {
		end()
		if err != nil {
			return nil, err
		}
		return s.store.Container(ctx, c.ID)
	}
	s.changes.notify(c.ID)
	if err := s.work.start(func() {
		code, err := s.host.StopContainer(tctx, c.ID, grace)
		if tctx.Err() == nil {
			text := ""
			if err != nil {
				text = err.Error()
			}
			s.recordEnd(tctx, c.ID, code, text)
		}
		end()
		s.changes.notify(c.ID)
	}); err != nil {
		end()
		return nil, err
	}
	return s.WaitContainer(ctx, string(c.ID), WaitStopped)
}

// StartContainer boots a stopped container again, from its own disk. That is a cold boot: the memory of a snapshot would not
// fit a disk that has changed since.
func (s *Service) StartContainer(ctx context.Context, ref string) (*warmboot.Container, error) {
	const op = "start container"
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	switch c.State {
	case warmboot.ContainerRunning:
		return c, nil
	case warmboot.ContainerStopped:
	default:
		return nil, warmboot.Errorf(warmboot.Conflict, op, "container %s is %s; only a stopped one can be started", c.Name, c.State)
	}
	img, err := s.store.Image(ctx, c.RuntimeImageID)
	if err != nil {
		return nil, err
	}
	if _, err := s.host.ReservePorts(ctx, c.Spec.PortMappings); err != nil {
		return nil, err
	}
	// The state is in the store a moment before the task that brought it there is over.
	tctx, end, err := s.tasks.after(ctx, s.ctx, c.ID, "started")
	if err != nil {
		return nil, err
	}
	c, err = s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		if c.State != warmboot.ContainerStopped {
			return warmboot.Errorf(warmboot.Conflict, op, "container %s is %s; only a stopped one can be started", c.Name, c.State)
		}
		c.State, c.BootMethod, c.BootReason, c.SnapshotID, c.Phases = warmboot.ContainerStarting, "", "", "", nil
		return nil
	})
	if err != nil {
		end()
		return nil, err
	}
	s.changes.notify(c.ID)
	return c, s.bringUp(tctx, end, *c, *img, nil, "It was started again, from its own disk")
}

// DeleteContainer removes a container and all that is its. One whose command runs is only removed with force. A create or start
// that is under way is ended.
func (s *Service) DeleteContainer(ctx context.Context, ref string, force bool) error {
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return err
	}
	if !force && (c.State == warmboot.ContainerRunning || c.State == warmboot.ContainerStopping) {
		return warmboot.Errorf(warmboot.Conflict, "delete container", "container %s is %s; stop it first, or delete it with force", c.Name, c.State)
	}
	tctx, end, err := s.tasks.interrupt(s.ctx, c.ID, "deleted")
	if err != nil {
		return err
	}
	if _, err := s.store.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		c.State = warmboot.ContainerDeleting
		return nil
	}); err != nil {
		end()
		return err
	}
	s.changes.notify(c.ID)
	done := make(chan error, 1)
	if err := s.work.start(func() {
		err := s.host.RemoveContainer(tctx, c.ID)
		if err == nil {
			err = s.store.DeleteContainer(tctx, c.ID)
		}
		if err != nil {
			s.log.Error("A container could not be deleted; it will be tried again at the next start", "container_id", c.ID, "err", err)
		}
		end()
		s.changes.notify(c.ID)
		s.collect(s.ctx) // not tctx, which has ended with the task
		done <- err
	}); err != nil {
		end()
		return err
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
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
	return s.host.Logs(ctx, c.ID, opts)
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
	return s.host.Exec(ctx, c.ID, spec)
}

// hostname is the guest's: the container's name as far as a host name can hold it (RFC 1123).
func hostname(name string) string {
	return strings.Trim(strings.NewReplacer("_", "-", ".", "-").Replace(strings.ToLower(name)), "-")
}
