package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
)

func TestCommandThatEndsByItself(t *testing.T) {
	p := newPlane(t, nil)
	c := p.create(controlplane.CreateContainer{Name: "web"})
	p.host.Exit(c.ID, 3)
	c = p.wait(c.ID, controlplane.WaitStopped)
	if c.State != warmboot.ContainerStopped || c.ExitCode == nil || *c.ExitCode != 3 || c.VMID != "" || c.FinishedAt == nil {
		t.Fatalf("%+v", c)
	}
	// It can be started again at once, though the end is still being cleaned up after.
	c, err := p.svc.StartContainer(t.Context(), "web")
	p.must(err)
	c = p.wait(c.ID, controlplane.WaitStarted)
	if c.State != warmboot.ContainerRunning || c.BootMethod != warmboot.BootCold || c.BootReason != "It was started again, from its own disk" || c.ExitCode != nil {
		t.Fatalf("%+v", c)
	}
	for _, ph := range c.Phases {
		if ph.Name == warmboot.PhasePull {
			t.Error("the image was pulled again")
		}
	}
}

func TestMachineThatDies(t *testing.T) {
	p := newPlane(t, nil)
	c := p.create(controlplane.CreateContainer{})
	p.host.Crash(c.ID)
	c = p.wait(c.ID, controlplane.WaitStopped)
	if c.State != warmboot.ContainerStopped || c.ExitCode != nil || c.Error != "wait: the microVM ended unexpectedly" {
		t.Fatalf("%+v", c)
	}
}

// TestStopStartWithoutPause never waits for more than the state that the API shows.
func TestStopStartWithoutPause(t *testing.T) {
	p := newPlane(t, nil)
	id := string(p.create(controlplane.CreateContainer{Name: "web"}).ID)
	for range 10 {
		c, err := p.svc.StopContainer(t.Context(), id, time.Second)
		p.must(err)
		if c.State != warmboot.ContainerStopped || c.ExitCode == nil || *c.ExitCode != 143 {
			t.Fatalf("%+v", c)
		}
		_, err = p.svc.StopContainer(t.Context(), id, time.Second)
		p.must(err)
		c, err = p.svc.StartContainer(t.Context(), id)
		p.must(err)
		if c = p.wait(c.ID, controlplane.WaitStarted); c.State != warmboot.ContainerRunning {
			t.Fatalf("%+v", c)
		}
		_, err = p.svc.StartContainer(t.Context(), id)
		p.must(err)
	}
}

func TestManyStopsAtOnceAreOne(t *testing.T) {
	p := newPlane(t, nil)
	id := string(p.create(controlplane.CreateContainer{}).ID)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			c, err := p.svc.StopContainer(t.Context(), id, time.Second)
			if err != nil || c.State != warmboot.ContainerStopped {
				t.Errorf("%v, %v", c, err)
			}
		})
	}
	wg.Wait()
}

func TestStopOutlivesTheCaller(t *testing.T) {
	stopping, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnStop = func(context.Context, warmboot.ID) error {
			once.Do(func() { close(stopping); <-goOn })
			return nil
		}
	})
	id := p.create(controlplane.CreateContainer{}).ID
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-stopping; cancel() }()
	_, err := p.svc.StopContainer(ctx, string(id), time.Second)
	p.wantCode(err, warmboot.Canceled)
	close(goOn)
	if c := p.wait(id, controlplane.WaitStopped); c.State != warmboot.ContainerStopped {
		t.Fatalf("%+v", c)
	}
}

func TestWhatIsRefused(t *testing.T) {
	held := make(chan struct{})
	defer close(held)
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnStart = func(ctx context.Context, c warmboot.Container) error {
			if c.Name != "slow" {
				return nil
			}
			select {
			case <-held:
			case <-ctx.Done():
			}
			return ctx.Err()
		}
	})
	ctx := t.Context()
	create := func(in controlplane.CreateContainer) error {
		_, err := p.svc.CreateContainer(ctx, in)
		return err
	}
	p.create(controlplane.CreateContainer{Name: "web"})
	p.must(create(controlplane.CreateContainer{Name: "slow", Image: "debian:trixie"}))
	unknown := warmboot.NewID()
	p.wantCode(create(controlplane.CreateContainer{Image: "debian:trixie", RuntimeImageID: unknown}), warmboot.NotFound, string(unknown))
	p.wantCode(create(controlplane.CreateContainer{Image: "debian:trixie", Name: "a b"}), warmboot.Invalid, "a b")
	p.wantCode(create(controlplane.CreateContainer{Image: "Not An Image"}), warmboot.Invalid, "Not An Image")
	p.wantCode(create(controlplane.CreateContainer{Image: "debian:trixie", Name: "web"}), warmboot.Conflict, "web")
	p.wantCode(p.svc.DeleteContainer(ctx, "web", false), warmboot.Conflict, "running", "force")
	_, err := p.svc.StopContainer(ctx, "slow", 0)
	p.wantCode(err, warmboot.Conflict, "creating")
	_, err = p.svc.StartContainer(ctx, "slow")
	p.wantCode(err, warmboot.Conflict, "creating")
	_, err = p.svc.Exec(ctx, "slow", controlplane.ExecSpec{Command: []string{"cat"}})
	p.wantCode(err, warmboot.Conflict, "creating")
	_, err = p.svc.Exec(ctx, "web", controlplane.ExecSpec{})
	p.wantCode(err, warmboot.Invalid, "command")
	for _, err := range []error{p.svc.DeleteContainer(ctx, "absent", true), p.svc.DeleteImage(ctx, "absent")} {
		p.wantCode(err, warmboot.NotFound, "absent")
	}
	p.wantCode(p.svc.DeleteImage(ctx, "runtime"), warmboot.Conflict)
}

func TestNoImageIsRegistered(t *testing.T) {
	p := newPlane(t, nil)
	p.must(p.svc.DeleteImage(t.Context(), "runtime"))
	_, err := p.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Image: "debian:trixie"})
	p.wantCode(err, warmboot.Conflict, "warmboot image build")
}

func TestImagesOfOneName(t *testing.T) {
	p := newPlane(t, nil)
	same, err := p.svc.RegisterImage(t.Context(), *p.img)
	p.must(err)
	if same.ID != p.img.ID {
		t.Errorf("the same content got another id, %s", same.ID)
	}
	other := *p.img
	other.RootfsPath += ".new"
	_, err = p.svc.RegisterImage(t.Context(), other)
	p.wantCode(err, warmboot.Conflict, "runtime")
}

func TestDeleteWhileCreating(t *testing.T) {
	booting := make(chan struct{}, 1)
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnCold = func(ctx context.Context, _ controlplane.MachineSpec) error {
			booting <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
	})
	c, err := p.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Name: "web", Image: "debian:trixie"})
	p.must(err)
	<-booting
	p.must(p.svc.DeleteContainer(t.Context(), "web", false))
	_, err = p.svc.Container(t.Context(), string(c.ID))
	p.wantCode(err, warmboot.NotFound)
	if left, _ := p.host.Containers(t.Context()); len(left) != 0 {
		t.Fatalf("left on the host: %v", left)
	}
}

// TestCreatesAndDeletesRace deletes containers at whatever moment of their start it happens to be.
func TestCreatesAndDeletesRace(t *testing.T) {
	p := newPlane(t, nil)
	p.snapshot()
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			name := fmt.Sprintf("c%d", i)
			if _, err := p.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Name: name, Image: "debian:trixie"}); err != nil {
				t.Error(err)
			}
			if i%2 == 0 {
				if _, err := p.svc.WaitContainer(t.Context(), name, controlplane.WaitStarted); err != nil {
					t.Error(err)
				}
			}
			if err := p.svc.DeleteContainer(t.Context(), name, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	rows, err := p.svc.Containers(t.Context(), warmboot.ContainerFilter{})
	p.must(err)
	left, _ := p.host.Containers(t.Context())
	if len(rows)+len(left) != 0 {
		t.Fatalf("left: %v in the store, %v on the host", rows, left)
	}
}

func TestFailedPullFailsTheContainer(t *testing.T) {
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnStart = func(context.Context, warmboot.Container) error {
			return warmboot.Errorf(warmboot.ImagePull, "pull", "the registry does not have it")
		}
	})
	snap := p.snapshot()
	c := p.create(controlplane.CreateContainer{})
	if c.State != warmboot.ContainerFailed || c.Error != "pull: the registry does not have it" {
		t.Fatalf("%+v", c)
	}
	eventually(t, "the restore, which went well, is counted", func() (struct{}, bool) {
		got, _ := p.svc.Snapshot(t.Context(), snap)
		return struct{}{}, got.SuccessCount == 1 && got.FailureCount == 0
	})
	if left, _ := p.host.Containers(t.Context()); len(left) != 0 {
		t.Fatalf("left on the host: %v", left)
	}
	p.must(p.svc.DeleteContainer(t.Context(), string(c.ID), false))
}

func TestRestartThatFailsKeepsTheDisk(t *testing.T) {
	fail := false
	p := newPlane(t, func(h *hosttest.Host, _ *controlplane.Config) {
		h.OnCold = func(context.Context, controlplane.MachineSpec) error {
			if fail {
				return errors.New("no memory")
			}
			return nil
		}
	})
	c := p.create(controlplane.CreateContainer{})
	_, err := p.svc.StopContainer(t.Context(), string(c.ID), 0)
	p.must(err)
	fail = true
	_, err = p.svc.StartContainer(t.Context(), string(c.ID))
	p.must(err)
	if c = p.wait(c.ID, controlplane.WaitStarted); c.State != warmboot.ContainerStopped || c.Error != "no memory" {
		t.Fatalf("%+v", c)
	}
	if left, _ := p.host.Containers(t.Context()); len(left) != 1 || left[0].Running {
		t.Fatalf("on the host: %v", left)
	}
	fail = false
	_, err = p.svc.StartContainer(t.Context(), string(c.ID))
	p.must(err)
	if c = p.wait(c.ID, controlplane.WaitStarted); c.State != warmboot.ContainerRunning || c.Error != "" {
		t.Fatalf("%+v", c)
	}
}

func TestDeleteThatFailsCanBeTriedAgain(t *testing.T) {
	fail := true
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		c.Beat = time.Hour // else it is tried again without being asked
		h.OnRemove = func(context.Context, warmboot.ID) error {
			if fail {
				return errors.New("busy")
			}
			return nil
		}
	})
	c := p.create(controlplane.CreateContainer{})
	if err := p.svc.DeleteContainer(t.Context(), string(c.ID), true); err == nil {
		t.Fatal("no error")
	}
	if got, _ := p.svc.Container(t.Context(), string(c.ID)); got.State != warmboot.ContainerDeleting {
		t.Fatalf("%+v", got)
	}
	fail = false
	p.must(p.svc.DeleteContainer(t.Context(), string(c.ID), false))
}

func TestRemovedAtItsEnd(t *testing.T) {
	p := newPlane(t, nil)
	spec := warmboot.ContainerSpec{AutoRemove: true}
	for name, end := range map[string]func(id warmboot.ID){
		"by itself":        func(id warmboot.ID) { p.host.Exit(id, 0) },
		"its machine dies": func(id warmboot.ID) { p.host.Crash(id) },
		"stopped": func(id warmboot.ID) {
			c, err := p.svc.StopContainer(t.Context(), string(id), 0)
			p.must(err)
			if c.ID != id {
				t.Errorf("%+v", c)
			}
		},
	} {
		c := p.create(controlplane.CreateContainer{Spec: spec})
		end(c.ID)
		if _, err := p.svc.WaitContainer(t.Context(), string(c.ID), controlplane.WaitStopped); warmboot.CodeOf(err) != warmboot.NotFound {
			t.Errorf("%s: %v", name, err)
		}
		if all, _ := p.host.Containers(t.Context()); len(all) != 0 {
			t.Errorf("%s: on the host: %v", name, all)
		}
	}
	always := warmboot.RestartPolicy{Name: warmboot.RestartAlways}
	_, err := p.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Image: "x", Spec: warmboot.ContainerSpec{AutoRemove: true, RestartPolicy: always}})
	p.wantCode(err, warmboot.Invalid)
	c := p.create(controlplane.CreateContainer{Spec: spec})
	_, err = p.svc.UpdateContainer(t.Context(), string(c.ID), controlplane.ContainerChange{RestartPolicy: &always})
	p.wantCode(err, warmboot.Invalid)
}
