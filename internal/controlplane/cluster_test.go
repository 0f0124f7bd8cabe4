package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/planetest"
)

// cluster is two managers, "a" and "b", on one PostgreSQL database and the same hosts. a reaches the database over a link that can be cut.
type cluster struct {
	*plane // t, log, img, the first host; svc is a's
	a, b   *planetest.Plane
	hosts  []*hosttest.Host
	cut    func()
	mend   func()
}

// fast are waits for which a test can wait.
func fast(c *controlplane.Config) {
	c.Beat, c.DeadAfter, c.HostDownAfter = 50*time.Millisecond, time.Second, time.Second
}

func newCluster(t *testing.T, hosts ...*hosttest.Host) *cluster {
	t.Helper()
	t.Parallel()
	c := &cluster{plane: &plane{t: t, log: &logLines{}}, hosts: hosts}
	c.url = postgres.Database(t)
	link := postgres.Link(t, c.url)
	c.cut, c.mend = link.Cut, link.Mend
	for _, h := range hosts {
		t.Cleanup(h.Close)
	}
	start := func(name, url string) *planetest.Plane {
		p, err := planetest.Start(t.Context(), planetest.Config{URL: url, Reach: hosttest.Hosts(hosts), Log: slog.New(c.log), Shape: func(config *controlplane.Config) {
			fast(config)
			config.Name = name
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = p.Close() }) // one that was cut off may find the store closed
		return p
	}
	c.a, c.b = start("a", link.URL), start("b", c.url)
	c.svc, c.store, c.host = c.a.Service, c.a.Store, hosts[0]
	for _, h := range hosts {
		c.must(h.Join(t.Context(), func() controlplane.Reports { return c.b.Service }))
		beat(t, h)
	}
	img, err := c.b.Service.RegisterImage(t.Context(), runtimeImage("runtime"))
	c.must(err)
	c.img = img
	eventually(t, "a knows the hosts", func() (struct{}, bool) {
		return struct{}{}, c.a.Service.HostState(hosts[len(hosts)-1].ID) == warmboot.HostUp
	})
	return c
}

// beat lets a host give signs of life until the test ends, unless it is away.
func beat(t *testing.T, h *hosttest.Host) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var done sync.WaitGroup
	done.Go(func() {
		for {
			if h.Beat(ctx) != nil && ctx.Err() == nil {
				_ = h.SayHello(ctx) // it was taken for dead
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
}

// held makes something on a host stand still until it is let go on, and tells when it has begun.
func held() (hold func(context.Context) error, begun, goOn chan struct{}) {
	begun, goOn = make(chan struct{}, 10), make(chan struct{})
	return func(ctx context.Context) error {
		begun <- struct{}{}
		select {
		case <-goOn:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}, begun, goOn
}

func (c *cluster) waitOn(p *planetest.Plane, id warmboot.ID, cond controlplane.WaitFor) *warmboot.Container {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	defer cancel()
	got, err := p.Service.WaitContainer(ctx, string(id), cond)
	c.must(err)
	return got
}

func TestWhoeverWaitsHearsOfTheOtherManager(t *testing.T) {
	hold, begun, goOn := held()
	h := hosttest.New()
	h.OnCold = func(ctx context.Context, _ controlplane.MachineSpec) error { return hold(ctx) }
	c := newCluster(t, h)
	events := c.b.Service.Events("")
	made, err := c.a.Service.CreateContainer(t.Context(), controlplane.CreateContainer{Name: "web", Image: "debian:trixie"})
	c.must(err)
	<-begun
	waited := make(chan *warmboot.Container, 1)
	go func() { waited <- c.waitOn(c.b, made.ID, controlplane.WaitStarted) }()
	close(goOn)
	if got := <-waited; got.State != warmboot.ContainerRunning {
		t.Fatalf("%+v", got)
	}
	c.wantEvents(events, "container web creating", "container web creating cold", "container web running cold")
	// Whatever a manager is told to do, it does, whoever made it.
	stopped, err := c.b.Service.StopContainer(t.Context(), "web", time.Second)
	c.must(err)
	if stopped.State != warmboot.ContainerStopped {
		t.Fatalf("%+v", stopped)
	}
	c.must(c.a.Service.DeleteContainer(t.Context(), "web", false))
}

func TestAManagerDeletesWhatTheOtherIsCreating(t *testing.T) {
	hold, begun, _ := held()
	h := hosttest.New()
	h.OnCold = func(ctx context.Context, _ controlplane.MachineSpec) error { return hold(ctx) }
	c := newCluster(t, h)
	made, err := c.a.Service.CreateContainer(t.Context(), controlplane.CreateContainer{Name: "web", Image: "debian:trixie"})
	c.must(err)
	<-begun
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c.must(c.b.Service.DeleteContainer(ctx, "web", false))
	_, err = c.b.Service.Container(ctx, string(made.ID))
	c.wantCode(err, warmboot.NotFound)
	if left, _ := h.Containers(ctx); len(left) != 0 {
		t.Fatalf("left on the host: %v", left)
	}
}

func TestTwoManagersRaceOneCreateBuildAndDelete(t *testing.T) {
	h := hosttest.New()
	c := newCluster(t, h)
	both := func(f func(*planetest.Plane) error) (errs [2]error) {
		var wg sync.WaitGroup
		for i, p := range []*planetest.Plane{c.a, c.b} {
			wg.Go(func() { errs[i] = f(p) })
		}
		wg.Wait()
		return errs
	}
	oneWins := func(what string, errs [2]error) {
		t.Helper()
		if (errs[0] == nil) == (errs[1] == nil) || warmboot.CodeOf(errors.Join(errs[:]...)) != warmboot.Conflict {
			t.Errorf("%s: %v", what, errs)
		}
	}
	for i := range 10 {
		name := fmt.Sprintf("c%d", i)
		oneWins("create", both(func(p *planetest.Plane) error {
			_, err := p.Service.CreateContainer(t.Context(), controlplane.CreateContainer{Name: name, Image: "debian:trixie"})
			return err
		}))
		var ids [2]warmboot.ID
		for _, err := range both(func(p *planetest.Plane) error {
			id, err := p.Service.BuildSnapshot(t.Context(), c.img.ID)
			if p == c.a {
				ids[0] = id
			} else {
				ids[1] = id
			}
			return err
		}) {
			c.must(err)
		}
		if ids[0] != ids[1] { // the first had ended before the second was asked for
			eventually(t, "they were one after the other", func() (struct{}, bool) {
				older, err := c.a.Service.Snapshot(t.Context(), ids[0])
				c.must(err)
				newer, err := c.a.Service.Snapshot(t.Context(), ids[1])
				c.must(err)
				if older.State == warmboot.SnapshotCreating && newer.State == warmboot.SnapshotCreating {
					t.Fatalf("two builds at once: %v", ids)
				}
				return struct{}{}, older.State != warmboot.SnapshotCreating && newer.State != warmboot.SnapshotCreating
			})
		}
		for _, err := range both(func(p *planetest.Plane) error {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			return p.Service.DeleteContainer(ctx, name, true)
		}) {
			if code := warmboot.CodeOf(err); code != "" && code != warmboot.NotFound && code != warmboot.Conflict {
				t.Errorf("delete: %v", err)
			}
		}
	}
	eventually(t, "nothing is left", func() (struct{}, bool) {
		rows, err := c.a.Service.Containers(t.Context(), warmboot.ContainerFilter{})
		c.must(err)
		left, _ := h.Containers(t.Context())
		return struct{}{}, len(rows)+len(left) == 0
	})
}

// TestAManagerThatIsCutOffIsTakenOver cuts a manager off while it is bringing one container up, stopping another and building a snapshot; when it comes back it
// finds that all of that was done without it, and what it still wants to do is refused.
func TestAManagerThatIsCutOffIsTakenOver(t *testing.T) {
	h := hosttest.New()
	hold, begun, goOn := held()
	var mu sync.Mutex
	boots, builds := 0, 0
	first := func(n *int) bool {
		mu.Lock()
		defer mu.Unlock()
		*n++
		return *n == 1
	}
	h.OnCold = func(ctx context.Context, m controlplane.MachineSpec) error {
		if m.Hostname == "web" && first(&boots) {
			return hold(context.Background()) // it does not hear of the cut
		}
		return nil
	}
	h.OnBuild = func(_ context.Context, _ warmboot.RuntimeSnapshot) error {
		if first(&builds) {
			return hold(context.Background())
		}
		return nil
	}
	c := newCluster(t, h)
	web, err := c.a.Service.CreateContainer(t.Context(), controlplane.CreateContainer{Name: "web", Image: "debian:trixie", Spec: warmboot.ContainerSpec{ColdBoot: true}})
	c.must(err)
	<-begun
	// The build is a's: b's queue is not asked while a's own wakes at once.
	snap, err := c.a.Service.BuildSnapshot(t.Context(), c.img.ID)
	c.must(err)
	<-begun
	builder, err := c.b.Service.Snapshot(t.Context(), snap)
	c.must(err)

	c.cut()
	got := c.waitOn(c.b, web.ID, controlplane.WaitStarted)
	if got.State != warmboot.ContainerRunning || got.Lease.Generation != 2 {
		t.Fatalf("%+v", got)
	}
	c.log.want(t, `WARN Manager a gives no sign of life; what it was doing is taken over`)
	if builder.Lease.Owner == c.a.Service.ID() {
		eventually(t, "the snapshot is built by the other", func() (struct{}, bool) {
			now, err := c.b.Service.Snapshot(t.Context(), snap)
			c.must(err)
			return struct{}{}, now.State == warmboot.SnapshotReady
		})
	}
	c.mend()
	close(goOn)
	select {
	case err := <-c.a.Service.Lost():
		c.wantCode(err, warmboot.Conflict, "given up for dead")
	case <-time.After(20 * time.Second):
		t.Fatal("a does not notice that it was taken over")
	}
	c.must(c.a.Close())
	if now, err := c.b.Service.Container(t.Context(), "web"); err != nil || now.State != warmboot.ContainerRunning || now.VMID != got.VMID {
		t.Fatalf("%+v, %v", now, err)
	}
	if all, _ := h.Containers(t.Context()); len(all) != 1 || !all[0].Running || all[0].Generation != 2 {
		t.Fatalf("on the host: %+v", all)
	}
}

func TestASecondManagerOfOneNameTakesOver(t *testing.T) {
	h := hosttest.New()
	c := newCluster(t, h)
	again, err := planetest.Start(t.Context(), planetest.Config{URL: c.url, Reach: hosttest.Hosts{h}, Log: slog.New(c.log), Shape: func(config *controlplane.Config) {
		fast(config)
		config.Name = "a"
	}})
	c.must(err)
	defer func() { c.must(again.Close()) }()
	select {
	case err := <-c.a.Service.Lost():
		c.wantCode(err, warmboot.Conflict, "another one of its name", "--name")
	case <-time.After(20 * time.Second):
		t.Fatal("the first does not notice")
	}
}
