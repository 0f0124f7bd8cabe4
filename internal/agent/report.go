package agent

import (
	"context"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
)

// The waits before something is told again that could not be.
const (
	reportRetry    = 200 * time.Millisecond
	reportRetryMax = 5 * time.Second
)

// Run tells the control plane that this host is here, that it lives, and which containers have ended, until ctx ends.
func (a *Agent) Run(ctx context.Context, r controlplane.Reports) {
	var all sync.WaitGroup
	all.Go(func() { a.beat(ctx, r) })
	all.Go(func() { a.reportExits(ctx, r) })
	all.Wait()
}

// SayHello introduces this host.
func (a *Agent) SayHello(ctx context.Context, r controlplane.Reports) error {
	hello, err := a.Hello(ctx)
	if err != nil {
		return err
	}
	return r.HostHello(ctx, hello)
}

// beat gives signs of life, with what has changed. The control plane asks for an introduction when it does not know the host, or has
// taken it for dead.
func (a *Agent) beat(ctx context.Context, r controlplane.Reports) {
	var told warmboot.HostInventory
	silent := false
	for {
		err := a.beatOnce(ctx, r, &told)
		if warmboot.CodeOf(err) == warmboot.NotFound {
			err = a.SayHello(ctx, r)
		}
		if ctx.Err() != nil {
			return
		}
		if failed := err != nil; failed != silent { // said once, and once when it is over
			silent = failed
			if failed {
				a.Log.Warn("The control plane cannot be told that this host lives; it is tried again and again, and containers go on running", "err", err)
			} else {
				a.Log.Info("The control plane answers again")
			}
		}
		select {
		case <-time.After(a.Beat):
		case <-ctx.Done():
			return
		}
	}
}

func (a *Agent) beatOnce(ctx context.Context, r controlplane.Reports, told *warmboot.HostInventory) error {
	now, err := a.Inventory(ctx)
	if err != nil {
		return err
	}
	var news *warmboot.HostInventory
	if worthTelling(*told, now) {
		news = &now
	}
	if err := r.HostBeat(ctx, a.ID, news); err != nil {
		return err
	}
	if news != nil {
		*told = now
	}
	return nil
}

// reportExits tells which containers have ended, each until the control plane has taken note of it.
func (a *Agent) reportExits(ctx context.Context, r controlplane.Reports) {
	wait := time.Duration(0) // nothing failed
	for {
		if wait == 0 {
			select {
			case <-a.exits.added():
			case <-ctx.Done():
				return
			}
		} else {
			select {
			case <-a.exits.added():
			case <-time.After(wait):
			case <-ctx.Done():
				return
			}
		}
		failed := false
		for _, end := range a.exits.all() {
			if err := r.ContainerEnded(ctx, a.ID, end); err != nil {
				failed = true
				a.Log.Debug("The control plane cannot take note of the end of a container yet", "container_id", end.Container, "err", err)
				continue
			}
			a.exits.told(end)
		}
		switch {
		case !failed:
			wait = 0
		case wait == 0:
			wait = reportRetry
		default:
			wait = min(2*wait, reportRetryMax)
		}
	}
}
