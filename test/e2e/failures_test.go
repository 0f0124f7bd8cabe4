package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/agent"
	"warmboot/internal/controlplane"
	"warmboot/internal/disk"
	"warmboot/internal/guestrpc"
	"warmboot/internal/hostnet"
	"warmboot/internal/planetest"
	"warmboot/internal/programtest"
	"warmboot/internal/snapshot"
	"warmboot/internal/store"
	"warmboot/internal/telemetry"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/qemu"
)

// stack is what `warmboot serve` is made of, within the test, so that the test can reach into the middle of it.
type stack struct {
	root    string
	uidBase uint32
	driver  vmm.Driver
	agent   *agent.Agent
	store   *store.Store
	svc     *controlplane.Service
	img     *warmboot.Image
	log     *logBuffer
}

// sabotageNet is the guest network of a machine that freeze boots; no slot of the agent's has it.
var sabotageNet = vmm.Network{Subnet: netip.MustParsePrefix("100.127.255.0/24")}

// These are shorter than the product's: these tests wait for them to pass.
const (
	restoreTimeout = 6 * time.Second
	answerTimeout  = 15 * time.Second
)

func newStack(t *testing.T, root string, uidBase uint32) *stack {
	t.Helper()
	s := &stack{root: root, uidBase: uidBase, log: &logBuffer{}}
	log := telemetry.NewLog(s.log, slog.LevelDebug)
	s.driver = qemu.New(qemu.Config{StateDir: filepath.Join(root, "vmm"), Log: log})
	var err error
	if s.agent, err = agent.Open(t.Context(), agent.Config{
		Root: root, Driver: s.driver, Log: log, ImageRoots: []string{imageDir}, PlainHTTPRegistries: []string{open.Host},
		RestoreTimeout: restoreTimeout, AnswerTimeout: answerTimeout, OwnerBase: uidBase, Network: hostnet.Config{Mode: hostnet.User},
	}); err != nil {
		t.Fatal(err)
	}
	plane, err := planetest.Start(t.Context(), planetest.Config{URL: filepath.Join(root, "warmboot.db"), Reach: reach{s.agent}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	s.store, s.svc = plane.Store, plane.Service
	if err := s.agent.SayHello(t.Context(), s.svc); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	reported := make(chan struct{})
	go func() { defer close(reported); s.agent.Run(ctx, s.svc) }()
	t.Cleanup(func() {
		cancel()
		<-reported
		if err := plane.Close(); err != nil {
			t.Error(err)
		}
		if err := s.agent.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("log:\n%s", s.log)
		}
	})
	img := runtimeImg
	img.Name = "trixie"
	if s.img, err = s.svc.RegisterImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	return s
}

// reach is the way to an agent in this process.
type reach struct{ *agent.Agent }

func (r reach) Host(*warmboot.Host) (controlplane.Host, error) { return r.Agent, nil }

// freeze makes a snapshot as the agent does, but sabotages the guest before the pause. The result is a ready snapshot that looks
// right from outside.
func (s *stack) freeze(t *testing.T, sabotage string) warmboot.RuntimeSnapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	here, err := s.agent.Inventory(ctx)
	if err != nil {
		t.Fatal(err)
	}
	snap := warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: s.img.ID, HostID: s.agent.ID, Platform: here.Platform, State: warmboot.SnapshotCreating, FCVersion: s.agent.Capabilities().FCVersion(), CreatedAt: time.Now().UTC()}
	group := int(s.uidBase)
	owner := vmm.Owner{UID: s.uidBase + 1<<15, GID: s.uidBase + 1<<15, Readers: s.uidBase}
	draft, err := snapshot.NewDraft(s.root, s.img.ID, snap.ID, group)
	if err != nil {
		t.Fatal(err)
	}
	disks, err := disk.Open(ctx, disk.Config{Dir: filepath.Join(s.root, "sabotage-disks"), Driver: "qemu", Group: group, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	data, err := disks.New(ctx, draft.File(snapshot.DataFile), agent.DefaultDiskBytes, owner)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(s.root, "builds", "sabotage")
	if err := os.Mkdir(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	m, err := s.driver.Create(ctx, vmm.Spec{
		ID: "sabotage", Dir: dir, VCPUs: agent.DefaultVCPUs, MemoryMiB: agent.DefaultMemoryMiB,
		Kernel: s.img.KernelPath, Initrd: s.img.InitrdPath, RootDisk: vmm.Disk{Path: s.img.RootfsPath, Format: vmm.Raw},
		DataDisk: data, MemoryFile: draft.File(snapshot.MemoryFile), Network: sabotageNet, Owner: owner,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop(context.WithoutCancel(ctx), 0)
	guest, err := guestrpc.Connect(ctx, m.DialGuest)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Reidentify(ctx, &guestv1.ReidentifyRequest{
		Identity: &guestv1.Identity{Hostname: "runtime", MachineId: strings.Repeat("0a", 16), Mac: "02:00:00:00:00:01", Address: sabotageNet.Guest().String()},
		Gateway:  sabotageNet.Gateway().String(), Dns: sabotageNet.DNS().String(), Seed: make([]byte, 64), UnixNanos: time.Now().UnixNano(),
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.WaitDocker(ctx, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	if _, err := guest.Quiesce(ctx); err != nil {
		t.Fatal(err)
	}
	// It may end the guest agent's own ability to answer, so nobody waits for an exit code.
	if _, err := guest.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"/bin/sh", "-c", sabotage}}); err != nil {
		t.Fatal(err)
	}
	await(t, 20*time.Second, "the sabotage to take effect", func() bool {
		pctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		conn, err := guest.DialDocker(pctx)
		if err != nil {
			return true
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := conn.Write([]byte("GET /_ping HTTP/1.0\r\n\r\n")); err != nil {
			return true
		}
		n, _ := conn.Read(make([]byte, 1))
		return n == 0
	})
	guest.Close()
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Snapshot(ctx, vmm.SnapshotOptions{StateFile: draft.File(snapshot.StateFile)}); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	caps := s.agent.Capabilities()
	art, err := draft.Commit(snapshot.Metadata{
		ID: snap.ID, RuntimeImageID: s.img.ID, CreatedAt: snap.CreatedAt,
		Fingerprint: snapshot.FingerprintOf(caps, s.img.Digest, agent.DefaultVCPUs, agent.DefaultMemoryMiB),
		Boot:        snapshot.Boot{Kernel: s.img.KernelPath, Initrd: s.img.InitrdPath},
	}, snapshot.Access{Group: group, WritableMemory: caps.WritableMemoryFile})
	if err != nil {
		t.Fatal(err)
	}
	snap.SnapshotPath = art.Path
	if err := s.store.CreateSnapshot(ctx, &snap); err != nil {
		t.Fatal(err)
	}
	if _, err := s.store.FinishSnapshot(ctx, &snap, nil); err != nil {
		t.Fatal(err)
	}
	return snap
}

// runs creates a container, waits until it runs, checks that it boots cold for the reason given (warm if empty), and removes it.
func (s *stack) runs(t *testing.T, coldReason string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	c, err := s.svc.CreateContainer(ctx, controlplane.CreateContainer{Image: open.Image, Spec: warmboot.ContainerSpec{Args: []string{"sleep", "1000"}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err = s.svc.WaitContainer(ctx, string(c.ID), controlplane.WaitStarted)
	if err != nil {
		t.Fatal(err)
	}
	want := warmboot.BootCold
	if coldReason == "" {
		want = warmboot.BootWarm
	}
	if c.State != warmboot.ContainerRunning || c.BootMethod != want || !strings.Contains(strings.ToLower(c.BootReason), strings.ToLower(coldReason)) {
		t.Errorf("container is %s (%s), %s: %q; want it running, %s: %q", c.State, c.Error, c.BootMethod, c.BootReason, want, coldReason)
	}
	if err := s.svc.DeleteContainer(ctx, string(c.ID), true); err != nil {
		t.Fatal(err)
	}
	s.nothingLeft(t)
}

func (s *stack) nothingLeft(t *testing.T) {
	t.Helper()
	if pids := processesOf(t, s.uidBase); len(pids) != 0 {
		t.Errorf("VMMs %v are left", pids)
	}
	if rest := left(t, s.root); len(rest) != 0 {
		t.Errorf("left: %v", rest)
	}
}

// TestSabotagedSnapshots restores machines that are wrong inside: the container must run all the same.
func TestSabotagedSnapshots(t *testing.T) {
	root, uidBase := newRoot(t)
	s := newStack(t, root, uidBase)
	for _, tt := range []struct{ name, sabotage string }{
		// Stopped, not killed: the guest agent would start it again.
		{"Docker is dead in the snapshot", "kill -STOP $(pidof dockerd)"},
		// A kernel that has panicked neither answers nor ends.
		{"the guest agent is mute", "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			snap := s.freeze(t, tt.sabotage)
			s.runs(t, "Docker had not answered after "+restoreTimeout.String())
			after, err := s.store.Snapshot(t.Context(), snap.ID)
			if err != nil || after.FailureCount != 1 || after.FailureStreak != 1 || after.SuccessCount != 0 {
				t.Errorf("snapshot is %+v, %v", after, err)
			}
			if err := s.svc.DeleteSnapshot(t.Context(), snap.ID); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestInterruptedWork ends things in the middle.
func TestInterruptedWork(t *testing.T) {
	root, uidBase := newRoot(t)
	s := newStack(t, root, uidBase)

	t.Run("a snapshot is deleted while it is built", func(t *testing.T) {
		id, err := s.svc.BuildSnapshot(t.Context(), s.img.ID)
		if err != nil {
			t.Fatal(err)
		}
		await(t, time.Minute, "the build's VMM", func() bool { return len(processesOf(t, s.uidBase)) == 1 })
		if err := s.svc.DeleteSnapshot(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		await(t, time.Minute, "the build to end", func() bool { return len(processesOf(t, s.uidBase)) == 0 && len(left(t, s.root)) == 0 })
		if snap, err := s.svc.Snapshot(t.Context(), id); err != nil || snap.State != warmboot.SnapshotDeleted {
			t.Errorf("snapshot is %+v, %v", snap, err)
		}
	})

	t.Run("the VMM is killed during a build", func(t *testing.T) {
		id, err := s.svc.BuildSnapshot(t.Context(), s.img.ID)
		if err != nil {
			t.Fatal(err)
		}
		killVMM(t, s)
		await(t, time.Minute, "the build to end", func() bool {
			snap, err := s.svc.Snapshot(t.Context(), id)
			return err == nil && snap.State == warmboot.SnapshotUnhealthy && strings.Contains(strings.ToUpper(snap.Metadata.Error), "QEMU")
		})
		s.nothingLeft(t)
	})

	t.Run("the VMM is killed when Docker has answered", func(t *testing.T) {
		id, err := s.svc.BuildSnapshot(t.Context(), s.img.ID)
		if err != nil {
			t.Fatal(err)
		}
		await(t, 3*time.Minute, "Docker's answer", func() bool {
			snap, err := s.svc.Snapshot(t.Context(), id)
			return err == nil && strings.Contains(snap.Metadata.Step, "quiescing")
		})
		killVMM(t, s)
		await(t, time.Minute, "the build to end", func() bool {
			snap, err := s.svc.Snapshot(t.Context(), id)
			return err == nil && snap.State == warmboot.SnapshotUnhealthy && strings.Contains(snap.Metadata.Error, "the VMM's process ended")
		})
		s.nothingLeft(t)
	})

	var id warmboot.ID
	t.Run("the VMM is killed during a restore", func(t *testing.T) {
		var err error
		if id, err = s.svc.BuildSnapshot(t.Context(), s.img.ID); err != nil {
			t.Fatal(err)
		}
		await(t, 3*time.Minute, "the snapshot", func() bool {
			snap, err := s.svc.Snapshot(t.Context(), id)
			return err == nil && snap.State == warmboot.SnapshotReady
		})
		done := make(chan struct{})
		go func() {
			defer close(done)
			killVMM(t, s)
		}()
		s.runs(t, "qemu")
		<-done
		s.runs(t, "") // the snapshot itself is good
		if snap, err := s.svc.Snapshot(t.Context(), id); err != nil || snap.FailureCount != 1 || snap.SuccessCount != 1 || snap.FailureStreak != 0 {
			t.Errorf("snapshot is %+v, %v", snap, err)
		}
	})

	for i, hit := range []struct {
		name   string
		signal syscall.Signal
		reason string
	}{
		{"the VMM is killed while the image is pulled", syscall.SIGKILL, "the VMM's process ended while the container was being started"},
		// A process that is stopped is, to everybody who waits for its guest, a guest that hangs.
		{"the guest hangs while the image is pulled", syscall.SIGSTOP, "its Docker had not answered for " + answerTimeout.String()},
	} {
		t.Run(hit.name, func(t *testing.T) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				await(t, time.Minute, "the machine to be up", func() bool {
					all, err := s.svc.Containers(t.Context(), warmboot.ContainerFilter{})
					return err == nil && slices.ContainsFunc(all, func(c *warmboot.Container) bool { return c.BootMethod == warmboot.BootWarm })
				})
				signalVMM(t, s, hit.signal)
			}()
			s.runs(t, hit.reason)
			<-done
			if snap, err := s.svc.Snapshot(t.Context(), id); err != nil || snap.FailureCount != int64(2+i) || snap.FailureStreak != 1+i {
				t.Errorf("snapshot is %+v, %v", snap, err)
			}
		})
	}

	t.Run("the host takes long to copy the disk", func(t *testing.T) {
		slowDisks(t, s)
		s.runs(t, "") // nothing is wrong with the snapshot
		if snap, err := s.svc.Snapshot(t.Context(), id); err != nil || snap.FailureCount != 3 || snap.FailureStreak != 0 {
			t.Errorf("snapshot is %+v, %v", snap, err)
		}
		if err := s.svc.DeleteSnapshot(t.Context(), id); err != nil {
			t.Error(err)
		}
	})
}

// slowDisks makes the next copy of a disk take longer than a restore may.
func slowDisks(t *testing.T, s *stack) {
	t.Helper()
	made, err := filepath.Glob(filepath.Join(s.root, "disk-templates", "overlay-*"))
	if err != nil {
		t.Fatal(err)
	}
	if len(made) == 0 {
		t.Skip("SKIPPED: this file system has reflinks, and no disk is slow to copy there")
	}
	for _, m := range made {
		if err := os.Remove(m); err != nil {
			t.Fatal(err)
		}
	}
	real, err := exec.LookPath("qemu-img")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	slow := fmt.Sprintf("#!/bin/sh\nsleep %g\nexec %s \"$@\"\n", (restoreTimeout + time.Second).Seconds(), real)
	if err := programtest.Write(filepath.Join(dir, "qemu-img"), []byte(slow)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestDiskFullWhileBuilding builds on a file system that is too small, and on one that fills up while the machine to freeze boots.
func TestDiskFullWhileBuilding(t *testing.T) {
	for name, c := range map[string]struct {
		size  string
		fills bool
	}{"too small": {size: "64m"}, "fills up": {"2g", true}} {
		t.Run(name, func(t *testing.T) {
			root, uidBase := newRoot(t)
			if err := syscall.Mount("warmboot-e2e", root, "tmpfs", 0, "mode=0711,size="+c.size); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := syscall.Unmount(root, 0); err != nil {
					t.Error(err)
				}
			})
			s := newStack(t, root, uidBase)
			id, err := s.svc.BuildSnapshot(t.Context(), s.img.ID)
			if err != nil {
				t.Fatal(err)
			}
			if c.fills {
				await(t, time.Minute, "the machine to boot", func() bool { return len(processesOf(t, s.uidBase)) > 0 })
				fill(t, filepath.Join(root, "fill"))
			}
			await(t, time.Minute, "the build to fail", func() bool {
				snap, err := s.svc.Snapshot(t.Context(), id)
				return err == nil && snap.State == warmboot.SnapshotUnhealthy
			})
			if snap, err := s.svc.Snapshot(t.Context(), id); err != nil || !strings.Contains(snap.Metadata.Error, "the disk is full") {
				t.Errorf("the build failed by %q, %v", snap.Metadata.Error, err)
			}
			s.nothingLeft(t)
		})
	}
}

// fill writes a file that takes all there is.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// killVMM kills the first VMM that appears.
func killVMM(t *testing.T, s *stack) {
	t.Helper()
	signalVMM(t, s, syscall.SIGKILL)
}

func signalVMM(t *testing.T, s *stack, signal syscall.Signal) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		if pids := processesOf(t, s.uidBase); len(pids) > 0 {
			if err := syscall.Kill(pids[0], signal); err != nil {
				t.Error(err)
			}
			return
		}
	}
	t.Error("no VMM appeared")
}

// await polls for what nothing announces.
func await(t *testing.T, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	limit *= patience
	deadline := time.Now().Add(limit)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain for %s", limit, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
