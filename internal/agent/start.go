package agent

import (
	"context"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// neverStarted is what Docker says of when a container was started that never was.
const neverStarted = "0001-01-01T00:00:00Z"

// createOnce creates the container. Its answer may be lost, see once.
func createOnce(ctx context.Context, d *dockerClient, opts client.ContainerCreateOptions, step func(string)) error {
	create := func() error { _, err := d.ContainerCreate(ctx, opts); return err }
	return once(ctx, d, create, func(c *dockertypes.InspectResponse) bool { return c != nil }, step)
}

// startOnce starts the container, which Docker says was started last at before. Its answer may be lost, see once; a command must not run twice.
func startOnce(ctx context.Context, d *dockerClient, before string, step func(string)) error {
	start := func() error {
		_, err := d.ContainerStart(ctx, ociContainer, client.ContainerStartOptions{})
		return err
	}
	return once(ctx, d, start, func(c *dockertypes.InspectResponse) bool {
		return c != nil && c.State != nil && c.State.StartedAt != before
	}, step)
}

// onceAttempts is how often Docker is asked for something, if the connection to it is lost meanwhile.
const onceAttempts = 3

// once asks Docker for what it is to do to the container once. A connection that is lost meanwhile, as on a host with too much to do, says nothing of whether
// Docker has done it: done tells that from what Docker then knows of the container, nil if it knows of none.
func once(ctx context.Context, d *dockerClient, ask func() error, done func(*dockertypes.InspectResponse) bool, step func(string)) error {
	for attempt := 1; ; attempt++ {
		err := ask()
		lost := err != nil && brokeOff(err)
		// Docker may have been at it still when it was asked what it had done: then it refuses to do it again.
		if err == nil || !lost && attempt == 1 || ctx.Err() != nil {
			return err
		}
		if lost {
			step(fmt.Sprintf("The connection to Docker was lost (%s); it is asked what it has done", brief{err}))
		}
		var known *dockertypes.InspectResponse
		res, askErr := d.ContainerInspect(ctx, ociContainer, client.ContainerInspectOptions{})
		switch {
		case askErr == nil:
			known = &res.Container
		case !cerrdefs.IsNotFound(askErr):
			return fmt.Errorf("%w; %w", err, askErr)
		}
		if done(known) {
			return nil
		}
		if !lost || attempt == onceAttempts {
			return err
		}
	}
}
