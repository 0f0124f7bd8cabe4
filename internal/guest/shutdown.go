package guest

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

const (
	defaultGrace = 5 * time.Second
	// lastAnswer is how long the answer to Shutdown may take on its way to the host.
	lastAnswer = 500 * time.Millisecond
)

// shutdown answers the call of that name, once nothing can be lost any more; the machine ends after the answer.
func (g *Guest) shutdown(ctx context.Context, req *guestv1.ShutdownRequest) error {
	// Not ended by a host that gave up waiting: half a shutdown is worth nothing.
	return g.settle(context.WithoutCancel(ctx), time.Duration(req.GraceMillis)*time.Millisecond)
}

// settle stops containers and services and makes the disks whole.
func (g *Guest) settle(ctx context.Context, grace time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.stopContainers(ctx, grace); err != nil {
		g.Log.Warn("containers were not stopped in order", "error", err)
	}
	if !g.Init {
		unix.Sync() // the machine's own init does the rest
		return nil
	}
	if g.dockerd != nil {
		g.dockerd.halt()
		g.containerd.halt()
	}
	_ = unix.Kill(-1, syscall.SIGKILL) // everyone but us, so that nothing keeps the disk busy
	unix.Sync()
	if g.broken != nil {
		return nil // there may be no data disk
	}
	if err := unmountData(); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "shut down", Msg: "the data disk is in use; all data is written, but its file system will need to replay its journal", Err: err}
	}
	return nil
}

// stopContainers ends all containers at once, each within grace.
func (g *Guest) stopContainers(ctx context.Context, grace time.Duration) error {
	const extra = 10 * time.Second // for Docker's own work
	ctx, cancel := context.WithTimeout(ctx, grace+extra)
	defer cancel()
	if !exists(g.docker.socket) {
		return nil
	}
	ids, err := g.docker.running(ctx)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	for _, id := range ids {
		all.Go(func() {
			if err := g.docker.stopContainer(ctx, id, grace); err != nil {
				g.Log.Warn("container was not stopped", "container", id, "error", err)
			}
		})
	}
	all.Wait()
	return nil
}

// afterLastAnswer lets the answer to Shutdown reach the host, which closes the stream (and so ends ctx) when it has it, and then
// ends the machine.
func (g *Guest) afterLastAnswer(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(lastAnswer):
	}
	close(g.powerOff)
}

// endMachine powers the machine off. As a service it asks the machine's init to.
func (g *Guest) endMachine() error {
	if !g.Init {
		code, out, err := g.run(context.Background(), "poweroff")
		if err == nil && code != 0 {
			err = fmt.Errorf("poweroff: exit status %d: %s", code, out)
		}
		return internal("power off", err)
	}
	g.Log.Info("power off")
	unix.Sync()
	return internal("power off", unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF))
}
