package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/vmm"
)

// container is what the host has of one container: a directory always, a microVM while it runs. The control plane does
// one thing at a time to a container; reading its logs and running commands in it may go on beside that.
type container struct {
	id  warmboot.ID
	dir string

	mu   sync.Mutex
	rec  record
	live *microVM // nil while no microVM runs
}

// dataDisk is the machine's writable disk, whatever its format.
func (c *container) dataDisk() string { return filepath.Join(c.dir, "data.disk") }

// rawDisk is the disk of a container whose dataDisk was converted for another VMM.
func (c *container) rawDisk() string { return filepath.Join(c.dir, "data.raw") }

// vmDir is where the VMM has its own files.
func (c *container) vmDir() string { return filepath.Join(c.dir, "vm") }

func (c *container) running() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.live != nil
}

// tell is what the control plane is told of a container.
func (c *container) tell(id warmboot.ID) controlplane.HostContainer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return controlplane.HostContainer{ID: id, Running: c.live != nil, Generation: c.rec.Generation, Container: c.rec.Container}
}

// vm returns the running microVM, or a Conflict if there is none.
func (c *container) vm() (*microVM, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		return nil, warmboot.Errorf(warmboot.Conflict, "reach container", "container %s has no running microVM", c.id)
	}
	return c.live, nil
}

// disconnect closes the connections to a microVM and leaves it running.
func (c *container) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live != nil {
		c.live.stopWatching()
		c.live.hangUp()
		c.live = nil
	}
}

// endVM ends the microVM, if one runs, and keeps the disk.
func (c *container) endVM() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live == nil {
		return nil
	}
	c.live.stopWatching()
	err := c.live.undo.Unwind()
	c.live = nil
	c.rec.Slot, c.rec.Network, c.rec.Handle = nil, nil, nil
	return errors.Join(err, c.rec.write(c.dir))
}

// keep changes the container's record, in memory and on disk.
func (c *container) keep(change func(*record)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	change(&c.rec)
	return ioError("keep record of container", c.rec.write(c.dir))
}

// disk is the data disk, zero if there is none yet, and the engine id of the Docker on it, empty where Docker is to make its own.
func (c *container) disk() (vmm.Disk, string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Disk, c.rec.EngineID
}

// setDisk notes the data disk. The record is written with the machine's handle, a moment later.
func (c *container) setDisk(d vmm.Disk) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rec.Disk = d
}

// basedOn is the path of the snapshot that the data disk lies over, "" if none.
func (c *container) basedOn() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.BasedOn
}

// RemoveContainer ends the machine at once and removes everything of the container. Idempotent.
func (a *Agent) RemoveContainer(ctx context.Context, ref controlplane.ContainerRef) error {
	_, done, err := a.command(ctx, ref)
	if err != nil {
		return err
	}
	defer done()
	c, err := a.find(ref.ID)
	if warmboot.CodeOf(err) == warmboot.NotFound {
		return nil
	}
	if err := c.endVM(); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "remove container", Err: err}
	}
	if err := os.RemoveAll(c.dir); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "remove container", Err: err}
	}
	a.drop(c)
	return nil
}
