package controlplane

import (
	"context"
	"errors"
	"fmt"

	"warmboot"
)

// ContainerChange is what is to change of a container; nil leaves it as it is.
type ContainerChange struct {
	Name          *string
	RestartPolicy *warmboot.RestartPolicy
	// These shape the microVM, and so can change only while there is none.
	CPULimit      *float64
	MemoryLimitMB *int
	PortMappings  *[]warmboot.PortMapping // host port 0: a free one is chosen
}

func (ch ContainerChange) shapesMachine() bool {
	return ch.CPULimit != nil || ch.MemoryLimitMB != nil || ch.PortMappings != nil
}

// apply makes the change.
func (ch ContainerChange) apply(c *warmboot.Container) {
	set(&c.Name, ch.Name)
	set(&c.Spec.RestartPolicy, ch.RestartPolicy)
	set(&c.Spec.CPULimit, ch.CPULimit)
	set(&c.Spec.MemoryLimitMB, ch.MemoryLimitMB)
	set(&c.Spec.PortMappings, ch.PortMappings)
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

const opUpdate = "update container"

// UpdateContainer changes what can be changed of a container, if the conditions hold. The name and the restart policy are the new ones at
// once; in the microVM the host name follows at the next start. The size of the microVM and its published ports are those that it has booted
// with, so they can be changed only of a stopped container, and the next start takes them.
func (s *Service) UpdateContainer(ctx context.Context, ref string, change ContainerChange, conditions ...func(*warmboot.Container) error) (*warmboot.Container, error) {
	c, err := s.store.FindContainer(ctx, ref)
	if err != nil {
		return nil, err
	}
	if err := validateChange(change); err != nil {
		return nil, err
	}
	if change.PortMappings != nil {
		ports, err := s.reservePorts(ctx, c.HostID, *change.PortMappings)
		if err != nil {
			return nil, err
		}
		change.PortMappings = &ports
	}
	was := c.Spec.RestartPolicy
	apply := func(c *warmboot.Container) error {
		if err := holds(c, conditions); err != nil {
			return err
		}
		if err := changeable(c, change); err != nil {
			return err
		}
		was = c.Spec.RestartPolicy
		change.apply(c)
		return notBoth("update container", c.Spec)
	}
	if change.RestartPolicy == nil || c.State != warmboot.ContainerRunning {
		return s.store.UpdateContainer(ctx, c.ID, apply)
	}
	// While the command runs, the Docker in its microVM follows the policy, and has to be told.
	t, err := s.tasks.after(ctx, s.ctx, c.ID, "updated")
	if err != nil {
		return nil, err
	}
	h, c, err := s.acquire(ctx, t, apply)
	if err != nil {
		return nil, err
	}
	defer h.end()
	err = s.tellPolicy(h, c)
	after, releaseErr := h.release(func(c *warmboot.Container) error {
		if err != nil {
			c.Spec.RestartPolicy = was
		}
		return nil
	})
	return after, errors.Join(err, releaseErr)
}

// tellPolicy makes the Docker of a container that runs follow its restart policy.
func (s *Service) tellPolicy(h *hold, c *warmboot.Container) error {
	if c.State != warmboot.ContainerRunning {
		return nil // it has ended meanwhile; its next start takes the policy along
	}
	host, err := s.reach(c.HostID)
	if err != nil {
		return err
	}
	return host.UpdateContainer(h.ctx, *c) // whoever asked may go away: what was begun is done
}

func validateChange(change ContainerChange) error {
	if change.Name != nil {
		if err := warmboot.ValidateContainerName(*change.Name); err != nil {
			return err
		}
	}
	if change.RestartPolicy != nil {
		return change.RestartPolicy.Validate()
	}
	return nil
}

// changeable reports a Conflict if a container is in a state that forbids a change.
func changeable(c *warmboot.Container, change ContainerChange) error {
	switch {
	case c.State == warmboot.ContainerDeleting:
		return warmboot.Errorf(warmboot.Conflict, opUpdate, "container %s is being deleted", c.Name)
	case change.shapesMachine() && c.State != warmboot.ContainerStopped:
		return warmboot.Errorf(warmboot.Conflict, opUpdate, "container %s is %s; CPUs, memory and ports are those that its microVM has booted with: stop it, change them, and start it again", c.Name, c.State)
	}
	return nil
}

// holds reports the error of the first condition that does not hold.
func holds[E any](entity E, conditions []func(E) error) error {
	for _, condition := range conditions {
		if err := condition(entity); err != nil {
			return err
		}
	}
	return nil
}

// UpdateImage gives a runtime image another name, if the conditions hold; nil leaves it its own.
func (s *Service) UpdateImage(ctx context.Context, ref string, name *string, conditions ...func(*warmboot.Image) error) (*warmboot.Image, error) {
	img, err := s.Image(ctx, ref)
	if err != nil {
		return nil, err
	}
	was := img.Name
	if img, err = s.store.UpdateImage(ctx, img.ID, func(img *warmboot.Image) error {
		if err := holds(img, conditions); err != nil {
			return err
		}
		set(&img.Name, name)
		return nil
	}); err != nil {
		return nil, err
	}
	if img.Name != was {
		s.log.Info(fmt.Sprintf("Runtime image %s is called %s now", was, img.Name), "image_id", img.ID)
	}
	return img, nil
}
