package agent

import (
	"context"
	"errors"
	"time"

	"github.com/moby/moby/client"
)

// A pull may take as long as it likes, and so may Docker with a large image. So what is done in a guest after its boot has no limit of its own. But a guest
// can hang, and its Docker can, and then nothing would ever end.

// errSilent is the cause of a context that whileAnswering ended.
var errSilent = errors.New("Docker in the microVM does not answer any more")

// askEvery is how long after Docker has answered it is asked again.
const askEvery = 10 * time.Second

// whileAnswering derives a context that ends, with errSilent as its cause, once ask, which waits for any answer from the guest of process pid, has had none
// for limit, time in which the machine had no processor not counted. An error is an answer too: what else waits for the guest learns of it by itself.
func whileAnswering(ctx context.Context, pid int, limit time.Duration, ask func(context.Context) error) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		for {
			select {
			case <-time.After(min(askEvery, limit)):
			case <-ctx.Done():
				return
			}
			waiting, stop := patience(ctx, pid, time.Now(), starved(pid), limit)
			err := ask(waiting)
			silent := err != nil && errors.Is(context.Cause(waiting), context.DeadlineExceeded)
			stop()
			if silent {
				cancel(errSilent)
				return
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}

// ping asks the guest's Docker for nothing but an answer.
func (vm *microVM) ping(ctx context.Context) error {
	_, err := vm.docker.Ping(ctx, client.PingOptions{})
	return err
}
