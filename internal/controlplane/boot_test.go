package controlplane_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
)

func TestColdBootWithoutSnapshot(t *testing.T) {
	p := newPlane(t, nil)
	c := p.create(controlplane.CreateContainer{Name: "web"})
	if c.State != warmboot.ContainerRunning || c.BootMethod != warmboot.BootCold || c.BootReason != "No runtime snapshot available" || c.SnapshotID != "" {
		t.Fatalf("%+v", c)
	}
	var names []warmboot.PhaseName
	for _, ph := range c.Phases {
		names = append(names, ph.Name)
	}
	if len(names) != 6 || names[2] != warmboot.PhaseBoot || names[5] != warmboot.PhaseStart {
		t.Errorf("phases %v", names)
	}
	id := c.ID.Short()
	p.log.want(t, `WARN Warm boot failed for container `+id+`, falling back to cold boot: No runtime snapshot available`)
	p.log.want(t, `INFO Container `+id+` VM created: `+c.VMID+` via cold boot in \d+\.\d\ds`)
	p.log.want(t, `INFO Container `+id+` fully provisioned in \d+\.\d\ds via cold boot`)
}

func TestWarmBootFromSnapshot(t *testing.T) {
	p := newPlane(t, nil)
	snap := p.snapshot()
	c := p.create(controlplane.CreateContainer{})
	if c.State != warmboot.ContainerRunning || c.BootMethod != warmboot.BootWarm || c.BootReason != "" || c.SnapshotID != snap || c.Name == "" {
		t.Fatalf("%+v", c)
	}
	id := c.ID.Short()
	p.log.want(t, `INFO Container `+id+` VM created: vm-[0-9a-f]{12} via warm boot in \d+\.\d\ds`)
	// The host says that the cold boot in the build took 60 s.
	p.log.want(t, `INFO Container `+id+` fully provisioned in \d+\.\d\ds via warm boot \(saved ~60s\)`)
	got := eventually(t, "the use is counted", func() (*warmboot.RuntimeSnapshot, bool) {
		got, err := p.svc.Snapshot(t.Context(), snap)
		p.must(err)
		return got, got.SuccessCount == 1
	})
	if got.FailureCount != 0 || got.LastUsedAt == nil {
		t.Fatalf("the use was counted as %+v", got)
	}
}

func TestSavedIsMeasuredAgainstTheLatestColdBoot(t *testing.T) {
	p := newPlane(t, nil)
	p.snapshot()
	p.create(controlplane.CreateContainer{Spec: warmboot.ContainerSpec{ColdBoot: true}}) // takes next to no time here
	c := p.create(controlplane.CreateContainer{})
	p.log.want(t, `INFO Container `+c.ID.Short()+` fully provisioned in \d+\.\d\ds via warm boot \(saved ~0s\)`)
}

func TestColdBootOnRequestLeavesTheSnapshotAlone(t *testing.T) {
	p := newPlane(t, nil)
	snap := p.snapshot()
	c := p.create(controlplane.CreateContainer{Spec: warmboot.ContainerSpec{ColdBoot: true}})
	if c.BootMethod != warmboot.BootCold || c.BootReason != "A cold boot was asked for" {
		t.Fatalf("%+v", c)
	}
	if got, _ := p.svc.Snapshot(t.Context(), snap); got.SuccessCount+got.FailureCount != 0 {
		t.Fatalf("a use was counted: %+v", got)
	}
}

func TestThreeFailuresInARowMakeASnapshotUnhealthy(t *testing.T) {
	fail := make(chan error, 10)
	built := make(chan struct{}, 1)
	built <- struct{}{}
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		heldBuilds(built)(h, c)
		c.SnapshotWait = 20 * time.Millisecond
		h.OnWarm = func(context.Context, controlplane.MachineSpec, warmboot.RuntimeSnapshot) error { return <-fail }
	})
	snap := p.snapshot()
	dead := warmboot.Errorf(warmboot.Unavailable, "restore snapshot", "Docker did not answer")
	for _, err := range []error{dead, dead, nil, dead, dead} {
		fail <- err
		c := p.create(controlplane.CreateContainer{})
		want, reason := warmboot.BootCold, dead.Error()
		if err == nil {
			want, reason = warmboot.BootWarm, ""
		}
		if c.State != warmboot.ContainerRunning || c.BootMethod != want || c.BootReason != reason {
			t.Fatalf("%+v", c)
		}
		if err != nil {
			p.log.want(t, `WARN Warm boot failed for container `+c.ID.Short()+`, falling back to cold boot: restore snapshot: Docker did not answer`)
		}
		p.waitState(snap, warmboot.SnapshotReady)
	}
	fail <- dead
	p.create(controlplane.CreateContainer{})
	got, err := p.svc.Snapshot(t.Context(), snap)
	p.must(err)
	if got.State != warmboot.SnapshotUnhealthy || got.FailureStreak != 3 || got.FailureCount != 5 || got.SuccessCount != 1 || got.Metadata.Error != dead.Error() {
		t.Fatalf("%+v", got)
	}
	p.log.want(t, `WARN Snapshot `+snap.Short()+` is unhealthy after 3 failures in a row; a new one is built`)
	next := eventually(t, "a new one is being built", func() (warmboot.ID, bool) {
		all, err := p.svc.Snapshots(t.Context(), warmboot.SnapshotFilter{})
		p.must(err)
		return all[0].ID, all[0].State == warmboot.SnapshotCreating
	})
	if c := p.create(controlplane.CreateContainer{}); c.BootReason != "Runtime snapshot "+next.Short()+" was still being built after 20ms" {
		t.Fatalf("an unhealthy snapshot was tried: %+v", c)
	}
	built <- struct{}{}
	p.waitState(next, warmboot.SnapshotReady)
	p.waitState(snap, warmboot.SnapshotDeleted)
}

func TestWhatIsNoFaultOfTheSnapshotIsNotCounted(t *testing.T) {
	var answer, coldAnswer error
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnWarm = func(context.Context, controlplane.MachineSpec, warmboot.RuntimeSnapshot) error { return answer }
		h.OnCold = func(context.Context, controlplane.MachineSpec) error { return coldAnswer }
	})
	snap := p.snapshot()
	answer = warmboot.Errorf(warmboot.Incompatible, "restore snapshot", "memory (MiB): snapshot has 512, this machine needs 1024 (%w)", controlplane.ErrMachineSize)
	for range warmboot.UnhealthyAfter + 1 {
		if c := p.create(controlplane.CreateContainer{}); c.BootMethod != warmboot.BootCold || c.BootReason != answer.Error() {
			t.Fatalf("%+v", c)
		}
	}
	// A cold boot may do without what was lacking; if not, what it says is what counts.
	colds := warmboot.UnhealthyAfter + 1
	for _, code := range []warmboot.Code{warmboot.Conflict, warmboot.Invalid, warmboot.Exhausted} {
		answer = warmboot.Errorf(code, "restore snapshot", "there is no room for a copy of its disk")
		coldAnswer = nil
		if c := p.create(controlplane.CreateContainer{}); c.State != warmboot.ContainerRunning || c.BootMethod != warmboot.BootCold || c.BootReason != answer.Error() {
			t.Fatalf("%+v", c)
		}
		coldAnswer = warmboot.Errorf(code, "cold boot", "the host is full")
		if c := p.create(controlplane.CreateContainer{}); c.State != warmboot.ContainerFailed || c.Error != coldAnswer.Error() {
			t.Fatalf("%+v", c)
		}
		colds++ // one that fails is not counted
	}
	coldAnswer = nil
	answer = warmboot.Errorf(warmboot.Incompatible, "warm boot", "update it (%w)", controlplane.ErrUnknownCall)
	if c := p.create(controlplane.CreateContainer{}); c.BootMethod != warmboot.BootCold || c.BootReason != answer.Error() {
		t.Fatalf("%+v", c)
	}
	colds++
	got, err := p.svc.Snapshot(t.Context(), snap)
	p.must(err)
	if got.State != warmboot.SnapshotReady || got.FailureCount != 0 {
		t.Fatalf("%+v", got)
	}
	if _, cold, builds := p.host.Counts(); cold != colds || builds != 1 {
		t.Errorf("%d cold boots, %d builds", cold, builds)
	}
}

func TestCreateWaitsForASnapshotThatIsBeingBuilt(t *testing.T) {
	goOn := make(chan struct{})
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnBuild = func(context.Context, warmboot.RuntimeSnapshot) error { <-goOn; return nil }
	})
	snap, err := p.svc.BuildSnapshot(t.Context(), p.img.ID)
	p.must(err)
	c, err := p.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Image: "debian:trixie"})
	p.must(err)
	eventually(t, "the build tells its step", func() (struct{}, bool) {
		now, err := p.svc.Snapshot(t.Context(), snap)
		return struct{}{}, err == nil && now.Metadata.Step == "booting"
	})
	if now, _ := p.svc.Container(t.Context(), string(c.ID)); now.State != warmboot.ContainerCreating || now.BootMethod != "" {
		t.Fatalf("it did not wait: %+v", now)
	}
	close(goOn)
	if c := p.wait(c.ID, controlplane.WaitStarted); c.BootMethod != warmboot.BootWarm || c.SnapshotID != snap {
		t.Fatalf("%+v", c)
	}
	if now := p.waitState(snap, warmboot.SnapshotReady); now.Metadata.Step != "" {
		t.Errorf("the step is not over: %+v", now)
	}
}

func TestCreateDoesNotWaitForEverForASnapshot(t *testing.T) {
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		c.SnapshotWait = 20 * time.Millisecond
		h.OnBuild = func(ctx context.Context, _ warmboot.RuntimeSnapshot) error { <-ctx.Done(); return ctx.Err() }
	})
	snap, err := p.svc.BuildSnapshot(t.Context(), p.img.ID)
	p.must(err)
	if c := p.create(controlplane.CreateContainer{}); c.BootMethod != warmboot.BootCold || c.BootReason != "Runtime snapshot "+snap.Short()+" was still being built after 20ms" {
		t.Fatalf("%+v", c)
	}
}

func TestCreateWaitsNoLongerThanTheBuildThatFails(t *testing.T) {
	goOn := make(chan struct{})
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnBuild = func(context.Context, warmboot.RuntimeSnapshot) error {
			<-goOn
			return warmboot.Errorf(warmboot.Exhausted, "build snapshot", "the disk is full")
		}
	})
	snap, err := p.svc.BuildSnapshot(t.Context(), p.img.ID)
	p.must(err)
	c, err := p.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Image: "debian:trixie"})
	p.must(err)
	close(goOn)
	if c := p.wait(c.ID, controlplane.WaitStarted); c.BootReason != "Runtime snapshot "+snap.Short()+" is unhealthy" {
		t.Fatalf("%+v", c)
	}
	if got := p.waitState(snap, warmboot.SnapshotUnhealthy); got.Metadata.Error != "build snapshot: the disk is full" {
		t.Fatalf("%+v", got)
	}
}

func TestFailedColdBootFailsTheContainerAndLeavesNothing(t *testing.T) {
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnCold = func(context.Context, controlplane.MachineSpec) error { return errors.New("no kernel") }
	})
	c := p.create(controlplane.CreateContainer{})
	if c.State != warmboot.ContainerFailed || c.Error != "no kernel" || c.BootMethod != "" || c.VMID != "" {
		t.Fatalf("%+v", c)
	}
	if left, _ := p.host.Containers(t.Context()); len(left) != 0 {
		t.Fatalf("left on the host: %v", left)
	}
}

// A machine in which Docker has answered, and that ends before it has started its command, may have a snapshot that is wrong: the container starts all the same.
func TestAWarmMachineThatEndsBeforeItsCommandIsStarted(t *testing.T) {
	ended := warmboot.Errorf(warmboot.Unavailable, "start container", "the VMM's process ended (%w)", controlplane.ErrNotStarted)
	ranAlready := warmboot.Errorf(warmboot.Unavailable, "start container", "the VMM's process ended; its command may have run")
	inTheWay := errors.New("device or resource busy")
	for _, tt := range []struct {
		name       string
		warm, cold error // of the start of the command
		remove     error // of the first removal of what is left
		state      warmboot.ContainerState
		method     warmboot.BootMethod
		colds      int
		successes  int
	}{
		{"it is started in another", ended, nil, nil, warmboot.ContainerRunning, warmboot.BootCold, 1, 0},
		{"so does the other", ended, ended, nil, warmboot.ContainerFailed, warmboot.BootCold, 1, 0},
		{"its command may have run", ranAlready, nil, nil, warmboot.ContainerFailed, warmboot.BootWarm, 0, 1},
		{"what is left of it is in the way", ended, nil, inTheWay, warmboot.ContainerFailed, warmboot.BootWarm, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var removals atomic.Int32
			p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
				h.OnRemove = func(context.Context, warmboot.ID) error {
					if removals.Add(1) == 1 {
						return tt.remove
					}
					return nil
				}
				h.OnStart = func(_ context.Context, c warmboot.Container) error {
					if c.BootMethod == warmboot.BootWarm {
						return tt.warm
					}
					return tt.cold
				}
			})
			snap := p.snapshot()
			c := p.create(controlplane.CreateContainer{})
			if c.State != tt.state || c.BootMethod != tt.method {
				t.Errorf("it is %s, booted %s: %s", c.State, c.BootMethod, c.Error)
			}
			if tt.colds > 0 {
				if c.BootReason != ended.Error() || c.SnapshotID != "" {
					t.Errorf("it booted cold because %q, from snapshot %q", c.BootReason, c.SnapshotID)
				}
				p.log.want(t, `WARN Warm boot failed for container `+c.ID.Short()+`, falling back to cold boot: start container: the VMM's process ended .*`)
			}
			if warm, cold, _ := p.host.Counts(); warm != 1 || cold != tt.colds {
				t.Errorf("%d warm boots, %d cold boots", warm, cold)
			}
			eventually(t, "the restore is counted", func() (struct{}, bool) {
				got, err := p.svc.Snapshot(t.Context(), snap)
				p.must(err)
				return struct{}{}, got.SuccessCount == int64(tt.successes) && got.FailureCount == int64(1-tt.successes)
			})
			if left, err := p.host.Containers(t.Context()); err != nil || (len(left) > 0) != (tt.state == warmboot.ContainerRunning) {
				t.Errorf("the host has %v, %v", left, err)
			}
		})
	}
}

// A snapshot whose machines all end so is as unhealthy as one whose machines do not come up.
func TestMachinesThatEndBeforeTheirCommandIsStartedMakeASnapshotUnhealthy(t *testing.T) {
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		c.RebuildDelays = []time.Duration{time.Hour}
		h.OnStart = func(_ context.Context, c warmboot.Container) error {
			if c.BootMethod == warmboot.BootWarm {
				return warmboot.Errorf(warmboot.Unavailable, "start container", "the VMM's process ended (%w)", controlplane.ErrNotStarted)
			}
			return nil
		}
	})
	snap := p.snapshot()
	for range warmboot.UnhealthyAfter {
		if c := p.create(controlplane.CreateContainer{}); c.State != warmboot.ContainerRunning {
			t.Fatalf("%+v", c)
		}
	}
	p.waitState(snap, warmboot.SnapshotUnhealthy)
}
