package controlplane_test

import (
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
		c := &warmboot.Container{ID: warmboot.NewID(), Name: name, Image: "debian:trixie", RuntimeImageID: p.img.ID, State: state, CreatedAt: time.Now().UTC()}
		p.must(p.store.CreateContainer(ctx, c))
		if machine {
			if _, err := p.host.ColdBoot(ctx, controlplane.MachineSpec{Container: c.ID}); err != nil {
				t.Fatal(err)
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
	if _, err := p.host.ColdBoot(ctx, controlplane.MachineSpec{Container: stranger}); err != nil {
		t.Fatal(err)
	}
	half := &warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: p.img.ID, State: warmboot.SnapshotCreating, CreatedAt: time.Now().UTC()}
	p.must(p.store.CreateSnapshot(ctx, half))
	_, err := p.host.BuildSnapshot(ctx, *half, *p.img, func(string) {})
	p.must(err)

	p.restart()

	for id, want := range map[warmboot.ID]warmboot.ContainerState{
		running: warmboot.ContainerRunning, ended: warmboot.ContainerStopped, stopping: warmboot.ContainerStopped, stopped: warmboot.ContainerStopped,
		creating: warmboot.ContainerFailed, starting: warmboot.ContainerStopped,
	} {
		if got, err := p.svc.Container(ctx, string(id)); err != nil || got.State != want {
			t.Errorf("%+v, %v; want it %s", got, err, want)
		}
	}
	_, err = p.svc.Container(ctx, string(deleting))
	p.wantCode(err, warmboot.NotFound)
	onHost, _ := p.host.Containers(ctx)
	have := map[warmboot.ID]bool{}
	for _, h := range onHost {
		have[h.ID] = h.Running
	}
	for id, want := range map[warmboot.ID][2]bool{ // whether it is there, and runs
		running: {true, true}, stopping: {true, false}, stopped: {true, false}, starting: {true, false}, creating: {}, deleting: {}, stranger: {},
	} {
		if runs, there := have[id]; there != want[0] || runs != want[1] {
			t.Errorf("container %s is on the host: %t, runs: %t; want %v", id, there, runs, want)
		}
	}
	if snap := p.waitState(half.ID, warmboot.SnapshotUnhealthy); snap.Metadata.Error == "" {
		t.Error("nothing says why the snapshot is unhealthy")
	}
	if p.host.HasSnapshot(half.ID) {
		t.Error("the files of a build that nobody was told of are left")
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
