package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/guestrpc"
)

// exits are the ends of containers that the control plane is still to be told of. The zero value is ready.
type exits struct {
	mu      sync.Mutex
	pending map[warmboot.ID]controlplane.Ended
	more    chan struct{} // has something when one is added
}

func (e *exits) add(end controlplane.Ended) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pending == nil {
		e.pending = map[warmboot.ID]controlplane.Ended{}
	}
	e.pending[end.Container] = end
	select {
	case e.signal() <- struct{}{}:
	default:
	}
}

// signal makes the channel at its first use. The lock is held.
func (e *exits) signal() chan struct{} {
	if e.more == nil {
		e.more = make(chan struct{}, 1)
	}
	return e.more
}

func (e *exits) added() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.signal()
}

func (e *exits) all() []controlplane.Ended {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []controlplane.Ended
	for _, end := range e.pending {
		all = append(all, end)
	}
	return all
}

// told drops an end that the control plane knows of now, unless there is a newer one.
func (e *exits) told(end controlplane.Ended) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pending[end.Container] == end {
		delete(e.pending, end.Container)
	}
}

// watch waits, in the background, for the command of a container that has been started to end by itself.
func (a *Agent) watch(c *container, vm *microVM) {
	ctx, cancel := context.WithCancel(context.Background())
	c.mu.Lock()
	vm.unwatch = cancel
	c.mu.Unlock()
	go func() {
		end, err := a.waitExit(ctx, vm, c.id)
		if ctx.Err() != nil {
			return // it is stopped or removed, or this process lets go of it
		}
		end.Container = c.id
		if err != nil {
			end.Code, end.Reason = -1, err.Error()
		}
		a.exits.add(end)
	}()
}

// stopWatching is for an end that is no news. The container's lock is held.
func (vm *microVM) stopWatching() {
	if vm.unwatch != nil {
		vm.unwatch()
	}
}

// waitExit returns once the command has ended and is not started again by Docker's restart policy, with its end, or with an
// Unavailable error once its machine has died. If the guest's Docker or the guest agent dies, whoever supervises it starts it again, and
// the waiting goes on; a Docker that was killed has taken the command with it, unless it is set to live-restore.
func (a *Agent) waitExit(ctx context.Context, vm *microVM, id warmboot.ID) (controlplane.Ended, error) {
	const op = "wait for container"
	ctx, stop := whileAlive(ctx, vm.machine)
	defer stop()
	for losses := 1; ; losses++ {
		begin := time.Now()
		end, ended, err := waitOnce(ctx, vm)
		if ended {
			return end, nil
		}
		if err == nil { // Docker has started it again
			losses = 0
			select {
			case <-time.After(againPause):
			case <-ctx.Done():
			}
			continue
		}
		if cerrdefs.IsNotFound(err) {
			return end, dockerError(op, err)
		}
		if time.Since(begin) > steadyWait {
			losses = 1
		}
		if err = a.regain(ctx, vm, id, err); err == nil && losses < maxLosses {
			continue
		}
		switch {
		case errors.Is(context.Cause(ctx), errVMDied):
			return end, warmboot.Errorf(warmboot.Unavailable, op, "its microVM ended unexpectedly; `warmboot start` boots it again from its own disk")
		case ctx.Err() != nil:
			return end, ctx.Err()
		}
		return end, &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "the connection to Docker in its microVM was lost; `warmboot start` boots it again from its own disk", Err: err}
	}
}

const (
	// machineEndDelay is how long after its connections a machine's process may be seen to end.
	machineEndDelay = 2 * time.Second
	// A connection that was lost maxLosses times, each time sooner than after steadyWait, is given up: it may be a hostile guest that
	// cuts it.
	maxLosses  = 5
	steadyWait = time.Minute
	// againPause is between two questions for the end of a command. Docker pauses as long before it starts one again; a hostile guest
	// that answers without end does not.
	againPause = 100 * time.Millisecond
)

// regain waits until a Docker to which the connection was lost, which cause tells, answers again.
func (a *Agent) regain(ctx context.Context, vm *microVM, id warmboot.ID, cause error) error {
	select {
	case <-time.After(machineEndDelay):
	case <-ctx.Done():
		return ctx.Err()
	}
	log := a.Log.With("container_id", id)
	log.Warn(fmt.Sprintf("Container %s: the connection to its Docker was lost", id.Short()), "err", cause)
	begin := time.Now()
	limited, cancel := context.WithTimeout(ctx, a.BootTimeout)
	defer cancel()
	if err := vm.awaitDocker(limited); err != nil {
		return fmt.Errorf("%w; %w", cause, err)
	}
	log.Info(fmt.Sprintf("Container %s: its Docker answers again after %.2fs", id.Short(), time.Since(begin).Seconds()))
	return nil
}

// waitOnce waits for the command's end as long as the connection to Docker lasts. One that Docker starts again has not ended.
func waitOnce(ctx context.Context, vm *microVM) (end controlplane.Ended, ended bool, err error) {
	wait := vm.docker.ContainerWait(ctx, ociContainer, client.ContainerWaitOptions{Condition: dockertypes.WaitConditionNotRunning})
	select {
	case res := <-wait.Result:
		if res.Error != nil {
			return end, false, errors.New(guestrpc.Brief(res.Error.Message))
		}
		end.Code = int(res.StatusCode)
	case err := <-wait.Error:
		return end, false, brief{err} // it may be the whole answer
	case <-ctx.Done():
		return end, false, ctx.Err()
	}
	res, err := vm.docker.ContainerInspect(ctx, ociContainer, client.ContainerInspectOptions{})
	if err != nil { // What happens to the machine meanwhile does not change how the command ended, but perhaps it runs again.
		end.Cut = true
		return end, true, nil
	}
	again := res.Container.State != nil && (res.Container.State.Running || res.Container.State.Restarting)
	return end, !again, nil
}
