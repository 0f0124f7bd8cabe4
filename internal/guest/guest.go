package guest

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"warmboot"
)

// Config is what a Guest needs.
type Config struct {
	Version string // reported by Health
	Log     *slog.Logger
	// Init says that we are PID 1 of the machine, so everything in it is ours to set up and to supervise.
	Init bool
	// Root is put before every path. It is empty except in tests.
	Root string
}

// Guest is the guest agent.
type Guest struct {
	Config
	docker    *docker
	processes *processes
	nic       *nic
	registry  *forwarder

	mu         sync.Mutex // identity, quiesce and shutdown happen one at a time
	quiesced   bool
	engine     *engineMemory // where dockerd keeps its engine id; nil before Quiesce
	gateway    string        // of the latest Reidentify
	containerd *service
	dockerd    *service

	broken error // why the machine cannot run Docker; set before the API is served
	// staleJournal says that the machine has another machine-id than its init's journal knows.
	staleJournal atomic.Bool
	powerOff     chan struct{}
	offOnce      sync.Once
}

// New makes a guest agent; Run does everything.
func New(c Config) (*Guest, error) {
	nic, err := openNIC()
	if err != nil {
		return nil, internal("start guest agent", err)
	}
	g := &Guest{Config: c, nic: nic, processes: newProcesses(c.Init), powerOff: make(chan struct{})}
	g.docker = newDocker(g.path(dockerSocket))
	g.registry = newForwarder(c.Log)
	return g, nil
}

func (g *Guest) path(p string) string {
	if g.Root == "" {
		return p
	}
	return filepath.Join(g.Root, p)
}

// Run sets the machine up, or what another init has left to us, and serves the guest API until ctx ends or a host asks for shutdown.
// As PID 1 it powers the machine off then and does not return.
func (g *Guest) Run(ctx context.Context) error {
	if g.Init {
		_ = os.Setenv("PATH", strings.TrimPrefix(searchPath, "PATH=")) // the kernel gives none
		go g.processes.reap()
		if err := g.boot(ctx); err != nil {
			// The API is served all the same: it is how the host learns why.
			g.broken = err
			g.Log.Error("the machine cannot run Docker", "error", err)
		} else {
			g.startServices()
		}
	} else {
		if err := g.join(ctx); err != nil {
			g.broken = err // likewise
			g.Log.Error("the machine cannot run Docker", "error", err)
		}
		if err := notifyReady(); err != nil {
			g.Log.Error("the init waits for us in vain", "error", err)
		}
	}
	served := make(chan error, 1)
	go func() { served <- g.serve(ctx) }()
	select {
	case err := <-served:
		if !g.Init {
			return err
		}
		g.Log.Error("no way to reach a host", "error", err)
		<-ctx.Done()
	case <-ctx.Done():
	case <-g.powerOff:
		err := g.endMachine()
		if err == nil {
			<-ctx.Done() // the init ends us when it is our turn
		}
		return err
	}
	if !g.Init {
		return nil
	}
	if err := g.settle(context.WithoutCancel(ctx), defaultGrace); err != nil {
		g.Log.Error("the machine did not settle", "error", err)
	}
	return g.endMachine()
}

// internal makes an Internal error of a system call or file operation that should have worked.
func internal(op string, err error) error {
	if err == nil {
		return nil
	}
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}
