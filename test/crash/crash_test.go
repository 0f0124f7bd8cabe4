package crash

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/agentrpc"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/expect"
	"warmboot/internal/store"
	"warmboot/test/managerprocess"
)

// recoveryLimit is how long it may take after a restart until everything is as it was wanted.
const recoveryLimit = 10 * time.Second

// plant is a database, a host, and managers that come and go.
type plant struct {
	t       *testing.T
	options managerprocess.Options
	host    *hosttest.Host
	image   string
	*managerprocess.Process
}

// plants counts the plants of this process, each of which has addresses of its own: a manager must find its port free.
var plants atomic.Int32

// newPlant starts a manager and a host on a database: "SQLite", "PostgreSQL", or the address of one.
func newPlant(t *testing.T, database string) *plant {
	t.Helper()
	dir := t.TempDir()
	n := plants.Add(1)
	ip := fmt.Sprintf("127.%d.%d.%d", 1+os.Getpid()%250, 1+n/250, 1+n%250)
	p := &plant{t: t, host: hosttest.New(), options: managerprocess.Options{Name: "m", Fast: true, API: ip + ":18080", Cluster: ip + ":18081", Log: filepath.Join(dir, "log")}}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(p.options.Log)
			t.Logf("the managers' log:\n%s", text)
		}
	})
	switch database {
	case "SQLite":
		p.options.URL = filepath.Join(dir, "warmboot.db")
	case "PostgreSQL":
		p.options.URL = postgres.Database(t)
	default:
		p.options.URL = database
	}
	p.Process = managerprocess.Start(t, p.options)
	p.join(dir, ip)
	img, err := p.RegisterImage(t.Context(), api.RegisterImage{Name: "runtime", KernelPath: hosttest.Root + "k", RootfsPath: hosttest.Root + "r"})
	expect.NoError(t, err)
	p.image = img.ID
	p.settled("the first snapshot", func() error { return p.snapshots(1) })
	return p
}

// join makes the host a member of the cluster, and lets it give signs of life as an agent does.
func (p *plant) join(dir, ip string) {
	t := p.t
	ctx, cancel := context.WithCancel(context.Background())
	db, err := store.Open(ctx, store.Config{URL: p.options.URL, Log: slog.New(slog.DiscardHandler)})
	expect.NoError(t, err)
	ca, err := authority.Open(ctx, db)
	expect.NoError(t, err)
	token, _, err := ca.NewToken(ctx, db, "", time.Hour, "test")
	expect.NoError(t, err)
	expect.NoError(t, db.Close())
	managers := agentrpc.NewManagers([]string{p.options.Cluster})
	credentials, id, err := authority.JoinHost(ctx, filepath.Join(dir, "agent"), token, managers)
	expect.NoError(t, err)
	managers.Use(credentials)
	l, err := net.Listen("tcp", ip+":18082")
	expect.NoError(t, err)
	s := agentrpc.NewServer(agentrpc.ManagersOnly(agentrpc.HostHandler(p.host)), credentials.Server())
	s.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	var done sync.WaitGroup
	done.Go(func() { _ = s.ServeTLS(l, "", "") })
	p.host.ID, p.host.Address = id, l.Addr().String()
	expect.NoError(t, p.host.Join(ctx, func() controlplane.Reports { return managers }))
	done.Go(func() {
		for ctx.Err() == nil {
			if warmboot.CodeOf(p.host.Beat(ctx)) == warmboot.NotFound {
				_ = p.host.SayHello(ctx) // else next time
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		_ = s.Close()
		p.host.Close()
		done.Wait()
		expect.NoError(t, managers.Close())
	})
}

// restart starts a manager after the last one has died.
func (p *plant) restart() {
	p.t.Helper()
	p.Process = managerprocess.Start(p.t, p.options)
}

// settled waits until a condition holds; until then it says what is wrong.
func (p *plant) settled(what string, wrong func() error) {
	p.t.Helper()
	start := time.Now()
	for {
		err := wrong()
		if err == nil {
			return
		}
		if time.Since(start) > recoveryLimit {
			p.t.Fatalf("%s: after %v, %v", what, recoveryLimit, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// snapshots wants so many snapshots, all ready and on the host, and nothing of any other there.
func (p *plant) snapshots(want int) error {
	all, err := p.Snapshots(p.t.Context())
	if err != nil {
		return err
	}
	for _, s := range all {
		if s.State != "ready" {
			return fmt.Errorf("snapshot %s is %s", s.ID, s.State)
		}
		if !p.host.HasSnapshot(warmboot.ID(s.ID)) {
			return fmt.Errorf("the host does not have snapshot %s", s.ID)
		}
	}
	if len(all) != want {
		return fmt.Errorf("there are %d snapshots", len(all))
	}
	return p.clean()
}

// clean wants nothing on the host that nobody needs.
func (p *plant) clean() error {
	garbage, err := p.CollectGarbage(p.t.Context(), true)
	if err != nil {
		return err
	}
	for _, g := range garbage.Items {
		if g.Action != "forget" { // a row that may be looked at
			return fmt.Errorf("garbage: %+v", g)
		}
	}
	return nil
}

// containers wants these containers and no others, and a machine for each that runs and for no other.
func (p *plant) containers(want map[string]string) error {
	all, err := p.Containers(p.t.Context())
	if err != nil {
		return err
	}
	on, err := p.host.Containers(p.t.Context())
	if err != nil {
		return err
	}
	running := map[string]bool{}
	for _, h := range on {
		running[string(h.ID)] = h.Running
	}
	for _, c := range all {
		if want[c.Name] != c.State {
			return fmt.Errorf("container %s is %s (%s)", c.Name, c.State, c.Error)
		}
		if (c.State == "running") != running[c.ID] {
			return fmt.Errorf("container %s is %s and has a machine: %v", c.Name, c.State, running[c.ID])
		}
		delete(running, c.ID)
	}
	if len(all) != len(want) {
		return fmt.Errorf("there are %d containers, %d were wanted", len(all), len(want))
	}
	if len(running) > 0 {
		return fmt.Errorf("the host has %v besides", running)
	}
	return p.clean()
}

// mustRun creates a container and waits until it runs.
func (p *plant) mustRun(name string) api.Container {
	p.t.Helper()
	_, err := p.CreateContainer(p.t.Context(), api.CreateContainer{Name: name, Image: "debian:trixie"})
	expect.NoError(p.t, err)
	c, err := p.WaitContainer(p.t.Context(), name, "started")
	expect.NoError(p.t, err)
	if c.State != "running" {
		p.t.Fatalf("%+v", c)
	}
	return c
}

// mustRunOnce is mustRun of a container that is to be removed when its command ends.
func (p *plant) mustRunOnce(name string) {
	p.t.Helper()
	c, err := p.CreateContainerAndWait(p.t.Context(), api.CreateContainer{Name: name, Image: "debian:trixie", AutoRemove: true}, client.Started)
	expect.NoError(p.t, err)
	if c.State != "running" || !c.AutoRemove {
		p.t.Fatalf("%+v", c)
	}
}

// cut wants that the answer to a request did not come, because the manager died.
func (p *plant) cut(err error) {
	p.t.Helper()
	if warmboot.CodeOf(err) != warmboot.Unavailable {
		p.t.Fatalf("a request to a manager that dies: %v", err)
	}
}

// operation is something that a manager is killed in the middle of.
type operation struct {
	steps   []string
	prepare func(p *plant)
	do      func(p *plant)
	// wrong says what is not yet as it must be in the end.
	wrong func(p *plant) error
}

var operations = map[string]operation{
	"create": {
		steps: []string{"create: stored", "create: booted", "create: started"},
		do: func(p *plant) {
			_, err := p.CreateContainer(p.t.Context(), api.CreateContainer{Name: "web", Image: "debian:trixie"})
			if err == nil { // it was answered before it died
				return
			}
			p.cut(err)
		},
		wrong: func(p *plant) error { return p.containers(map[string]string{"web": "running"}) },
	},
	"stop": {
		steps:   []string{"stop: stopped on host"},
		prepare: func(p *plant) { p.mustRun("web") },
		do: func(p *plant) {
			_, err := p.StopContainer(p.t.Context(), "web", nil)
			p.cut(err)
		},
		wrong: func(p *plant) error { return p.containers(map[string]string{"web": "stopped"}) },
	},
	"start": {
		steps: []string{"start: stored", "create: booted", "create: started"},
		prepare: func(p *plant) {
			p.mustRun("web")
			_, err := p.StopContainer(p.t.Context(), "web", nil)
			expect.NoError(p.t, err)
		},
		do: func(p *plant) {
			if _, err := p.StartContainer(p.t.Context(), "web"); err != nil {
				p.cut(err)
			}
		},
		wrong: func(p *plant) error { return p.containers(map[string]string{"web": "running"}) },
	},
	"delete": {
		steps:   []string{"delete: stored", "delete: removed from host"},
		prepare: func(p *plant) { p.mustRun("web") },
		do:      func(p *plant) { p.cut(p.DeleteContainer(p.t.Context(), "web", true)) },
		wrong:   func(p *plant) error { return p.containers(nil) },
	},
	"end and removal": {
		steps:   []string{"delete: stored", "delete: removed from host"},
		prepare: func(p *plant) { p.mustRunOnce("web") },
		do: func(p *plant) {
			all, err := p.Containers(p.t.Context())
			expect.NoError(p.t, err)
			p.host.Exit(warmboot.ID(all[0].ID), 0)
		},
		wrong: func(p *plant) error { return p.containers(nil) },
	},
	"build": {
		steps: buildSteps,
		prepare: func(p *plant) {
			all, err := p.Snapshots(p.t.Context())
			expect.NoError(p.t, err)
			expect.NoError(p.t, p.DeleteSnapshot(p.t.Context(), all[0].ID))
			p.settled("no snapshot", func() error { return p.snapshots(0) })
		},
		do: func(p *plant) {
			if _, err := p.CreateSnapshot(p.t.Context(), p.image); err != nil {
				p.cut(err)
			}
		},
		wrong: func(p *plant) error { return p.snapshots(1) },
	},
	"rebuild": { // by itself, after three failures
		steps: append([]string{"rebuild: begun"}, buildSteps...),
		prepare: func(p *plant) {
			var failures atomic.Int32
			p.host.OnWarm = func(context.Context, controlplane.MachineSpec, warmboot.RuntimeSnapshot) error {
				if failures.Add(1) <= warmboot.UnhealthyAfter {
					return errors.New("the VMM ended")
				}
				return nil
			}
			for range warmboot.UnhealthyAfter - 1 {
				expect.NoError(p.t, p.DeleteContainer(p.t.Context(), p.mustRun("web").Name, true))
			}
		},
		do: func(p *plant) {
			if _, err := p.CreateContainer(p.t.Context(), api.CreateContainer{Name: "web", Image: "debian:trixie"}); err != nil {
				p.cut(err)
			}
		},
		wrong: func(p *plant) error {
			return errors.Join(p.snapshots(1), p.containers(map[string]string{"web": "running"}))
		},
	},
	"delete snapshot": {
		steps: []string{"delete snapshot: stored"},
		do: func(p *plant) {
			all, err := p.Snapshots(p.t.Context())
			expect.NoError(p.t, err)
			p.cut(p.DeleteSnapshot(p.t.Context(), all[0].ID))
		},
		wrong: func(p *plant) error { return p.snapshots(0) },
	},
}

var buildSteps = []string{"build: stored", "build: taken", "build: booting", "build: built", "build: ready"}

// TestKilledAtEachStep kills the manager at every step that the control plane names, and starts another.
func TestKilledAtEachStep(t *testing.T) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		for name, op := range operations {
			for _, step := range op.steps {
				t.Run(database+"/"+name+" at "+step, func(t *testing.T) {
					t.Parallel()
					p := newPlant(t, database)
					if op.prepare != nil {
						op.prepare(p)
					}
					p.DieAt(step)
					op.do(p)
					p.Died(20 * time.Second)
					p.restart()
					up := time.Now()
					p.settled("recovery", func() error { return op.wrong(p) })
					t.Logf("all is well %v after the restart", time.Since(up).Round(time.Millisecond))
					p.mustRun("next") // nothing was left in its way
				})
			}
		}
	}
}

// TestEveryStepIsTried keeps the list above complete.
func TestEveryStepIsTried(t *testing.T) {
	files, err := filepath.Glob("../../internal/controlplane/*.go")
	expect.NoError(t, err)
	var tried []string
	for _, op := range operations {
		tried = append(tried, op.steps...)
	}
	named := regexp.MustCompile(`\.Step\("([^"]+)"`)
	found := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		expect.NoError(t, err)
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		for _, step := range named.FindAllStringSubmatch(string(text), -1) {
			found++
			if step[1] != "build: " && !slices.Contains(tried, step[1]) {
				t.Errorf("no manager is killed at the step %q", step[1])
			}
		}
	}
	if found < 10 {
		t.Errorf("only %d steps were found", found)
	}
}

// TestKilledAtAnyTime kills the manager again and again while containers are created, stopped and deleted, wherever it just is.
func TestKilledAtAnyTime(t *testing.T) {
	for _, database := range []string{"SQLite", "PostgreSQL"} {
		t.Run(database, func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, database)
			want := map[string]string{} // whose creation was accepted, or may have been
			for round := range 8 {
				ctx, cancel := context.WithCancel(t.Context())
				var mu sync.Mutex
				var all sync.WaitGroup
				for i := range 8 {
					all.Go(func() {
						for n := 0; ctx.Err() == nil; n++ {
							name := fmt.Sprintf("c%d-%d-%d", round, i, n)
							_, err := p.CreateContainer(ctx, api.CreateContainer{Name: name, Image: "debian:trixie"})
							state := "running"
							if err != nil {
								state = "?"
							} else if n%3 == 1 {
								if _, err := p.WaitContainer(ctx, name, "started"); err == nil {
									state = "gone"
									if err := p.DeleteContainer(ctx, name, true); err != nil {
										state = "?"
									}
								}
							}
							mu.Lock()
							want[name] = state
							mu.Unlock()
							if err != nil {
								return
							}
						}
					})
				}
				time.Sleep(time.Duration(20+37*round) * time.Millisecond) // when it dies is what this is about
				p.Kill()
				cancel()
				all.Wait()
				p.restart()
				p.settled("recovery", func() error { return p.consistent(want) })
			}
			t.Logf("%d containers were asked for", len(want))
		})
	}
}

// consistent wants every container that was accepted to run, all that were deleted to be gone, and each to have one machine.
func (p *plant) consistent(want map[string]string) error {
	all, err := p.Containers(p.t.Context())
	if err != nil {
		return err
	}
	states := map[string]string{}
	for _, c := range all {
		states[c.Name] = c.State
		if c.State != "running" {
			return fmt.Errorf("container %s is %s (%s)", c.Name, c.State, c.Error)
		}
		if _, asked := want[c.Name]; !asked {
			return fmt.Errorf("nobody has asked for container %s", c.Name)
		}
	}
	for name, state := range want {
		switch {
		case state == "running" && states[name] == "":
			return fmt.Errorf("container %s is lost", name)
		case state == "gone" && states[name] != "":
			return fmt.Errorf("container %s is back", name)
		}
	}
	return p.containers(states)
}
