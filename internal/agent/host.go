package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/durable"
	"warmboot/internal/snapshot"
)

// identity is ROOT/host.json: what this host is called as long as its storage root exists.
type identity struct {
	ID   warmboot.ID `json:"id"`
	Name string      `json:"name"`
}

// identify finds out who this host is, or decides it and writes it down.
func (a *Agent) identify() error {
	const op = "identify host"
	path := filepath.Join(a.Root, "host.json")
	var known identity
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return ioError(op, err)
	default:
		if err := json.Unmarshal(text, &known); err != nil {
			return warmboot.Errorf(warmboot.Corrupt, op, "%s cannot be read: %w; it holds the id by which this host is known, see `warmboot host ls`", path, err)
		}
	}
	want := identity{ID: a.ID, Name: a.Name}
	if want.ID == "" {
		want.ID = known.ID
	}
	if want.ID == "" {
		want.ID = warmboot.NewID()
	}
	if want.Name == "" {
		want.Name = known.Name
	}
	if want.Name == "" {
		if want.Name, err = os.Hostname(); err != nil || warmboot.ValidateHostName(want.Name) != nil {
			want.Name = "host-" + want.ID.Short()[:6]
		}
	}
	if err := warmboot.ValidateHostName(want.Name); err != nil {
		return err
	}
	a.ID, a.Name = want.ID, want.Name
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ioError(op, err)
	}
	a.bootID = strings.TrimSpace(string(boot))
	if want == known {
		return nil
	}
	if text, err = json.MarshalIndent(want, "", "  "); err != nil {
		return ioError(op, err)
	}
	return ioError(op, durable.Replace(path, append(text, '\n'), 0o600))
}

// overcommit is how many times this machine's memory the microVMs may have together, unless Config.MaxVMs says otherwise.
const overcommit = 4

func memoryBytes() (int64, error) {
	var mem unix.Sysinfo_t
	if err := unix.Sysinfo(&mem); err != nil {
		return 0, err
	}
	return int64(mem.Totalram) * int64(mem.Unit), nil
}

// limitVMs decides how many microVMs this host takes, if nobody has.
func (a *Agent) limitVMs() error {
	if a.MaxVMs > 0 {
		return nil
	}
	memory, err := memoryBytes()
	if err != nil {
		return ioError("find out how much memory there is", err)
	}
	a.MaxVMs = min(max(1, int(memory*overcommit/(int64(a.MemoryMiB)<<20))), a.net.Total())
	return nil
}

// Inventory implements controlplane.Host.
func (a *Agent) Inventory(context.Context) (warmboot.HostInventory, error) {
	const op = "take inventory"
	why := a.caps.Driver + " with " + a.caps.Accelerator
	if reason := cmp.Or(a.VMMWhy, a.caps.AcceleratorWhy); reason != "" {
		why += ": " + reason
	}
	inv := warmboot.HostInventory{
		Version: a.Version, VMM: a.caps.FCVersion(), VMMWhy: why, VMMWarning: cmp.Or(a.VMMWarning, a.caps.Warning), Network: string(a.net.Mode()), NetworkWhy: a.net.Why(), Arch: a.caps.Arch, CPU: a.caps.CPUModel, BootID: a.bootID,
		Platform: snapshot.FingerprintOf(a.caps, "", a.VCPUs, a.MemoryMiB).Platform(), CPUs: runtime.NumCPU(), VMs: a.net.Used(), Images: a.images.digests(), MaxVMs: a.MaxVMs,
	}
	var err error
	if inv.MemoryBytes, err = memoryBytes(); err != nil {
		return inv, ioError(op, err)
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(a.Root, &disk); err != nil {
		return inv, ioError(op, err)
	}
	inv.DiskBytes, inv.DiskFree = int64(disk.Blocks)*disk.Bsize, int64(disk.Bavail)*disk.Bsize
	artifacts, err := filepath.Glob(filepath.Join(a.Root, "runtime-snapshots", "*", "*", snapshot.MetadataFile))
	if err != nil {
		return inv, ioError(op, err)
	}
	for _, path := range artifacts {
		if id, err := warmboot.ParseID(filepath.Base(filepath.Dir(path))); err == nil { // else it is a draft
			inv.Snapshots = append(inv.Snapshots, id)
		}
	}
	slices.Sort(inv.Snapshots)
	return inv, nil
}

// worthTelling reports whether the control plane should know of a change of the inventory: how full the disk is only roughly.
func worthTelling(before, now warmboot.HostInventory) bool {
	if diff := before.DiskFree - now.DiskFree; max(diff, -diff) < now.DiskBytes/100 {
		before.DiskFree = now.DiskFree
	}
	was, errWas := json.Marshal(before)
	is, errIs := json.Marshal(now)
	return errWas != nil || errIs != nil || !bytes.Equal(was, is)
}

// Hello is how this host introduces itself.
func (a *Agent) Hello(ctx context.Context) (controlplane.Hello, error) {
	inv, err := a.Inventory(ctx)
	if err != nil {
		return controlplane.Hello{}, err
	}
	all, err := a.Containers(ctx)
	return controlplane.Hello{ID: a.ID, Name: a.Name, Address: a.Address, Inside: a.Address == "", Inventory: inv, Containers: all}, err
}
