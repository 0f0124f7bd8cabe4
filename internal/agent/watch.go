package agent

import (
	"context"
	"sync"
	"time"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"warmboot"
	"warmboot/internal/controlplane"
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
		code, err := waitExit(ctx, vm)
		if ctx.Err() != nil {
			return // it is stopped or removed, or this process lets go of it
		}
		end := controlplane.Ended{Container: c.id, Code: code}
		if err != nil {
			end.Reason = err.Error()
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

// waitExit returns once the command has ended and is not started again by Docker's restart policy, with its exit code, or with an
// Unavailable error once its machine has died.
func waitExit(ctx context.Context, vm *microVM) (int, error) {
	for {
		code, err := waitNotRunning(ctx, vm)
		if err != nil {
			return code, err
		}
		res, err := vm.docker.ContainerInspect(ctx, ociContainer, client.ContainerInspectOptions{})
		if err != nil || res.Container.State == nil || !res.Container.State.Running && !res.Container.State.Restarting {
			return code, nil // what happens to the machine meanwhile does not change how the command ended
		}
	}
}

func waitNotRunning(ctx context.Context, vm *microVM) (int, error) {
	const op = "wait for container"
	wait := vm.docker.ContainerWait(ctx, ociContainer, client.ContainerWaitOptions{Condition: dockertypes.WaitConditionNotRunning})
	select {
	case res := <-wait.Result:
		if res.Error != nil {
			return -1, warmboot.Errorf(warmboot.Internal, op, "%s", res.Error.Message)
		}
		return int(res.StatusCode), nil
	case err := <-wait.Error:
		if ctx.Err() != nil {
			return -1, ctx.Err()
		}
		select {
		case <-vm.machine.Done(): // the machine's end cuts the connection a moment before it is seen itself
		case <-time.After(machineEndDelay):
			return -1, &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "the connection to its microVM was lost", Err: err}
		case <-ctx.Done():
			return -1, ctx.Err()
		}
	case <-vm.machine.Done():
	case <-ctx.Done():
		return -1, ctx.Err()
	}
	return -1, warmboot.Errorf(warmboot.Unavailable, op, "its microVM ended unexpectedly; `warmboot start` boots it again from its own disk")
}

// machineEndDelay is how long after its connections a machine's process may be seen to end.
const machineEndDelay = 2 * time.Second
