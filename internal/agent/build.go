package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/guestrpc"
	"warmboot/internal/hostnet"
	"warmboot/internal/rollback"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
)

// BuildSnapshot boots the image, waits for Docker, quiesces and freezes the machine and writes the artifact. The machine is gone
// when it returns; on an error so is everything else.
func (a *Agent) BuildSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, step func(string)) (_ controlplane.Built, err error) {
	const op = "build snapshot"
	ctx, end, err := a.beginBuild(ctx, snap.ID)
	if err != nil {
		return controlplane.Built{}, err
	}
	defer end() // the last to run: until then its files are no garbage
	if img, err = a.images.local(ctx, img); err != nil {
		return controlplane.Built{}, err
	}
	if err := a.roomForSnapshot(); err != nil {
		return controlplane.Built{}, err
	}
	var undo rollback.Stack
	defer func() {
		if undoErr := undo.Unwind(); undoErr != nil {
			a.Log.Error("What a snapshot build had taken could not all be released", "snapshot_id", snap.ID, "err", undoErr)
		}
	}()
	draft, err := snapshot.NewDraft(a.Root, img.ID, snap.ID, a.group())
	if err != nil {
		return controlplane.Built{}, err
	}
	undo.Push("discard draft", draft.Discard) // nothing is left to discard once the draft is committed

	b := &build{a: a, img: img, draft: draft, step: step, undo: &undo}
	if err := b.freeze(ctx, snap.ID); err != nil {
		return controlplane.Built{}, a.orFull(op, err)
	}
	step("Checking and storing the artifact")
	if err := os.Symlink(img.RootfsPath, draft.File(snapshot.RootFile)); err != nil {
		return controlplane.Built{}, ioError(op, err)
	}
	fp := snapshot.FingerprintOf(a.caps, img.Digest, a.VCPUs, a.MemoryMiB)
	art, err := draft.Commit(snapshot.Metadata{
		ID: snap.ID, RuntimeImageID: img.ID, CreatedAt: time.Now().UTC(), Fingerprint: fp,
		Boot:          snapshot.Boot{Kernel: img.KernelPath, Initrd: img.InitrdPath, KernelArgs: a.KernelArgs},
		DockerVersion: b.dockerVersion, ColdBootSeconds: b.coldBoot.Seconds(), PauseSeconds: b.pause.Seconds(),
	}, a.snapshotAccess())
	if err != nil {
		return controlplane.Built{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.removeArtifact(art.Path))
		}
	}()
	// So that the first container does not pay for it.
	if err := a.disks.Prepare(ctx, art.File(snapshot.DataFile)); err != nil {
		return controlplane.Built{}, err
	}
	if err := a.verifier.Verify(art); err != nil {
		return controlplane.Built{}, err
	}
	text, err := os.ReadFile(art.File(snapshot.MetadataFile))
	if err != nil {
		return controlplane.Built{}, ioError(op, err)
	}
	size, err := art.DiskBytes()
	if err != nil {
		return controlplane.Built{}, ioError(op, err)
	}
	if err := ctx.Err(); err != nil {
		return controlplane.Built{}, err
	}
	return controlplane.Built{Path: art.Path, FCVersion: a.caps.FCVersion(), Metadata: warmboot.SnapshotMetadata{
		SizeBytes: size, MemSizeBytes: int64(a.MemoryMiB) << 20, DockerVersion: b.dockerVersion, VCPUs: a.VCPUs, Digest: snapshot.DigestOf(text),
		ColdBootSeconds: b.coldBoot.Seconds(), PauseSeconds: b.pause.Seconds(),
	}}, nil
}

// build is the part of a snapshot build in which a machine runs.
type build struct {
	a     *Agent
	img   warmboot.Image
	draft *snapshot.Draft
	step  func(string)
	undo  *rollback.Stack

	dockerVersion string
	coldBoot      time.Duration // VMM start to Docker answering
	pause         time.Duration // pause to files that can be restored from
}

// freeze boots a machine and leaves its memory, state and disk in the draft.
func (b *build) freeze(ctx context.Context, id warmboot.ID) error {
	a := b.a
	end, err := a.cold.take(ctx)
	if err != nil {
		return warmboot.Errorf(warmboot.CodeOf(err), "build snapshot", "%w", err)
	}
	defer end()

	slot, err := a.net.Take(ctx, hostnet.Wants{})
	if err != nil {
		return err
	}
	b.undo.Push("free slot", slot.Release)
	dir := filepath.Join(a.Root, "builds", string(id))
	if err := os.Mkdir(dir, 0o711); err != nil {
		return ioError("build snapshot", err)
	}
	b.undo.Push("remove VMM's directory", func() error { return os.RemoveAll(dir) })
	owner := a.owner(slot)
	data, err := a.disks.New(ctx, b.draft.File(snapshot.DataFile), a.DiskBytes, owner)
	if err != nil {
		return err
	}

	b.step("Booting " + b.img.Name)
	start := time.Now()
	starting, cancel := context.WithTimeout(ctx, a.BootTimeout)
	defer cancel()
	m, err := a.Driver.Create(starting, vmm.Spec{
		ID: "build-" + id.Short(), Dir: dir, VCPUs: a.VCPUs, MemoryMiB: a.MemoryMiB,
		Kernel: b.img.KernelPath, Initrd: b.img.InitrdPath, KernelArgs: a.KernelArgs,
		RootDisk: vmm.Disk{Path: b.img.RootfsPath, Format: vmm.Raw}, DataDisk: data,
		MemoryFile: b.draft.File(snapshot.MemoryFile), Network: slot.Network, Owner: owner,
	})
	if err != nil {
		return err
	}
	b.undo.Push("stop machine", func() error { return stopMachine(m) })
	ctx, stop := whileBooting(ctx, m, start, a.BootTimeout)
	defer stop()
	guest, err := b.bootGuest(ctx, m, slot.Network, id, start)
	if err != nil {
		return bootError(ctx, m, "build snapshot", a.BootTimeout, err)
	}
	// A connection does not survive the snapshot: there must be none.
	if err := guest.Close(); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "build snapshot", Err: err}
	}

	b.step("Freezing the machine")
	frozen := time.Now()
	if err := m.Pause(ctx); err != nil {
		return err
	}
	if _, err := m.Snapshot(ctx, vmm.SnapshotOptions{StateFile: b.draft.File(snapshot.StateFile)}); err != nil {
		return err
	}
	if err := m.Stop(ctx, 0); err != nil {
		return err
	}
	b.pause = time.Since(frozen)
	return nil
}

// bootGuest takes a machine that boots to the point where it may be frozen.
func (b *build) bootGuest(ctx context.Context, m vmm.Machine, n vmm.Network, id warmboot.ID, start time.Time) (*guestrpc.Client, error) {
	guest, err := guestrpc.Connect(ctx, m.DialGuest)
	if err != nil {
		return nil, err
	}
	b.undo.Push("close guest channel", func() error { guest.Close(); return nil })
	if _, err := reidentify(ctx, guest, n, machineIdentity(id, "runtime", ""), false); err != nil {
		return nil, err
	}
	b.step(fmt.Sprintf("Guest agent answered after %s; waiting for Docker", time.Since(start).Round(time.Millisecond)))
	if _, err := guest.WaitDocker(ctx, maxPatience*b.a.BootTimeout); err != nil {
		return nil, err
	}
	b.coldBoot = time.Since(start)
	b.step(fmt.Sprintf("Docker answered after %s; quiescing", time.Since(start).Round(time.Millisecond)))
	q, err := guest.Quiesce(ctx)
	if err != nil {
		return nil, err
	}
	if !q.GetDockerAutostart() {
		return nil, warmboot.Errorf(warmboot.Invalid, "build snapshot", "Docker is not set to start by itself in runtime image %s; enable its service in the image and register it again", b.img.Name)
	}
	for _, s := range q.GetSteps() {
		b.a.Log.Debug("Quiesced", "snapshot_id", id, "step", s)
	}
	b.dockerVersion = guestrpc.Brief(q.GetDockerVersion())
	return guest, nil
}

// snapshotSlack is what a snapshot's data disk and state need beside its memory, in bytes: what Docker leaves on an empty disk,
// with room to spare.
const snapshotSlack = 256 << 20

// roomForSnapshot reports an Exhausted error when the disk cannot hold one more snapshot. The memory file is sparse and mapped: a
// disk that runs full under it would kill the VMM without a word.
func (a *Agent) roomForSnapshot() error {
	free, err := a.room()
	if err != nil {
		return ioError("build snapshot", err)
	}
	need := int64(a.MemoryMiB)<<20 + snapshotSlack
	if free < need {
		return warmboot.Errorf(warmboot.Exhausted, "build snapshot", "the disk is full: a snapshot needs up to %d MiB and %s has %d MiB left; free space and try again", need>>20, a.Root, free>>20)
	}
	return nil
}

// room is how many bytes are free where the storage root is.
func (a *Agent) room() (int64, error) {
	var fs syscall.Statfs_t
	err := syscall.Statfs(a.Root, &fs)
	return int64(fs.Bavail) * fs.Bsize, err
}

// orFull adds to what failed that the disk is full, if it is: a VMM that it has killed cannot say so.
func (a *Agent) orFull(op string, err error) error {
	const none = 1 << 20 // what is left when there is not a page more for whoever asks
	if free, roomErr := a.room(); roomErr != nil || free >= none || warmboot.CodeOf(err) == warmboot.Exhausted {
		return err
	}
	return warmboot.Errorf(warmboot.Exhausted, op, "the disk is full, and the memory of a machine to freeze is a file on it; free space under %s and try again: %w", a.Root, err)
}

// snapshotAccess is who may do what with a snapshot's files.
func (a *Agent) snapshotAccess() snapshot.Access {
	return snapshot.Access{Group: a.group(), WritableMemory: a.caps.WritableMemoryFile}
}

// RemoveSnapshot removes a snapshot's files. It is a Conflict while a container's disk, and so maybe its running machine, is based
// on them.
func (a *Agent) RemoveSnapshot(_ context.Context, snap warmboot.RuntimeSnapshot) error {
	path := snapshot.Dir(a.Root, snap.RuntimeImageID, snap.ID) // its row has that of the host that built it
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.containers {
		if c.basedOn() == path {
			return warmboot.Errorf(warmboot.Conflict, "remove snapshot", "the disk of container %s is based on snapshot %s; the files go when the container is deleted", c.id, snap.ID)
		}
	}
	return a.removeArtifact(path)
}

// removeArtifact removes an artifact and what is remembered of it. One that is not there is no error.
func (a *Agent) removeArtifact(path string) error {
	a.verifier.Forget(&snapshot.Artifact{Path: path})
	if err := a.disks.Forget(filepath.Join(path, snapshot.DataFile)); err != nil {
		return err
	}
	return snapshot.Remove(path)
}
