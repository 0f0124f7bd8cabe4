package agent

import (
	"bufio"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/controlplane"
	"warmboot/internal/disk"
	"warmboot/internal/guestrpc"
	"warmboot/internal/hostnet"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/fake"
)

// bootRig is an agent whose machines are fake, but boot, freeze and restore.
type bootRig struct {
	*Agent
	img    warmboot.Image
	driver *fake.Driver

	mu     sync.Mutex
	events []string               // what was done to which machine, as far as its order matters
	states map[string]*fake.State // of machines, by their ids
	fail   error                  // of the next limit
	byHand bool                   // somebody has started the guests' Docker by hand
	refuse warmboot.Code          // with which guests refuse to be another; "": they do not
}

func newBootRig(t *testing.T) *bootRig {
	t.Helper()
	root, err := os.MkdirTemp("/var/tmp", "warmboot-boot-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	r := &bootRig{states: map[string]*fake.State{}}
	r.driver = fake.New(fake.Config{Guest: r.guest, Fail: func(_ context.Context, step fake.Step, id string) error {
		if step != fake.StepLimitCPU {
			return nil
		}
		r.note(id, "limited")
		return r.fail
	}})
	r.img = warmboot.Image{ID: warmboot.NewID(), Name: "image", Digest: strings.Repeat("d", 64), KernelPath: filepath.Join(root, "kernel"), RootfsPath: filepath.Join(root, "rootfs"), SizeBytes: 2}
	if err := errors.Join(os.Chmod(root, 0o711), os.WriteFile(r.img.KernelPath, []byte("k"), 0o644), os.WriteFile(r.img.RootfsPath, []byte("r"), 0o644)); err != nil {
		t.Fatal(err)
	}
	r.Agent = r.agentAt(t, root)
	return r
}

// agentAt is an agent on the rig's driver. What it starts is ended with the test.
func (r *bootRig) agentAt(t *testing.T, root string) *Agent {
	t.Helper()
	a := &Agent{
		Config:   Config{Root: root, Driver: r.driver, Log: slog.New(slog.DiscardHandler), VCPUs: 2, MemoryMiB: 16, DiskBytes: 64 << 20, MaxVMs: 10, BootTimeout: time.Minute, RestoreTimeout: time.Minute},
		verifier: snapshot.NewVerifier(), warm: newTurns(warmTurns), cold: newTurns(coldTurns), containers: map[warmboot.ID]*container{}, builds: map[warmboot.ID]*building{},
	}
	setDefaults(&a.Config)
	var err error
	if a.caps, err = r.driver.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a.net, err = hostnet.Open(t.Context(), hostnet.Config{Mode: hostnet.User, Owner: "0a0b0c"}); err != nil {
		t.Fatal(err)
	}
	if a.disks, err = disk.Open(t.Context(), disk.Config{Dir: filepath.Join(root, "disk-templates"), Driver: r.driver.Name()}); err != nil {
		t.Fatal(err)
	}
	if a.images, err = openImageIndex(filepath.Join(root, "images")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.makeRoot(), a.images.add(r.img)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, c := range a.containers {
			if err := c.endVM(); err != nil {
				t.Error(err)
			}
		}
		if err := a.net.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func (r *bootRig) note(id, what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, id+" "+what)
}

// noted is what was noted since it was last asked.
func (r *bootRig) noted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.events = nil }()
	return r.events
}

// limit is how many CPUs a machine is limited to; 0 if it is not.
func (r *bootRig) limit(id string) float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.states[id].CPULimit()
}

// guest answers like the guest agent, as far as a machine's way up goes.
func (r *bootRig) guest(conn net.Conn, s *fake.State) {
	r.mu.Lock()
	r.states[s.ID()] = s
	r.mu.Unlock()
	session, err := guestrpc.Accept(conn, nil)
	if err != nil {
		return
	}
	defer session.Close()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		req, res := &guestv1.Request{}, &guestv1.Response{}
		if guestrpc.ReadMessage(bufio.NewReader(stream), req) == nil {
			switch {
			case req.GetReidentify() != nil && r.refuse != "":
				res.Failure = &guestv1.Failure{Code: string(r.refuse), Message: "not here"}
			case req.GetReidentify() != nil:
				res.Result = &guestv1.Response_Reidentify{Reidentify: &guestv1.ReidentifyResponse{Identity: req.GetReidentify().GetIdentity(), UnixNanos: time.Now().UnixNano()}}
			case req.GetWaitDocker() != nil:
				r.note(s.ID(), "has Docker")
				res.Result = &guestv1.Response_WaitDocker{WaitDocker: &guestv1.WaitDockerResponse{ApiVersion: "1.45"}}
			case req.GetQuiesce() != nil:
				res.Result = &guestv1.Response_Quiesce{Quiesce: &guestv1.QuiesceResponse{DockerVersion: "26.1", DockerAutostart: !r.byHand}}
			}
			guestrpc.WriteMessage(stream, res)
		}
		stream.Close()
	}
}

// machine is one for a new container with this limit.
func (r *bootRig) machine(vm string, cpus float64) controlplane.MachineSpec {
	return controlplane.MachineSpec{
		Container: controlplane.ContainerRef{ID: warmboot.NewID(), Generation: 1}, VMID: vm, Hostname: "web", Image: r.img, Spec: warmboot.ContainerSpec{CPULimit: cpus},
	}
}

// A machine whose Docker would not be there after a boot becomes no snapshot, and its error says what to do.
func TestASnapshotNeedsADockerThatStartsByItself(t *testing.T) {
	t.Parallel()
	r := newBootRig(t)
	r.byHand = true
	snap := warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: r.img.ID}
	_, err := r.BuildSnapshot(t.Context(), snap, r.img, func(string) {})
	if warmboot.CodeOf(err) != warmboot.Invalid || !strings.Contains(err.Error(), "enable its service in the image") {
		t.Errorf("the build ended with %v", err)
	}
	if _, err := os.Stat(snapshot.Dir(r.Root, r.img.ID, snap.ID)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of the snapshot there is left: %v", err)
	}
}

// What a restored guest says is never taken for the host's own lack of something: that would be no fault of the snapshot's.
func TestCodesOfRestoredGuestsAreNotTheHosts(t *testing.T) {
	t.Parallel()
	r := newBootRig(t)
	snap := warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: r.img.ID}
	if _, err := r.BuildSnapshot(t.Context(), snap, r.img, func(string) {}); err != nil {
		t.Fatal(err)
	}
	for _, r.refuse = range []warmboot.Code{warmboot.Conflict, warmboot.Invalid, warmboot.Exhausted} {
		_, err := r.WarmBoot(t.Context(), r.machine(string(r.refuse), 0), snap)
		if warmboot.CodeOf(err) != warmboot.Internal || !strings.Contains(err.Error(), "not here") {
			t.Errorf("a guest that answers %s: %v, %s", r.refuse, err, warmboot.CodeOf(err))
		}
	}
}

// The host holds a machine to its container's CPUs: however it came up, once it is up, for as long as it runs.
func TestMachinesAreHeldToTheirContainersCPUs(t *testing.T) {
	t.Parallel()
	r := newBootRig(t)
	is := func(vm string, limit float64, events ...string) {
		t.Helper()
		if got := r.limit(vm); got != limit {
			t.Errorf("%s is limited to %g CPUs, want %g", vm, got, limit)
		}
		if got := r.noted(); !slices.Equal(got, events) {
			t.Errorf("what was done is %q, want %q", got, events)
		}
	}
	snap := warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: r.img.ID}
	if _, err := r.BuildSnapshot(t.Context(), snap, r.img, func(string) {}); err != nil {
		t.Fatal(err)
	}
	build := "build-" + snap.ID.Short()
	is(build, 0, build+" has Docker")
	boot := func(m controlplane.MachineSpec, warm bool) {
		t.Helper()
		var err error
		if warm {
			_, err = r.WarmBoot(t.Context(), m, snap)
		} else {
			_, err = r.ColdBoot(t.Context(), m)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first := r.machine("first", 0.5)
	boot(first, true)
	is("first", 0.6, "first has Docker", "first limited")
	boot(r.machine("cold", 0.5), false)
	is("cold", 0.6, "cold has Docker", "cold limited")
	boot(r.machine("most", 1.95), true) // not more than it has
	is("most", 2, "most has Docker", "most limited")
	boot(r.machine("large", 2.5), false)
	is("large", 2.6, "large has Docker", "large limited")
	boot(r.machine("free", 0), true)
	is("free", 0, "free has Docker")

	// Whoever takes charge of it finds it limited.
	c, err := r.find(first.Container.ID)
	if err != nil {
		t.Fatal(err)
	}
	c.disconnect()
	r.drop(c)
	later := r.agentAt(t, r.Root)
	if pid := later.recoverContainer(t.Context(), c.id); pid == 0 {
		t.Fatal("it was not taken charge of")
	}
	is("first", 0.6, "first has Docker")

	// Started again it is another machine, and the limit may be another by then.
	again := first
	for _, next := range []struct {
		vm          string
		cpus, limit float64
		events      []string
	}{{"second", 1, 1.1, []string{"second has Docker", "second limited"}}, {"third", 0, 0, []string{"third has Docker"}}} {
		c, err := later.find(first.Container.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.endVM(); err != nil {
			t.Fatal(err)
		}
		again.VMID, again.Spec.CPULimit = next.vm, next.cpus
		if _, err := later.ColdBoot(t.Context(), again); err != nil {
			t.Fatal(err)
		}
		is(next.vm, next.limit, next.events...)
	}
}

// A machine that cannot be held to its container's CPUs does not run.
func TestALimitThatCannotBeSet(t *testing.T) {
	t.Parallel()
	r := newBootRig(t)
	r.fail = errors.New("no limit today")
	m := r.machine("free", 0.5)
	if _, err := r.ColdBoot(t.Context(), m); !errors.Is(err, r.fail) {
		t.Errorf("the boot ended with %v", err)
	}
	if r.driver.Alive("free") {
		t.Error("the machine runs")
	}
	if c, err := r.find(m.Container.ID); err == nil {
		t.Errorf("there is %s", c.dir)
	}
	m.Spec.CPULimit = 0
	if _, err := r.ColdBoot(t.Context(), m); err != nil {
		t.Errorf("without a limit: %v", err)
	}
}

// A machine of a VMM that cannot be limited is none the worse.
func TestLimitOfAMachineThatHasNone(t *testing.T) {
	t.Parallel()
	if err := limitCPU(struct{ vmm.Machine }{}, warmboot.ContainerSpec{CPULimit: 0.5}); err != nil {
		t.Error(err)
	}
}
