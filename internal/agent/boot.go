package agent

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
)

// WarmBoot restores a container's microVM from a snapshot, makes it a machine of its own, and returns once Docker has answered.
func (a *Agent) WarmBoot(ctx context.Context, m controlplane.MachineSpec, snap warmboot.RuntimeSnapshot) (_ controlplane.Booted, err error) {
	const op = "warm boot"
	ctx, done, err := a.command(ctx, m.Container)
	if err != nil {
		return controlplane.Booted{}, err
	}
	defer done()
	end, err := a.warm.take(ctx)
	if err != nil {
		return controlplane.Booted{}, warmboot.Errorf(warmboot.CodeOf(err), op, "%w", err)
	}
	defer end()
	if m.Image, err = a.images.local(ctx, m.Image); err != nil {
		return controlplane.Booted{}, err
	}
	path := snapshot.Dir(a.Root, m.Image.ID, snap.ID)
	l, err := a.launch(ctx, m)
	if err != nil {
		return controlplane.Booted{}, err
	}
	defer func() { err = l.end(err) }()
	// From here on the snapshot's files stay.
	if err := l.c.keep(func(r *record) { r.BasedOn = path }); err != nil {
		return controlplane.Booted{}, err
	}
	art, err := a.usableArtifact(m, path)
	if err != nil {
		return controlplane.Booted{}, err
	}
	var data vmm.Disk
	if err := l.time(ctx, warmboot.PhaseDisk, func(ctx context.Context) (err error) {
		data, err = a.disks.Clone(ctx, art.File(snapshot.DataFile), l.c.dataDisk(), a.owner(l.slot))
		return err
	}); err != nil {
		return controlplane.Booted{}, err
	}
	l.c.setDisk(data)
	// The limit is the machine's own: a host that was slow to copy the disk says nothing about the snapshot.
	ctx, stop, err := l.start(ctx, a.RestoreTimeout, func(ctx context.Context) (vmm.Machine, error) {
		return a.Driver.Restore(ctx, vmm.Snapshot{
			MemoryFile: art.File(snapshot.MemoryFile), StateFile: art.File(snapshot.StateFile),
			VCPUs: art.Metadata.Fingerprint.VCPUs, MemoryMiB: art.Metadata.Fingerprint.MemoryMiB,
			Kernel: m.Image.KernelPath, Initrd: m.Image.InitrdPath, KernelArgs: art.Metadata.Boot.KernelArgs,
		}, vmm.RestoreOptions{
			ID: m.VMID, Dir: l.c.vmDir(), RootDisk: vmm.Disk{Path: m.Image.RootfsPath, Format: vmm.Raw},
			DataDisk: data, Network: l.slot.Network, Owner: a.owner(l.slot),
		})
	})
	if err != nil {
		return controlplane.Booted{}, err
	}
	defer stop()
	if err := l.time(ctx, warmboot.PhaseReidentify, func(ctx context.Context) error {
		if err := l.connect(ctx); err != nil {
			return err
		}
		return l.reidentify(ctx, string(warmboot.NewID()), true)
	}); err != nil {
		return controlplane.Booted{}, restoredError(ctx, l.vm.machine, op, a.RestoreTimeout, err)
	}
	l.shift(time.Duration(l.vm.pinged.GetWaitedMicros()) * time.Microsecond)
	if err := l.time(ctx, warmboot.PhaseDocker, l.vm.awaitDocker); err != nil {
		return controlplane.Booted{}, restoredError(ctx, l.vm.machine, op, a.RestoreTimeout, err)
	}
	if err := limitCPU(l.vm.machine, m.Spec); err != nil {
		return controlplane.Booted{}, err
	}
	return controlplane.Booted{Phases: l.phases}, nil
}

// usableArtifact opens a snapshot and checks that its files are what was written, and that it was made for this host, image and
// size of machine.
func (a *Agent) usableArtifact(m controlplane.MachineSpec, path string) (*snapshot.Artifact, error) {
	art, err := snapshot.Open(path)
	if err != nil {
		return nil, err
	}
	vcpus, memory := a.size(m.Spec)
	want := snapshot.FingerprintOf(a.caps, m.Image.Digest, vcpus, memory)
	if diff := art.Metadata.Fingerprint.Mismatch(want); diff != "" {
		// A snapshot that this host would make just so today is not outdated: the container is larger than others.
		if art.Metadata.Fingerprint.Mismatch(snapshot.FingerprintOf(a.caps, m.Image.Digest, a.VCPUs, a.MemoryMiB)) == "" {
			return nil, warmboot.Errorf(warmboot.Incompatible, "use snapshot", "%s (%w)", diff, controlplane.ErrMachineSize)
		}
		return nil, warmboot.Errorf(warmboot.Incompatible, "use snapshot", "%s", diff)
	}
	return art, a.verifier.Verify(art)
}

// ColdBoot boots a container's microVM from its runtime image, on the container's own disk if it has one already, and returns
// once Docker has answered.
func (a *Agent) ColdBoot(ctx context.Context, m controlplane.MachineSpec) (_ controlplane.Booted, err error) {
	const op = "cold boot"
	ctx, done, err := a.command(ctx, m.Container)
	if err != nil {
		return controlplane.Booted{}, err
	}
	defer done()
	end, err := a.cold.take(ctx)
	if err != nil {
		return controlplane.Booted{}, warmboot.Errorf(warmboot.CodeOf(err), op, "%w", err)
	}
	defer end()
	if m.Image, err = a.images.local(ctx, m.Image); err != nil {
		return controlplane.Booted{}, err
	}
	l, err := a.launch(ctx, m)
	if err != nil {
		return controlplane.Booted{}, err
	}
	defer func() { err = l.end(err) }()
	owner := a.owner(l.slot)
	data, engineID := l.c.disk()
	if err := l.time(ctx, warmboot.PhaseDisk, func(ctx context.Context) (err error) {
		if data.Path != "" {
			if err := own(data.Path, owner); err != nil { // it may be another slot's this time
				return err
			}
			data, err = l.readable(ctx, data, owner)
			return err
		}
		data, err = a.disks.New(ctx, l.c.dataDisk(), a.DiskBytes, owner)
		return err
	}); err != nil {
		return controlplane.Booted{}, err
	}
	l.c.setDisk(data)
	vcpus, memory := a.size(m.Spec)
	ctx, stop, err := l.start(ctx, a.BootTimeout, func(ctx context.Context) (vmm.Machine, error) {
		return a.Driver.Create(ctx, vmm.Spec{
			ID: m.VMID, Dir: l.c.vmDir(), VCPUs: vcpus, MemoryMiB: memory,
			Kernel: m.Image.KernelPath, Initrd: m.Image.InitrdPath, KernelArgs: a.KernelArgs,
			RootDisk: vmm.Disk{Path: m.Image.RootfsPath, Format: vmm.Raw}, DataDisk: data,
			Network: l.slot.Network, Owner: owner,
		})
	})
	if err != nil {
		return controlplane.Booted{}, err
	}
	defer stop()
	for _, step := range []struct {
		name warmboot.PhaseName
		run  func(context.Context) error
	}{
		{warmboot.PhaseBoot, l.connect},
		{warmboot.PhaseReidentify, func(ctx context.Context) error { return l.reidentify(ctx, engineID, false) }},
		{warmboot.PhaseDocker, l.vm.awaitDocker},
	} {
		if err := l.time(ctx, step.name, step.run); err != nil {
			return controlplane.Booted{}, bootError(ctx, l.vm.machine, op, a.BootTimeout, err)
		}
	}
	if err := limitCPU(l.vm.machine, m.Spec); err != nil {
		return controlplane.Booted{}, err
	}
	return controlplane.Booted{Phases: l.phases}, nil
}

// readable returns a container's disk as this host's VMM can read it. What another VMM has left is converted, and then no snapshot lies
// below it any more.
func (l *launch) readable(ctx context.Context, d vmm.Disk, owner vmm.Owner) (vmm.Disk, error) {
	if l.a.disks.Reads(d) {
		return d, nil
	}
	path := l.c.rawDisk()
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an attempt that was not finished
		return vmm.Disk{}, ioError("convert data disk", err)
	}
	start := time.Now()
	raw, err := l.a.disks.Flatten(ctx, d, filepath.Join(l.c.basedOn(), snapshot.DataFile), path, owner)
	if err != nil {
		return vmm.Disk{}, err
	}
	// One write decides which of the two is the disk.
	if err := l.c.keep(func(r *record) { r.Disk, r.BasedOn = raw, "" }); err != nil {
		return vmm.Disk{}, err
	}
	l.a.Log.Info("A container's disk was converted for another VMM", "container_id", l.c.id, "vmm", l.a.Driver.Name(), "took", time.Since(start).Round(time.Millisecond))
	return raw, ioError("convert data disk", os.Remove(d.Path))
}

// size is the microVM's that a container needs: never smaller than the default, which is also a snapshot's.
func (a *Agent) size(s warmboot.ContainerSpec) (vcpus, memoryMiB int) {
	return max(a.VCPUs, int(math.Ceil(s.CPULimit))), max(a.MemoryMiB, s.MemoryLimitMB)
}

// cpuHeadroom is how many CPUs a machine may use besides those of its container's limit. To that the guest's own Docker holds the container, and the
// machine's limit is for when the guest no longer does what we say. Until then Docker, the guest agent and the VMM do their work in the
// headroom: without it a container that uses all that it may would get less for their sake, and one with a hundredth of a CPU, which is the least that
// Docker takes, could hardly be stopped in order.
const cpuHeadroom = 0.1

// limitCPU holds a machine whose Docker has answered to its container's limit, on the host, where the VMM can do that. Only now: a boot may take what the
// machine has, so that a container with a small limit boots as fast as any. Images are pulled, commands run and Docker is stopped within the limit. It is
// the machine's as long as it lives, and so needs nothing more when the machine is taken charge of again.
func limitCPU(m vmm.Machine, s warmboot.ContainerSpec) error {
	limiter, ok := m.(vmm.CPULimiter)
	if !ok || s.CPULimit == 0 {
		return nil
	}
	return limiter.LimitCPU(s.CPULimit + cpuHeadroom)
}

// own gives a file to a VMM's user.
func own(path string, owner vmm.Owner) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return ioError("give disk to VMM", os.Chown(path, int(owner.UID), int(owner.GID)))
}
