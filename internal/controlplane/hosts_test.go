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
	"warmboot/internal/store"
)

func namedHost(name, platform string) *hosttest.Host {
	h := hosttest.New()
	h.Name, h.Platform, h.MaxVMs = name, platform, 4
	return h
}

// on counts the containers on each host.
func (c *cluster) on() map[string]int {
	c.t.Helper()
	n := map[string]int{}
	for _, h := range c.hosts {
		all, _ := h.Containers(c.t.Context())
		n[h.Name] = len(all)
	}
	return n
}

func TestPlacement(t *testing.T) {
	one, two, other := namedHost("one", "p"), namedHost("two", "p"), namedHost("zother", "q")
	var fetched []warmboot.ID
	two.OnFetch = func(_ context.Context, snap warmboot.RuntimeSnapshot, peers []controlplane.Peer) error {
		if len(peers) != 1 || peers[0].ID != one.ID || peers[0].Address != "one:7000" {
			t.Errorf("peers %v", peers)
		}
		fetched = append(fetched, snap.ID)
		return nil
	}
	c := newCluster(t, one, two, other)
	snap := c.snapshot() // on the first of the hosts that are alike
	for range 4 {
		if got := c.create(controlplane.CreateContainer{}); got.HostID != one.ID || got.BootMethod != warmboot.BootWarm {
			t.Fatalf("not where the snapshot is: %+v", got)
		}
	}
	// It is full now. The next host fetches the snapshot, the last one cannot use it.
	for range 4 {
		if got := c.create(controlplane.CreateContainer{}); got.HostID != two.ID || got.BootMethod != warmboot.BootWarm || got.SnapshotID != snap {
			t.Fatalf("not where the snapshot can be fetched: %+v", got)
		}
	}
	if len(fetched) == 0 || fetched[0] != snap {
		t.Errorf("fetched %v", fetched)
	}
	if got := c.create(controlplane.CreateContainer{}); got.HostID != other.ID || got.BootMethod != warmboot.BootCold || got.BootReason != "No runtime snapshot available" {
		t.Fatalf("%+v", got)
	}
	for range 3 {
		c.create(controlplane.CreateContainer{})
	}
	err := eventually(t, "there is no place left", func() (error, bool) {
		_, err := c.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Image: "debian:trixie"})
		return err, err != nil
	})
	c.wantCode(err, warmboot.Exhausted, "no host can take it", "3 full")
	if on := c.on(); on["one"] != 4 || on["two"] != 4 || on["zother"] != 4 {
		t.Errorf("on the hosts: %v", on)
	}
}

func TestASnapshotThatCannotBeFetchedIsNotNeeded(t *testing.T) {
	one, two := namedHost("one", "p"), namedHost("two", "p")
	two.OnFetch = func(context.Context, warmboot.RuntimeSnapshot, []controlplane.Peer) error {
		return warmboot.Errorf(warmboot.Corrupt, "fetch snapshot", "the connection broke")
	}
	c := newCluster(t, one, two)
	snap := c.snapshot()
	_, err := c.svc.CordonHost(t.Context(), "one", true)
	c.must(err)
	got := c.create(controlplane.CreateContainer{})
	if got.HostID != two.ID || got.BootMethod != warmboot.BootCold || got.BootReason != "Runtime snapshot "+snap.Short()+" could not be fetched from another host: fetch snapshot: the connection broke" {
		t.Fatalf("%+v", got)
	}
	if now, _ := c.svc.Snapshot(t.Context(), snap); now.FailureCount != 0 {
		t.Errorf("it was counted against the snapshot: %+v", now)
	}
}

func TestAHostThatDoesNotBringItUp(t *testing.T) {
	one, two := namedHost("one", "p"), namedHost("two", "p")
	one.OnCold = func(context.Context, controlplane.MachineSpec) error {
		return warmboot.Errorf(warmboot.Exhausted, "cold boot", "the disk is full")
	}
	c := newCluster(t, one, two)
	got := c.create(controlplane.CreateContainer{})
	if got.State != warmboot.ContainerRunning || got.HostID != two.ID {
		t.Fatalf("%+v", got)
	}
	// With no other host, it fails for the first one's reason.
	_, err := c.svc.CordonHost(t.Context(), "two", true)
	c.must(err)
	if got = c.create(controlplane.CreateContainer{}); got.State != warmboot.ContainerFailed || got.Error != "cold boot: the disk is full" {
		t.Fatalf("%+v", got)
	}
	if on := c.on(); on["one"] != 0 || on["two"] != 1 {
		t.Errorf("on the hosts: %v", on)
	}
}

func (c *cluster) waitHost(h *hosttest.Host, want warmboot.HostState) {
	c.t.Helper()
	eventually(c.t, h.Name+" is "+string(want), func() (struct{}, bool) {
		return struct{}{}, c.a.Service.HostState(h.ID) == want && c.b.Service.HostState(h.ID) == want
	})
}

// TestAHostThatStopsAnswering is about what happens to its containers: nothing, until it is back.
func TestAHostThatStopsAnswering(t *testing.T) {
	one, two := namedHost("one", "p"), namedHost("two", "p")
	c := newCluster(t, one, two)
	ctx := t.Context()
	_, err := c.svc.CordonHost(ctx, "two", true)
	c.must(err)
	kept, gone, ends := c.create(controlplane.CreateContainer{Name: "kept"}), c.create(controlplane.CreateContainer{Name: "gone"}), c.create(controlplane.CreateContainer{Name: "ends"})
	one.Away(true)
	c.waitHost(one, warmboot.HostDown)
	if now, err := c.svc.Container(ctx, "kept"); err != nil || now.State != warmboot.ContainerRunning {
		t.Fatalf("%+v, %v", now, err)
	}
	_, err = c.svc.StopContainer(ctx, "kept", 0)
	c.wantCode(err, warmboot.Unavailable, "host one is down")
	_, err = c.svc.Exec(ctx, "kept", controlplane.ExecSpec{Command: []string{"id"}})
	c.wantCode(err, warmboot.Unavailable, "host one is down")
	c.must(c.svc.DeleteContainer(ctx, "gone", true)) // whoever wants can be rid of it
	_, err = c.svc.CreateContainer(ctx, controlplane.CreateContainer{Image: "debian:trixie"})
	c.wantCode(err, warmboot.Unavailable, "1 cordoned, 1 down")
	if on := c.on(); on["one"] != 3 || on["two"] != 0 {
		t.Errorf("on the hosts: %v", on)
	}
	one.Exit(ends.ID, 7) // and nobody hears of it

	one.Away(false)
	c.waitHost(one, warmboot.HostUp)
	eventually(t, "what was deleted is removed", func() (struct{}, bool) { return struct{}{}, c.on()["one"] == 2 })
	if now := c.waitOn(c.a, ends.ID, controlplane.WaitStopped); now.ExitCode == nil || *now.ExitCode != 7 {
		t.Errorf("%+v", now)
	}
	if now, err := c.svc.Container(ctx, "kept"); err != nil || now.State != warmboot.ContainerRunning || now.VMID != kept.VMID {
		t.Errorf("%+v, %v", now, err)
	}
	_, err = c.svc.Container(ctx, string(gone.ID))
	c.wantCode(err, warmboot.NotFound)
}

// TestAHostIsLostWhileItBoots places a container elsewhere as long as its command cannot have run, and waits for the host after that.
func TestAHostIsLostWhileItBoots(t *testing.T) {
	one, two := namedHost("one", "p"), namedHost("two", "p")
	unreachable := warmboot.Errorf(warmboot.Unavailable, "reach host", "%w", controlplane.ErrUnreachable)
	one.OnCold = func(_ context.Context, m controlplane.MachineSpec) error {
		if m.Hostname == "boots" {
			return unreachable
		}
		return nil
	}
	lost := make(chan struct{}, 1)
	lost <- struct{}{}
	one.OnStart = func(_ context.Context, got warmboot.Container) error {
		if got.Name == "starts" {
			select {
			case <-lost:
				return unreachable
			default:
			}
		}
		return nil
	}
	c := newCluster(t, one, two)
	if got := c.create(controlplane.CreateContainer{Name: "boots"}); got.State != warmboot.ContainerRunning || got.HostID != two.ID {
		t.Fatalf("%+v", got)
	}
	_, err := c.svc.CordonHost(t.Context(), "two", true)
	c.must(err)
	got := c.create(controlplane.CreateContainer{Name: "starts"})
	if got.State != warmboot.ContainerRunning || got.HostID != one.ID || got.Lease.Generation < 2 {
		t.Fatalf("it was not taken up: %+v", got)
	}
}

func TestDrain(t *testing.T) {
	one, two := namedHost("one", "p"), namedHost("two", "p")
	c := newCluster(t, one, two)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var all []*warmboot.Container
	for range 4 {
		all = append(all, c.create(controlplane.CreateContainer{}))
	}
	if on := c.on(); on["one"] == 0 || on["two"] == 0 {
		t.Fatalf("they are not spread: %v", on)
	}
	h, err := c.b.Service.DrainHost(ctx, "one", time.Second)
	c.must(err)
	if !h.Cordoned {
		t.Error("it is not cordoned")
	}
	for _, was := range all {
		now, err := c.svc.Container(ctx, string(was.ID))
		c.must(err)
		want := warmboot.ContainerRunning
		if was.HostID == one.ID {
			want = warmboot.ContainerStopped
		}
		if now.State != want {
			t.Errorf("on host %s: %+v", c.svc.HostName(was.HostID), now)
		}
	}
	eventually(t, "a knows that it is cordoned", func() (struct{}, bool) {
		placed, err := c.svc.CreateContainer(ctx, controlplane.CreateContainer{Image: "debian:trixie"})
		c.must(err)
		return struct{}{}, placed.HostID == two.ID
	})
	c.wantCode(c.svc.RemoveHost(ctx, "one"), warmboot.Conflict, "one is up")
	one.Away(true)
	c.waitHost(one, warmboot.HostDown)
	c.wantCode(c.svc.RemoveHost(ctx, "one"), warmboot.Conflict, "containers and 0 snapshots")
	there, err := c.svc.Containers(ctx, warmboot.ContainerFilter{HostID: one.ID})
	c.must(err)
	for _, was := range there {
		c.must(c.svc.DeleteContainer(ctx, string(was.ID), true))
	}
	eventually(t, "it can be forgotten", func() (struct{}, bool) { return struct{}{}, c.svc.RemoveHost(ctx, "one") == nil })
}

func restartPolicy(name warmboot.RestartName) warmboot.ContainerSpec {
	return warmboot.ContainerSpec{RestartPolicy: warmboot.RestartPolicy{Name: name}}
}

func TestContainersOfABootedHostComeBackByTheirPolicy(t *testing.T) {
	p := newPlane(t, nil)
	ctx := t.Context()
	for name, policy := range map[string]warmboot.RestartName{
		"never": warmboot.RestartNo, "always": warmboot.RestartAlways, "always-stopped": warmboot.RestartAlways,
		"unless": warmboot.RestartUnlessStopped, "unless-stopped": warmboot.RestartUnlessStopped, "failure": warmboot.RestartOnFailure,
	} {
		p.create(controlplane.CreateContainer{Name: name, Spec: restartPolicy(policy)})
	}
	for _, name := range []string{"always-stopped", "unless-stopped"} {
		_, err := p.svc.StopContainer(ctx, name, 0)
		p.must(err)
	}
	p.stop()
	p.host.Reboot()
	p.start()
	for name, want := range map[string]warmboot.ContainerState{
		"never": warmboot.ContainerStopped, "unless-stopped": warmboot.ContainerStopped,
		"always": warmboot.ContainerRunning, "always-stopped": warmboot.ContainerRunning, "unless": warmboot.ContainerRunning, "failure": warmboot.ContainerRunning,
	} {
		c := eventually(t, name+" is "+string(want), func() (*warmboot.Container, bool) {
			c, err := p.svc.Container(ctx, name)
			p.must(err)
			return c, c.State == want
		})
		if want == warmboot.ContainerRunning && (c.Restarts != 1 || c.BootMethod != warmboot.BootCold) || name == "never" && c.Error != "its host was booted again" {
			t.Errorf("%+v", c)
		}
	}
}

func TestAMachineThatDiesComesBackByItsPolicy(t *testing.T) {
	p := newPlane(t, nil)
	limited := restartPolicy(warmboot.RestartOnFailure)
	limited.RestartPolicy.MaxRetries = 1
	c := p.create(controlplane.CreateContainer{Name: "web", Spec: limited})
	p.host.Crash(c.ID)
	back := eventually(t, "it runs again", func() (*warmboot.Container, bool) {
		now, err := p.svc.Container(t.Context(), "web")
		p.must(err)
		return now, now.State == warmboot.ContainerRunning && now.Restarts == 1
	})
	if back.VMID == c.VMID || back.BootReason != "It was started again, from its own disk, because its restart policy is on-failure:1" {
		t.Errorf("%+v", back)
	}
	p.host.Crash(c.ID)
	p.wait(c.ID, controlplane.WaitStopped)
	// Its one retry is used up; a person may start it again, and it gets another.
	_, err := p.svc.StartContainer(t.Context(), "web")
	p.must(err)
	if now := p.wait(c.ID, controlplane.WaitStarted); now.Restarts != 0 {
		t.Errorf("%+v", now)
	}
	// A command that ends is the business of the Docker in its machine.
	p.host.Exit(c.ID, 3)
	if now := p.wait(c.ID, controlplane.WaitStopped); now.ExitCode == nil || *now.ExitCode != 3 || now.ShouldRestart(false) != true {
		t.Errorf("%+v", now)
	}
}

// A machine that dies just after its command has ended may have been about to start it again.
func TestAMachineThatDiesAfterItsCommandComesBackByItsPolicy(t *testing.T) {
	p := newPlane(t, nil)
	for name, policy := range map[string]warmboot.RestartName{"always": warmboot.RestartAlways, "failure": warmboot.RestartOnFailure} {
		c := p.create(controlplane.CreateContainer{Name: name, Spec: restartPolicy(policy)})
		p.host.ExitCut(c.ID, 3)
		eventually(t, name+" runs again", func() (bool, bool) {
			now, err := p.svc.Container(t.Context(), name)
			p.must(err)
			return true, now.State == warmboot.ContainerRunning && now.Restarts == 1
		})
	}
	for name, c := range map[string]struct {
		policy warmboot.RestartName
		code   int
	}{"never": {warmboot.RestartNo, 3}, "good": {warmboot.RestartOnFailure, 0}} {
		made := p.create(controlplane.CreateContainer{Name: name, Spec: restartPolicy(c.policy)})
		p.host.ExitCut(made.ID, c.code)
		if now := p.wait(made.ID, controlplane.WaitStopped); now.ExitCode == nil || *now.ExitCode != c.code || now.Error != "" || now.ShouldRestart(false) {
			t.Errorf("%+v", now)
		}
	}
}

// TestARestartThatFailsIsTriedAgain: what a restart policy has begun it goes on with, as long as it may.
func TestARestartThatFailsIsTriedAgain(t *testing.T) {
	var boots atomic.Int32
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnCold = func(_ context.Context, m controlplane.MachineSpec) error {
			if n := boots.Add(1); n == 3 || n == 4 || m.Spec.RestartPolicy.Name == warmboot.RestartOnFailure && n > 2 {
				return errors.New("no memory")
			}
			return nil
		}
	})
	always := p.create(controlplane.CreateContainer{Name: "always", Spec: restartPolicy(warmboot.RestartAlways)}) // first
	limited := restartPolicy(warmboot.RestartOnFailure)
	limited.RestartPolicy.MaxRetries = 1
	once := p.create(controlplane.CreateContainer{Name: "once", Spec: limited}) // second
	p.host.Crash(always.ID)
	back := eventually(t, "it runs again", func() (*warmboot.Container, bool) {
		now, err := p.svc.Container(t.Context(), "always")
		p.must(err)
		return now, now.State == warmboot.ContainerRunning && now.Restarts > 0
	})
	if back.Restarts != 3 || back.Error != "" || boots.Load() != 5 {
		t.Errorf("after %d boots: %+v", boots.Load(), back)
	}
	p.host.Crash(once.ID)
	failed := eventually(t, "it has failed to run again", func() (*warmboot.Container, bool) {
		now, err := p.svc.Container(t.Context(), "once")
		p.must(err)
		return now, now.State == warmboot.ContainerStopped && now.Restarts == 1
	})
	if failed.ShouldRestart(false) || failed.Error != "no memory" {
		t.Errorf("%+v", failed)
	}
}

func TestWhatAnOldDatabaseHasForgottenIsKnownAgain(t *testing.T) {
	p := newPlane(t, nil)
	ctx := t.Context()
	old := p.create(controlplane.CreateContainer{Name: "old"})
	forgotten := p.create(controlplane.CreateContainer{Name: "forgotten"})
	deleted := p.create(controlplane.CreateContainer{Name: "deleted"})
	p.stop()
	// As if the database were an hour old: one container is not in it yet, and another's lease is an older one. A third was
	// deleted while its host was away.
	p.offline(func(st *store.Store) {
		p.must(st.DeleteContainer(ctx, forgotten.ID))
		p.must(st.ForgetDeletedContainers(ctx, time.Now().Add(time.Hour)))
		p.must(st.DeleteContainer(ctx, deleted.ID))
		_, err := st.UpdateContainer(ctx, old.ID, func(c *warmboot.Container) error { c.Lease.Generation = 0; return nil })
		p.must(err)
	})
	p.start()
	p.log.want(t, `WARN Container forgotten .* was not known any more; it is known again.*`)
	now, err := p.svc.Container(ctx, "forgotten")
	p.must(err)
	if now.ID != forgotten.ID || now.State != warmboot.ContainerRunning || now.Image != forgotten.Image || now.HostID != p.host.ID {
		t.Errorf("%+v", now)
	}
	_, err = p.svc.Container(ctx, string(deleted.ID))
	p.wantCode(err, warmboot.NotFound)
	if all, _ := p.host.Containers(ctx); len(all) != 2 {
		t.Errorf("on the host: %v", all)
	}
	for _, name := range []string{"old", "forgotten"} {
		_, err = p.svc.StopContainer(ctx, name, 0)
		p.must(err)
	}
}

// TestCordonHoldsForEveryManager has one manager asked in the moment after the other has cordoned a host.
func TestCordonHoldsForEveryManager(t *testing.T) {
	one, two := namedHost("one", "p"), namedHost("two", "p")
	c := newCluster(t, one, two)
	for range 2 {
		_, err := c.b.Service.CordonHost(t.Context(), "one", true)
		c.must(err)
		if got := c.create(controlplane.CreateContainer{}); got.HostID != two.ID {
			t.Fatalf("%+v", got)
		}
		_, err = c.b.Service.CordonHost(t.Context(), "one", false)
		c.must(err)
		_, err = c.b.Service.CordonHost(t.Context(), "two", true)
		c.must(err)
		if got := c.create(controlplane.CreateContainer{}); got.HostID != one.ID {
			t.Fatalf("%+v", got)
		}
		_, err = c.b.Service.CordonHost(t.Context(), "two", false)
		c.must(err)
	}
}
