package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"warmboot"
	"warmboot/internal/hostnet"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
)

// adoptTimeout is how long a microVM that still runs has to answer, when it is taken over.
const adoptTimeout = 30 * time.Second

// recover takes charge of what an earlier process left below the storage root: containers whose microVM still runs are reconnected,
// those without keep their disk, and everything half made goes.
func (a *Agent) recover(ctx context.Context) error {
	fetching := func(draft string) bool { // what another host had of it need not be fetched again
		_, err := os.Stat(filepath.Join(draft, snapshot.FetchFile))
		return err == nil
	}
	if err := snapshot.RemoveDrafts(a.Root, fetching); err != nil {
		return ioError("remove unfinished snapshots", err)
	}
	entries, err := os.ReadDir(filepath.Join(a.Root, "containers"))
	if err != nil {
		return ioError("read containers", err)
	}
	adopted := map[int]bool{} // VMM processes
	for _, e := range entries {
		id, err := warmboot.ParseID(e.Name())
		if err != nil {
			a.Log.Warn("There is something among the containers that is none; it is left alone", "path", filepath.Join(a.Root, "containers", e.Name()))
			continue
		}
		if pid := a.recoverContainer(ctx, id); pid != 0 {
			adopted[pid] = true
		}
	}
	if err := a.killOrphans(adopted); err != nil {
		return ioError("end VMMs that nobody knows", err)
	}
	if err := a.net.Settle(); err != nil { // only now: what VMMs are in stays as long as they run
		return err
	}
	// Only now: a build's VMM may have had files open there.
	builds := filepath.Join(a.Root, "builds")
	if err := errors.Join(os.RemoveAll(builds), os.Mkdir(builds, 0o711)); err != nil {
		return ioError("remove unfinished builds", err)
	}
	return nil
}

// recoverContainer reads one container's record and reconnects its microVM. It returns the VMM's process id, 0 if none runs.
func (a *Agent) recoverContainer(ctx context.Context, id warmboot.ID) int {
	log := a.Log.With("container_id", id)
	c := &container{id: id, dir: a.containerDir(id)}
	rec, err := readRecord(c.dir)
	if err != nil {
		// It died before its first record was written: nothing runs, and there is nothing to keep.
		if !errors.Is(err, fs.ErrNotExist) {
			log.Warn("A container's record cannot be read", "err", err)
		}
		rec = &record{ID: id}
	}
	c.rec = *rec
	a.add(c)
	if rec.Handle != nil && rec.Slot != nil {
		if err := a.adopt(ctx, c); err == nil {
			return rec.Handle.PID
		} else if warmboot.CodeOf(err) != warmboot.NotFound {
			log.Warn("A container's microVM runs but does not answer; it is ended", "err", err)
		}
	}
	err = errors.Join(os.RemoveAll(c.vmDir()), c.keep(func(r *record) { r.Slot, r.Network, r.Handle = nil, nil, nil }))
	if err != nil {
		log.Error("What a microVM has left could not be removed", "err", err)
	}
	return 0
}

// adopt reconnects to a microVM that runs.
func (a *Agent) adopt(ctx context.Context, c *container) error {
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	d, err := a.driverOf(*c.rec.Handle)
	if err != nil {
		return err
	}
	m, err := d.Recover(ctx, *c.rec.Handle)
	if err != nil {
		return err
	}
	if d != a.Driver {
		a.Log.Info("A container's microVM goes on under another VMM than new ones get; when it is started again, it gets the new one", "container_id", c.id, "vmm", d.Name())
	}
	l, rec := &launch{a: a, c: c}, c.rec
	l.slot, err = a.net.Adopt(*rec.Slot, rec.Handle.PID, *rec.Network, hostnet.Wants{Forwards: rec.Network.Forwards, Egress: rec.Egress, Bandwidth: rec.Bandwidth})
	if err == nil {
		l.undo.Push("free slot", l.slot.Release)
	}
	l.undo.Push("remove VMM's directory", func() error { return os.RemoveAll(c.vmDir()) })
	l.undo.Push("stop machine", func() error { return stopMachine(m) })
	if err != nil {
		return l.end(err)
	}
	l.vm = newMicroVM(m, l.slot)
	if err := l.reconnect(ctx); err != nil {
		return l.end(err)
	}
	if err := l.end(nil); err != nil {
		return err
	}
	if c.rec.Container != nil {
		a.watch(c, c.live)
	}
	return nil
}

// driverOf is the driver that a machine was started with.
func (a *Agent) driverOf(h vmm.Handle) (vmm.Driver, error) {
	for _, d := range []vmm.Driver{a.Driver, a.Other} {
		if d != nil && d.Name() == h.Driver {
			return d, nil
		}
	}
	return nil, warmboot.Errorf(warmboot.Invalid, "take charge of microVM", "it was started with %s, which this server does not know; start the version of warmboot that did", h.Driver)
}

func (l *launch) reconnect(ctx context.Context) error {
	ctx, stop := whileAlive(ctx, l.vm.machine)
	defer stop()
	if err := l.connect(ctx); err != nil {
		return err
	}
	return l.vm.awaitDocker(ctx)
}

// killOrphans ends VMMs that an earlier process started below this storage root and did not live to write down. They are known by
// their user, which is ours alone, and by our storage root in their command line, by working below it, or by a jail that has its name.
func (a *Agent) killOrphans(adopted map[int]bool) error {
	if os.Geteuid() != 0 {
		return nil // without users of their own, VMMs cannot be told from the operator's other processes
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, p := range procs {
		pid, _ := strconv.Atoi(filepath.Base(p))
		info, err := os.Stat(p)
		if err != nil || adopted[pid] {
			continue // it has just ended, or is ours already
		}
		uid := info.Sys().(*syscall.Stat_t).Uid
		if uid <= a.OwnerBase || uid > a.OwnerBase+hostnet.MaxSlots {
			continue
		}
		args, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil {
			continue
		}
		at, _ := os.Readlink(filepath.Join(p, "cwd"))
		if !strings.Contains(string(args), a.Root+"/") && !strings.HasPrefix(at, a.Root+"/") && !jailedBelow(p, a.Root) {
			continue
		}
		a.Log.Warn("A VMM that nobody knows is ended", "pid", pid)
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
	}
	return nil
}

// jailedBelow reports whether a process is in a jail of a machine whose directory lies below root. In a jail nothing else tells: the driver gives the
// machine's directory as the source of the file system that the jail lies in.
func jailedBelow(proc, root string) bool {
	mounts, err := os.ReadFile(filepath.Join(proc, "mountinfo"))
	if err != nil {
		return false // it has just ended
	}
	for line := range strings.Lines(string(mounts)) {
		if _, fs, _ := strings.Cut(line, " - "); strings.HasPrefix(fs, "tmpfs "+mangle.Replace(root)+"/") {
			return true
		}
	}
	return false
}

// mangle is how the kernel writes names in mountinfo.
var mangle = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`, "#", `\043`)
