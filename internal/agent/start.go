package agent

import (
	"context"
	"fmt"

	"github.com/moby/moby/client"
)

// startAttempts is how often Docker is asked to start a container, if the connection to it is lost meanwhile.
const startAttempts = 3

// neverStarted is what Docker says of when a container was started that never was.
const neverStarted = "0001-01-01T00:00:00Z"

// startOnce starts the container, which Docker says was started last at before. A connection that is lost meanwhile, as on a host with too much to do,
// says nothing of whether Docker has started it; it is asked, because a command must not run twice.
func startOnce(ctx context.Context, d *dockerClient, before string, step func(string)) error {
	for attempt := 1; ; attempt++ {
		_, err := d.ContainerStart(ctx, ociContainer, client.ContainerStartOptions{})
		if err == nil || !brokeOff(err) || ctx.Err() != nil {
			return err
		}
		step(fmt.Sprintf("The connection to Docker was lost (%s); it is asked whether it has started the container", brief{err}))
		res, askErr := d.ContainerInspect(ctx, ociContainer, client.ContainerInspectOptions{})
		if askErr != nil {
			return fmt.Errorf("%w; %w", err, askErr)
		}
		if s := res.Container.State; s != nil && s.StartedAt != before {
			return nil
		}
		if attempt == startAttempts {
			return err
		}
	}
}
