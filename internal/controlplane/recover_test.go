package controlplane_test

import (
	"fmt"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
)

// TestRestartAccountsForEverything stores and runs what a crash may leave in every state, and starts over.
func TestRestartAccountsForEverything(t *testing.T) {
	p := newPlane(t, nil)
	ctx := t.Context()
	// add makes a row in a state, and a machine on the host if there is to be one.
	add := func(name string, state warmboot.ContainerState, machine bool) warmboot.ID {
		c := &warmboot.Container{ID: warmboot.NewID(), Name: name, Image: "debian:trixie", RuntimeImageID: p.img.ID, HostID: p.host.ID, State: state, CreatedAt: time.Now().UTC()}
		c.Lease = warmboot.Lease{Owner: warmboot.NewID(), Generation: 1} // of a manager that is dead
		p.must(p.store.CreateContainer(ctx, c))
		if machine {
			if _, err := p.host.ColdBoot(ctx, controlplane.MachineSpec{Container: controlplane.ContainerRef{ID: c.ID, Generation: 1}}); err != nil {
				t.Fatal(err)
			}
			if state == warmboot.ContainerRunning {
				_, err := p.host.StartContainer(ctx, *c, nil, func(string) {})
				p.must(err)
			}
		}
		return c.ID
	}
	running := add("running", warmboot.ContainerRunning, true)
	ended := add("ended", warmboot.ContainerRunning, false)
	stopping := add("stopping", warmboot.ContainerStopping, true)
	stopped := add("stopped", warmboot.ContainerStopped, true) // its release was cut short
	creating := add("creating", warmboot.ContainerCreating, true)
	starting := add("starting", warmboot.ContainerStarting, true)
	deleting := add("deleting", warmboot.ContainerDeleting, true)
	stranger := warmboot.NewID()
	if _, err := p.host.ColdBoot(ctx, controlplane.MachineSpec{Container: controlplane.ContainerRef{ID: stranger}}); err != nil {
		t.Fatal(err)
	}
	half := &warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: p.img.ID, HostID: p.host.ID, Platform: p.host.Platform, State: warmboot.SnapshotCreating, CreatedAt: time.Now().UTC()}
	p.must(p.store.CreateSnapshot(ctx, half))
	_, err := p.host.BuildSnapshot(ctx, *half, *p.img, func(string) {})
	p.must(err)

	p.restart()

	for id, want := range map[warmboot.ID]warmboot.ContainerState{
		running: warmboot.ContainerRunning, ended: warmboot.ContainerStopped, stopping: warmboot.ContainerStopped, stopped: warmboot.ContainerStopped,
		creating: warmboot.ContainerRunning, starting: warmboot.ContainerRunning,
	} {
		eventually(t, fmt.Sprintf("%s is %s", id, want), func() (struct{}, bool) {
			got, err := p.svc.Container(ctx, string(id))
			p.must(err)
			return struct{}{}, got.State == want && !got.Lease.Held
		})
	}
	eventually(t, "what was being deleted is gone", func() (struct{}, bool) {
		_, err := p.svc.Container(ctx, string(deleting))
		return struct{}{}, warmboot.CodeOf(err) == warmboot.NotFound
	})
	onHost, _ := p.host.Containers(ctx)
	have := map[warmboot.ID]bool{}
	for _, h := range onHost {
		have[h.ID] = h.Running
	}
	for id, want := range map[warmboot.ID][2]bool{ // whether it is there, and runs
		running: {true, true}, stopping: {true, false}, stopped: {true, false}, starting: {true, true}, creating: {true, true}, deleting: {}, stranger: {},
	} {
		if runs, there := have[id]; there != want[0] || runs != want[1] {
			t.Errorf("container %s is on the host: %t, runs: %t; want %v", id, there, runs, want)
		}
	}
	if p.waitState(half.ID, warmboot.SnapshotReady); !p.host.HasSnapshot(half.ID) {
		t.Error("a build that was cut short was not taken up")
	}
	// What still ran is watched again.
	p.host.Exit(running, 0)
	p.wait(running, controlplane.WaitStopped)
}

func TestContainersOutliveTheService(t *testing.T) {
	p := newPlane(t, nil)
	c := p.create(controlplane.CreateContainer{})
	p.restart()
	if got, err := p.svc.Container(t.Context(), string(c.ID)); err != nil || got.State != warmboot.ContainerRunning {
		t.Fatalf("%+v, %v", got, err)
	}
	_, err := p.svc.StopContainer(t.Context(), string(c.ID), 0)
	p.must(err)
}
