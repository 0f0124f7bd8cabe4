package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/guestrpc"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
)

// rig is a driver of the stand-in, with machines to start.
type rig struct {
	*Driver
	dir  string
	spec vmm.Spec // without ID and Dir
	snap vmm.Snapshot
}

var machines atomic.Int64

// place gives a machine an id and an empty directory.
func (r *rig) place(t testing.TB) (id, dir string) {
	t.Helper()
	id = fmt.Sprintf("fc-%d-%d", os.Getpid(), machines.Add(1))
	dir = filepath.Join(r.dir, id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return id, dir
}

// frozen is a snapshot that was made with a faultless stand-in of a version; there is one for all tests.
type frozen struct {
	once sync.Once
	snap vmm.Snapshot
	caps vmm.Capabilities
}

var snapshots sync.Map // by version

func freeze(t testing.TB, version string) *frozen {
	t.Helper()
	v, _ := snapshots.LoadOrStore(version, &frozen{})
	f := v.(*frozen)
	f.once.Do(func() {
		dir, err := keptDir()
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{Driver: newDriver(configFor(t, standin.Profile{Version: version})), dir: filepath.Join(dir, version)}
		if err := os.Mkdir(r.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		spec := machineSpec(t, r.dir)
		spec.ID, spec.Dir = r.place(t)
		spec.MemoryFile = filepath.Join(r.dir, "memory")
		m, err := r.Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Stop(context.Background(), 0)
		if got, err := ask(t.Context(), m, "fill 4 7"); got != "ok" {
			t.Fatal(got, err)
		}
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if f.snap, err = m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: filepath.Join(r.dir, "state")}); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{f.snap.MemoryFile, f.snap.StateFile} {
			if os.Geteuid() == 0 {
				if err := os.Chown(path, 0, int(owner.Readers)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chmod(path, 0o444); err != nil {
				t.Fatal(err)
			}
		}
		if f.caps, err = r.Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	if f.caps.Driver == "" {
		t.Fatal("the snapshot could not be made; see the test that tried first")
	}
	return f
}

// newRig is a driver of a stand-in with the profile's faults, and a snapshot that was made without them. What the driver would find
// out is given to it, because with some faults it could not find out anything.
func newRig(t testing.TB, p standin.Profile) *rig {
	t.Helper()
	return rigWith(t, p.Version, configFor(t, p))
}

func rigWith(t testing.TB, version string, c Config) *rig {
	t.Helper()
	f := freeze(t, version)
	r := &rig{Driver: newDriver(c), dir: shared(t), snap: f.snap}
	r.spec = machineSpec(t, r.dir)
	release, err := ParseRelease(version)
	if err != nil {
		t.Fatal(err)
	}
	caps := f.caps
	caps.Binary = c.Binary
	r.found = foundAs(t, caps, release)
	return r
}

// foundAs is what a driver knows that has found the binary in caps as it is now.
func foundAs(t testing.TB, caps vmm.Capabilities, release Release) *found {
	t.Helper()
	file, err := identify(caps.Binary)
	if err != nil {
		t.Fatal(err)
	}
	return &found{caps, release, file}
}

func (r *rig) create(t testing.TB, ctx context.Context, change func(*vmm.Spec)) (vmm.Machine, error) {
	t.Helper()
	spec := r.spec
	spec.ID, spec.Dir = r.place(t)
	spec.MemoryFile = spec.Dir + ".memory"
	if change != nil {
		change(&spec)
	}
	m, err := r.Create(ctx, spec)
	r.after(t, m, err, spec.ID, spec.Dir)
	if _, statErr := os.Stat(spec.MemoryFile); err != nil && statErr == nil {
		t.Error("the memory file is left")
	}
	return m, err
}

func (r *rig) restore(t testing.TB, ctx context.Context, change func(*vmm.Snapshot, *vmm.RestoreOptions)) (vmm.Machine, error) {
	t.Helper()
	snap, opts := r.snap, vmm.RestoreOptions{RootDisk: r.spec.RootDisk, DataDisk: r.spec.DataDisk, Owner: r.spec.Owner}
	opts.ID, opts.Dir = r.place(t)
	if change != nil {
		change(&snap, &opts)
	}
	m, err := r.Restore(ctx, snap, opts)
	r.after(t, m, err, opts.ID, opts.Dir)
	return m, err
}

func (r *rig) mustRestore(t testing.TB) vmm.Machine {
	t.Helper()
	m, err := r.restore(t, t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// after sees that nothing is left of a machine that did not start, and at the end of the test nothing of one that did.
func (r *rig) after(t testing.TB, m vmm.Machine, err error, id, dir string) {
	t.Helper()
	if err != nil {
		r.nothingLeft(t, id, dir)
		return
	}
	t.Cleanup(func() {
		if err := m.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
		r.nothingLeft(t, id, dir)
	})
}

func (r *rig) nothingLeft(t testing.TB, id, dir string) {
	t.Helper()
	if pid := find(t, r.Binary, id); pid != 0 {
		t.Errorf("process %d is left", pid)
	}
	if path := groupOf(t, id); path != "" {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("cgroup %s is left", path)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), id) {
		t.Errorf("mounts are left: %s, %v", mounts, err)
	}
	left, err := os.ReadDir(dir)
	for _, f := range left {
		t.Errorf("%s is left", f.Name())
	}
	if err != nil {
		t.Error(err)
	}
}

// ask gives the guest one command.
func ask(ctx context.Context, m vmm.Machine, command string) (string, error) {
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

func mustAsk(t *testing.T, m vmm.Machine, command, want string) {
	t.Helper()
	if got, err := ask(t.Context(), m, command); got != want {
		t.Fatalf("%s: the guest answers %q, %v; want %q", command, got, err, want)
	}
}

func wantError(t *testing.T, err error, code warmboot.Code, says string) {
	t.Helper()
	if warmboot.CodeOf(err) != code || !strings.Contains(fmt.Sprint(err), says) {
		t.Errorf("got %s: %v; want %s with %q", warmboot.CodeOf(err), err, code, says)
	}
}

// within fails the test if f takes longer: a process that has died, or a refusal, is noticed and not waited for.
func within(t *testing.T, limit time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > limit {
		t.Errorf("it took %v", took)
	}
}

func TestProcessDiesAtEachCall(t *testing.T) {
	t.Parallel()
	creating := []string{"PUT /machine-config", "PUT /boot-source", "PUT /drives/root", "PUT /drives/data", "PUT /network-interfaces/eth0", "PUT /vsock", "PUT /entropy",
		"PUT /balloon", "PUT /actions"}
	for status, c := range map[int]struct {
		code warmboot.Code
		says string
	}{
		-1:             {warmboot.Unavailable, "it was killed"},
		exitBadSyscall: {warmboot.Internal, "seccomp"},
		exitSIGSEGV:    {warmboot.Internal, "crashed"},
	} {
		for _, call := range creating {
			t.Run(fmt.Sprintf("create/%s/%d", call, status), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{call: {Exit: status}}}})
				r.Balloon = true
				within(t, 20*time.Second, func() {
					_, err := r.create(t, t.Context(), func(s *vmm.Spec) {
						if call == "PUT /network-interfaces/eth0" {
							s.Network.TAP = "tap0" // the process dies before it looks
						}
					})
					wantError(t, err, c.code, c.says)
				})
			})
		}
		t.Run(fmt.Sprintf("restore/%d", status), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /snapshot/load": {Exit: status}}}})
			within(t, 20*time.Second, func() {
				_, err := r.restore(t, t.Context(), nil)
				wantError(t, err, c.code, c.says)
			})
		})
	}
}

// A process that answers and dies then has no machine: whoever asks for it is told at once, whether it was already given to them or not.
func TestProcessDiesAfterItsAnswer(t *testing.T) {
	t.Parallel()
	for call, start := range map[string]func(*testing.T, *rig) (vmm.Machine, error){
		"PUT /actions":       func(t *testing.T, r *rig) (vmm.Machine, error) { return r.create(t, t.Context(), nil) },
		"PUT /snapshot/load": func(t *testing.T, r *rig) (vmm.Machine, error) { return r.restore(t, t.Context(), nil) },
	} {
		for _, version := range []string{"1.15.1", "1.16.2"} { // only before 1.16 the driver itself asks the guest
			t.Run(call+"/"+version, func(t *testing.T) {
				t.Parallel()
				r := newRig(t, standin.Profile{Version: version, Faults: standin.Faults{Calls: map[string]standin.Fault{call: {Exit: -1, After: true}}}})
				within(t, 20*time.Second, func() {
					m, err := start(t, r)
					if err == nil {
						<-m.Done()
						_, err = m.DialGuest(t.Context())
					}
					wantError(t, err, warmboot.Unavailable, "ended")
				})
			})
		}
	}
	t.Run("PUT /snapshot/create", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /snapshot/create": {Exit: -1, After: true}}}})
		m, err := r.create(t, t.Context(), nil)
		must(t, err)
		must(t, m.Pause(t.Context()))
		snap, err := m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
		must(t, err) // what it has written before is whole
		<-m.Done()
		clone, err := newRig(t, standin.Profile{Version: "1.15.1"}).restore(t, t.Context(), func(s *vmm.Snapshot, _ *vmm.RestoreOptions) { *s = snap })
		must(t, err)
		mustAsk(t, clone, "ping", "pong")
	})
}

func TestRunningProcessDies(t *testing.T) {
	t.Parallel()
	reclaim := func(ctx context.Context, m vmm.Machine) error {
		got, err := m.(vmm.MemoryReclaimer).Reclaim(ctx, 16)
		if got != 0 {
			t.Errorf("a dead machine does without %d MiB", got)
		}
		return err
	}
	for call, do := range map[string]func(context.Context, vmm.Machine) error{
		"PATCH /vm": func(ctx context.Context, m vmm.Machine) error { return m.Pause(ctx) },
		"PATCH /vm 2": func(ctx context.Context, m vmm.Machine) error {
			if err := m.Pause(ctx); err != nil {
				return err
			}
			return m.Resume(ctx)
		},
		"PATCH /balloon":          reclaim,
		"GET /balloon/statistics": reclaim,
		"GET /": func(ctx context.Context, m vmm.Machine) error {
			_, err := m.Snapshot(ctx, vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
			return err
		},
		"PUT /snapshot/create": func(ctx context.Context, m vmm.Machine) error {
			if err := m.Pause(ctx); err != nil {
				return err
			}
			_, err := m.Snapshot(ctx, vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
			return err
		},
	} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			fault := standin.Fault{Exit: -1}
			name, second := strings.CutSuffix(call, " 2")
			if second {
				fault.Nth = 2
			}
			r := newRig(t, standin.Profile{Version: "1.16.2", Faults: standin.Faults{Calls: map[string]standin.Fault{name: fault}}})
			r.Balloon = true
			m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.MemoryMiB = 96 })
			if err != nil {
				t.Fatal(err)
			}
			within(t, 20*time.Second, func() { wantError(t, do(t.Context(), m), warmboot.Unavailable, "has ended") })
			<-m.Done()
			if _, err := os.Stat(m.Handle().Dir + ".state"); err == nil {
				t.Error("the state file is left")
			}
		})
	}
}

// A process that dies when its guest is to be asked to go down is what was wanted, and is not waited for.
func TestProcessDiesWhenItIsStopped(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.16.2", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /actions": {Nth: 2, Exit: exitSIGSEGV}}}})
	m, err := r.create(t, t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, func() {
		if err := m.Stop(t.Context(), time.Minute); err != nil {
			t.Error(err)
		}
	})
	if how := ending(m.(*machine).process.State()); !strings.Contains(how, "crashed") {
		t.Errorf("it ended: %s", how)
	}
}

// Of two machines with one TAP only the first starts, whether the other boots or is restored.
func TestTAPIsBusy(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	network := r.withTAP(t)
	snapshot := func(m vmm.Machine) vmm.Snapshot {
		t.Helper()
		must(t, m.Pause(t.Context()))
		snap, err := m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
		must(t, err)
		return snap
	}
	create := func() (vmm.Machine, error) {
		return r.create(t, t.Context(), func(s *vmm.Spec) { s.Network = network })
	}
	first, err := create()
	must(t, err)
	snap := snapshot(first)
	restore := func() (vmm.Machine, error) {
		return r.restore(t, t.Context(), func(s *vmm.Snapshot, o *vmm.RestoreOptions) { *s, o.Network = snap, network })
	}
	busy := func() {
		t.Helper()
		within(t, 20*time.Second, func() {
			_, err := create()
			wantError(t, err, warmboot.Conflict, "its TAP")
			_, err = restore()
			wantError(t, err, warmboot.Conflict, "its TAP")
		})
	}
	busy()
	must(t, first.Stop(t.Context(), 0))
	clone, err := restore()
	must(t, err)
	mustAsk(t, clone, "ping", "pong")
	busy()
	mustAsk(t, clone, "ping", "pong") // and has not been harmed
	kill(t, clone.Handle().PID)
	<-clone.Done()
	again, err := create() // whatever ended the first, its TAP is free
	must(t, err)
	mustAsk(t, again, "ping", "pong")
}

func TestSocketNeverAppears(t *testing.T) {
	t.Parallel()
	t.Run("alive", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{NoSocket: true}})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		within(t, 15*time.Second, func() {
			_, err := r.restore(t, ctx, nil)
			wantError(t, err, warmboot.Timeout, "not ready in time")
		})
	})
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{NoSocket: true}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := r.create(t, ctx, nil)
		wantError(t, err, warmboot.Canceled, "")
	})
	t.Run("dead", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{ExitAtStart: exitBadConfig}})
		within(t, 15*time.Second, func() {
			_, err := r.restore(t, t.Context(), nil)
			wantError(t, err, warmboot.Internal, "exit status 152)")
			wantError(t, err, warmboot.Internal, "told to end")
		})
	})
}

func TestLoadIsRefused(t *testing.T) {
	t.Parallel()
	// The messages are what Firecracker 1.15.1 and 1.16.1 said in each case, but for those of older releases.
	for name, c := range map[string]struct {
		fault string
		code  warmboot.Code
		says  string
	}{
		"cut":         {"Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to load snapshot state from file: An error occurred during bitcode serialization: bitcode error", warmboot.Corrupt, "rebuild"},
		"flipped":     {"Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to load snapshot state from file: CRC64 validation failed", warmboot.Corrupt, "rebuild"},
		"memory":      {"Load snapshot error: Failed to restore from snapshot: Failed to load guest memory: Error creating guest memory from file: Failed to restore guest memory: Total sum of memory regions exceeds largest possible file offset", warmboot.Corrupt, "rebuild"},
		"no disk":     {"Load snapshot error: Failed to restore from snapshot: Failed to build microVM from snapshot: Failed to restore devices: Error restoring MMIO devices: Block: Virtio backend error: Error manipulating the backing file: No such file or directory (os error 2) data", warmboot.Internal, "No such file"},
		"KVM":         {"Load snapshot error: Failed to restore from snapshot: Failed to build microVM from snapshot: Failed to create microVM and vCPUs: Kvm error: Error creating KVM object: Permission denied (os error 13) Make sure the user launching the firecracker process is \\\nconfigured on the /dev/kvm file's ACL.", warmboot.Unavailable, "chgrp kvm"},
		"format 1.12": {"Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: Failed to load snapshot state from file: Invalid data version: 5.0.0", warmboot.Incompatible, "rebuild"},
		"no memory":   {"Load snapshot error: Failed to load guest memory: Cannot allocate memory (os error 12)", warmboot.Exhausted, "too little memory"},
		"TAP in use":  {"Load snapshot error: Failed to restore devices: Open tap device failed: Error while creating ifreq structure: Device or resource busy (os error 16).", warmboot.Conflict, "TAP"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /snapshot/load": {Refuse: c.fault}}}})
			within(t, 15*time.Second, func() {
				_, err := r.restore(t, t.Context(), nil)
				wantError(t, err, c.code, c.says)
			})
		})
	}
}

// A snapshot of another format is refused by the process, even where nothing compared fingerprints before.
func TestSnapshotOfAnotherRelease(t *testing.T) {
	t.Parallel()
	older, newer := newRig(t, standin.Profile{Version: "1.15.1"}), newRig(t, standin.Profile{Version: "1.16.2"})
	_, err := newer.restore(t, t.Context(), func(s *vmm.Snapshot, _ *vmm.RestoreOptions) { *s = older.snap })
	wantError(t, err, warmboot.Incompatible, "another format")
}

func TestSnapshotFileThatTheVMMMayNotRead(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	if !owner.Confined() {
		t.Skip("SKIPPED: only root can make files that a VMM may not read")
	}
	for _, which := range []func(*vmm.Snapshot) *string{
		func(s *vmm.Snapshot) *string { return &s.MemoryFile }, func(s *vmm.Snapshot) *string { return &s.StateFile },
	} {
		_, err := r.restore(t, t.Context(), func(s *vmm.Snapshot, _ *vmm.RestoreOptions) {
			path := which(s)
			content, err := os.ReadFile(*path)
			if err != nil {
				t.Fatal(err)
			}
			*path = filepath.Join(r.dir, "secret-"+filepath.Base(*path))
			if err := os.WriteFile(*path, content, 0o600); err != nil {
				t.Fatal(err)
			}
		})
		wantError(t, err, warmboot.Internal, "owner and mode")
	}
}

// A snapshot's other failures leave a machine that goes on, and no file.
func TestSnapshotIsRefused(t *testing.T) {
	t.Parallel()
	for fault, code := range map[string]warmboot.Code{
		"Create snapshot error: Cannot write memory file: No space left on device (os error 28)": warmboot.Exhausted,
		"Create snapshot error: something else":                                                  warmboot.Internal,
	} {
		r := newRig(t, standin.Profile{Version: "1.16.2", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /snapshot/create": {Refuse: fault}}}})
		m, err := r.create(t, t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err = m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
			wantError(t, err, code, "")
			if _, err := os.Stat(m.Handle().Dir + ".state"); err == nil {
				t.Error("the state file is left")
			}
		}
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustAsk(t, m, "ping", "pong")
	}
}

// A machine that does not go on when it is told to is not left as it is.
func TestResumeIsRefused(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PATCH /vm": {Refuse: "Internal VMM error: no vCPU answers"}}}})
	m := r.mustRestore(t)
	wantError(t, m.Pause(t.Context()), warmboot.Internal, "no vCPU")
	mustAsk(t, m, "ping", "pong") // a pause that is refused does nothing
	wantError(t, m.Resume(t.Context()), warmboot.Unavailable, "no vCPU")
	select {
	case <-m.Done():
	case <-time.After(10 * time.Second):
		t.Error("its process goes on")
	}
}

// Nothing that a VMM sends can be too much, and nothing that it does not send is waited for without a limit.
func TestAnswersWithoutSense(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault standin.Fault
		code  warmboot.Code
		says  string
	}{
		"flood":       {standin.Fault{Flood: true}, warmboot.Unavailable, "longer than any"},
		"headers":     {standin.Fault{Answer: "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("y", 1000)+"\r\n", 2000)}, warmboot.Unavailable, "longer than any"},
		"no HTTP":     {standin.Fault{Answer: "What?\n"}, warmboot.Unavailable, "malformed"},
		"half":        {standin.Fault{Answer: "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"}, warmboot.Unavailable, "unexpected EOF"},
		"no JSON":     {standin.Fault{Answer: "HTTP/1.1 400 \r\nContent-Length: 7\r\n\r\nno JSON"}, warmboot.Internal, "no JSON"},
		"other codes": {standin.Fault{Answer: "HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n"}, warmboot.Internal, "503"},
		"long fault":  {standin.Fault{Answer: "HTTP/1.1 400 \r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100000)}, warmboot.Internal, "400"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /snapshot/load": c.fault}}})
			_, err := r.restore(t, t.Context(), nil)
			wantError(t, err, c.code, c.says)
			if n := len(fmt.Sprint(err)); n > 2000 {
				t.Errorf("the error has %d bytes", n)
			}
		})
	}
	t.Run("hang", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PATCH /vm": {Hang: true}}}})
		m := r.mustRestore(t)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		within(t, 15*time.Second, func() { wantError(t, m.Pause(ctx), warmboot.Timeout, "did not answer in time") })
		mustAsk(t, m, "ping", "pong") // the guest knows nothing of it
	})
	t.Run("wrong answer", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"GET /": {Answer: "HTTP/1.1 200 \r\nContent-Length: 4\r\n\r\n\"hi\""}}}})
		m, err := r.create(t, t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: filepath.Join(r.dir, "other")})
		wantError(t, err, warmboot.Unavailable, "not what Firecracker answers")
	})
}

func TestRequestThatIsTooLarge(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	_, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.KernelArgs = []string{strings.Repeat("x", payloadLimit)} })
	wantError(t, err, warmboot.TooLarge, "shorten the kernel's arguments")
	// Firecracker's own limit for the kernel's command line is lower.
	_, err = r.create(t, t.Context(), func(s *vmm.Spec) { s.KernelArgs = []string{strings.Repeat("x", 3000)} })
	wantError(t, err, warmboot.Internal, "too long")
}

func TestGuestTakesConnectionsInTheEnd(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]standin.Faults{
		"refused":       {Vsock: standin.VsockFaults{Refuse: 5}},
		"reset":         {Vsock: standin.VsockFaults{Reset: 5}},
		"silent":        {Vsock: standin.VsockFaults{Silent: 1}},
		"cut":           {Vsock: standin.VsockFaults{Cut: 5}},
		"late":          {Vsock: standin.VsockFaults{Late: 600 * time.Millisecond}},
		"all of it":     {Vsock: standin.VsockFaults{Refuse: 2, Reset: 2, Silent: 1, Cut: 2, Late: 100 * time.Millisecond}},
		"slow to boot":  {BootTime: 700 * time.Millisecond},
		"wrong, a time": {Vsock: standin.VsockFaults{Refuse: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, standin.Profile{Version: "1.15.1", Faults: f})
			m, err := r.create(t, t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			mustAsk(t, m, "ping", "pong")
			mustAsk(t, m, "ping", "pong")
		})
	}
}

func TestGuestNeverTakesAConnection(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		faults standin.VsockFaults
		says   string
	}{
		"refused":  {standin.VsockFaults{Refuse: 1 << 30}, "does not listen"},
		"reset":    {standin.VsockFaults{Reset: 1 << 30}, ""},
		"silent":   {standin.VsockFaults{Silent: 1 << 30}, "did not take a connection"},
		"cut":      {standin.VsockFaults{Cut: 1 << 30}, `breaks off after \"O\"`},
		"greeting": {standin.VsockFaults{Greeting: "HELLO\n"}, `greets with \"HELLO\"`},
		"garbage":  {standin.VsockFaults{Greeting: "OK 1 and more\n"}, `greets with \"OK 1 and more\"`},
		"binary":   {standin.VsockFaults{Greeting: "OK \x00\x01\n"}, `greets with \"OK \\x00\\x01\"`},
		"too long": {standin.VsockFaults{Greeting: "OK 1073741824000\n"}, `greets with \"OK 1073741824000\"`},
		"number":   {standin.VsockFaults{Greeting: "OK twelve\n"}, `greets with \"OK twelve\"`},
		"endless":  {standin.VsockFaults{Greeting: strings.Repeat("OK ", 1<<20)}, "greets with"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Vsock: c.faults}})
			m := r.mustRestore(t)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			within(t, 30*time.Second, func() {
				conn, err := m.DialGuest(ctx)
				if err == nil {
					conn.Close()
				}
				wantError(t, err, warmboot.Timeout, "")
				if says := fmt.Sprintf("%q", fmt.Sprint(err)); !strings.Contains(says, c.says) && !strings.Contains(fmt.Sprint(err), strings.ReplaceAll(c.says, `\"`, `"`)) {
					t.Errorf("%v does not say %s", err, c.says)
				}
			})
		})
	}
}

// A guest that dies while it is waited for is not waited for.
func TestDialEndsWithTheProcess(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Vsock: standin.VsockFaults{Silent: 1 << 30}}})
	m := r.mustRestore(t)
	time.AfterFunc(200*time.Millisecond, func() { kill(t, m.Handle().PID) })
	within(t, 15*time.Second, func() {
		_, err := m.DialGuest(t.Context())
		wantError(t, err, warmboot.Unavailable, "ended")
	})
}

// The guest agent's client gives up on a guest that sends without end, having read a bounded part of it.
func TestGuestThatFloods(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Vsock: standin.VsockFaults{Flood: true}}})
	m := r.mustRestore(t)
	var read atomic.Int64
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	attempts := 0
	_, err := guestrpc.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		conn, err := m.DialGuest(ctx)
		if err != nil {
			return nil, err
		}
		if attempts++; attempts == 2 {
			cancel()
		}
		return counted{conn, &read}, nil
	})
	if err == nil {
		t.Fatal("a guest that sends nonsense was taken for an agent")
	}
	if n := read.Load(); n > 20<<20 {
		t.Errorf("%d bytes were read", n)
	}
	if err := m.Pause(t.Context()); err != nil { // the API is not the guest's
		t.Error(err)
	}
}

type counted struct {
	net.Conn
	n *atomic.Int64
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// What lies in the root is the VMM's to change. It cannot lead us to a socket that is not its own.
func TestSocketThatIsNotTheVMMs(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	m := r.mustRestore(t)
	victim := filepath.Join(r.dir, "victim.sock")
	l, err := net.Listen("unix", victim)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Error("somebody else's socket was connected to")
			c.Close()
		}
	}()
	rootDir, err := m.(*machine).openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer rootDir.Close()
	root := rootDir.Name()
	for _, name := range []string{apiSocket, guestSocket} {
		if err := os.Remove(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	put := map[string]func(path string) error{
		"link":   func(path string) error { return os.Symlink(victim, path) },
		"file":   func(path string) error { return os.WriteFile(path, nil, 0o666) },
		"folder": func(path string) error { return os.Mkdir(path, 0o777) },
	}
	if owner.Confined() && !jailing() { // a jail is a file system of its own
		put["hard link"] = func(path string) error { return os.Link(victim, path) } // of root's
	}
	for kind, put := range put {
		for _, name := range []string{apiSocket, guestSocket} {
			if err := put(filepath.Join(root, name)); err != nil {
				t.Fatal(kind, err)
			}
		}
		if err := m.Pause(t.Context()); warmboot.CodeOf(err) != warmboot.Unavailable {
			t.Errorf("%s: %v", kind, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if conn, err := m.DialGuest(ctx); err == nil {
			conn.Close()
			t.Errorf("%s: the guest was dialled", kind)
		}
		cancel()
		for _, name := range []string{apiSocket, guestSocket} {
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// Nor can it lead us to a state file that is not its own, or is none.
func TestStateThatIsNotTheVMMs(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	created, err := r.create(t, t.Context(), nil) // one that can be frozen: a restored one has a state already
	if err != nil {
		t.Fatal(err)
	}
	m := created.(*machine)
	secret := filepath.Join(r.dir, "secret")
	write(t, secret, []byte("secret"))
	root, err := m.openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	path, other := filepath.Join(root.Name(), stateName), filepath.Join(root.Name(), "other")
	mine := func(content []byte, size int64) error {
		write(t, path, content)
		return errors.Join(os.Truncate(path, size), os.Chown(path, int(owner.UID), int(owner.GID)))
	}
	for name, put := range map[string]func() error{
		"link":       func() error { return os.Symlink(secret, path) },
		"pipe":       func() error { return unix.Mkfifo(path, 0o666) },
		"folder":     func() error { return os.Mkdir(path, 0o777) },
		"too large":  func() error { return mine(nil, stateLimit+1) },
		"hard link":  func() error { return errors.Join(mine([]byte("state"), 5), os.Link(path, other)) },
		"nothing":    func() error { return nil },
		"of another": func() error { return os.WriteFile(path, nil, 0o666) },
	} {
		if name == "of another" && os.Geteuid() != 0 {
			continue
		}
		if err := put(); err != nil {
			t.Fatal(name, err)
		}
		within(t, 5*time.Second, func() {
			if err := m.fetchState(root, filepath.Join(r.dir, "fetched")); err == nil {
				t.Errorf("%s: it was fetched", name)
			}
		})
		if _, err := os.Stat(filepath.Join(r.dir, "fetched")); err == nil {
			t.Errorf("%s: a file is left", name)
		}
		if err := errors.Join(os.RemoveAll(path), os.RemoveAll(other)); err != nil {
			t.Fatal(err)
		}
	}
	if err := mine([]byte("state"), 5); err != nil {
		t.Fatal(err)
	}
	if err := m.fetchState(root, filepath.Join(r.dir, "fetched")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(r.dir, "fetched")); string(got) != "state" {
		t.Errorf("fetched %q, %v", got, err)
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the VMM still has it")
	}
}

// The memory file of a running machine must not be touched; when it is, the machine ends and says so.
func TestTruncatedMemoryEndsTheMachine(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	content, err := os.ReadFile(r.snap.MemoryFile)
	if err != nil {
		t.Fatal(err)
	}
	r.snap.MemoryFile = filepath.Join(r.dir, "copy")
	write(t, r.snap.MemoryFile, content)
	m := r.mustRestore(t)
	if err := os.Truncate(r.snap.MemoryFile, 1<<20); err != nil {
		t.Fatal(err)
	}
	if answer, err := ask(t.Context(), m, "read"); err == nil {
		t.Errorf("the guest answers %q", answer)
	}
	<-m.Done()
	if how := ending(m.(*machine).process.State()); !strings.Contains(how, "truncated") {
		t.Errorf("it ended: %s", how)
	}
}

// A memory file with other content than was written is not the guest's.
func TestForeignMemoryEndsTheMachine(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	m, err := r.restore(t, t.Context(), func(s *vmm.Snapshot, _ *vmm.RestoreOptions) {
		s.MemoryFile = filepath.Join(r.dir, "zero")
		write(t, s.MemoryFile, make([]byte, s.MemoryMiB<<20))
	})
	if err != nil {
		t.Fatal(err) // Firecracker does not look at memory
	}
	select {
	case <-m.Done():
	case <-time.After(10 * time.Second):
		t.Error("a guest without its memory goes on")
	}
}

func TestClientSurvivesItsPeer(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	c := NewClient(a, Release{1, 15, 1})
	defer c.Close()
	go func() {
		_, _ = io.ReadFull(b, make([]byte, 10))
		b.Close()
	}()
	err := c.Pause(t.Context())
	var refused *Refusal
	if err == nil || errors.As(err, &refused) {
		t.Fatalf("an answer that never came: %v", err)
	}
	if again := c.Pause(t.Context()); !errors.Is(again, err) {
		t.Errorf("a broken connection was used again: %v", again)
	}
}
