// Package vmmtest decides whether a vmm.Driver is right. Run holds a driver to the contract with a guest that answers the
// commands that are listed in vmmtest/guest.
package vmmtest

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
	"warmboot/internal/vmm"
)

// Suite is a driver to test.
type Suite struct {
	// New makes a driver.
	New func(t *testing.T) vmm.Driver
	// Again makes the driver that our process has after a restart, when d has been forgotten.
	Again func(t *testing.T, d vmm.Driver) vmm.Driver
	// Spec is a machine with the test guest. The suite fills in ID, Dir, Network and MemoryFile.
	Spec func(t *testing.T) vmm.Spec
	// Kill ends a machine's VMM from outside, without a warning.
	Kill func(t *testing.T, d vmm.Driver, m vmm.Machine)
	// Alive reports whether a VMM runs for the machine with this id.
	Alive func(t *testing.T, d vmm.Driver, id string) bool
	// NoForwards says that the driver publishes no ports by itself.
	NoForwards bool
	// NoBareResume says that the VMM's release has a known fault: after a pause without a snapshot its guest is not reached any more.
	NoBareResume bool
	// FirstMayBreak says that the VMM's release has a known fault: the first connection to a restored guest may break soon after it was
	// made, as DialGuest says.
	FirstMayBreak bool
	// BalloonMiB is the memory of a machine to take memory back from, at least 128. 0 says that the driver's machines are not made for that,
	// and if they are vmm.MemoryReclaimers they say so too.
	BalloonMiB int
}

// limit is for one step of a machine under emulation on a busy host, a boot included.
const limit = 90 * time.Second

// filled is how much of the guest's memory, in MiB, the tests write.
const filled = 8

// Run tests a driver. It boots one machine for good, freezes it, and works with its clones.
func Run(t *testing.T, s Suite) {
	e := &env{Suite: s, driver: s.New(t), dir: dir(t)}
	t.Run("Probe", e.probe)
	t.Run("BootPauseFreeze", e.freeze)
	if t.Failed() {
		return // nothing below can work without a snapshot
	}
	t.Run("ClonesAreAlikeAndPrivate", e.clones)
	t.Run("Reclaim", e.reclaim)
	t.Run("Recover", e.recover)
	t.Run("RecoverDead", e.recoverDead)
	t.Run("Kill", e.kill)
	t.Run("Poweroff", e.poweroff)
	t.Run("StopTogether", e.stopTogether)
	t.Run("CreateFails", e.createFails)
	t.Run("RestoreFails", e.restoreFails)
}

type env struct {
	Suite
	driver vmm.Driver
	dir    string
	spec   vmm.Spec // of the frozen machine
	snap   vmm.Snapshot
}

// machines counts those of all suites in this process: what a driver keeps of a machine elsewhere than in its directory has its id.
var machines atomic.Int64

// dir makes a temporary directory that a VMM which is not root can pass through.
func dir(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "vmmtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	if err := os.Chmod(d, 0o711); err != nil {
		t.Fatal(err)
	}
	return d
}

func (e *env) context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// place gives a machine an id and a directory of its own.
func (e *env) place(t *testing.T) (id, path string) {
	t.Helper()
	id = fmt.Sprintf("test-%d-%d", os.Getpid(), machines.Add(1))
	path = filepath.Join(e.dir, id)
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return id, path
}

// restore starts a clone and makes sure that it is gone at the end of the test.
func (e *env) restore(t *testing.T) vmm.Machine { t.Helper(); return e.restoreFrom(t, e.snap) }

func (e *env) restoreFrom(t *testing.T, snap vmm.Snapshot) vmm.Machine {
	t.Helper()
	id, path := e.place(t)
	m, err := e.driver.Restore(e.context(t), snap, vmm.RestoreOptions{
		ID: id, Dir: path, RootDisk: e.spec.RootDisk, DataDisk: e.spec.DataDisk, Network: e.spec.Network, Owner: e.spec.Owner})
	if err != nil {
		t.Fatal(err)
	}
	e.stopAtEnd(t, m)
	return m
}

func (e *env) stopAtEnd(t *testing.T, m vmm.Machine) {
	t.Cleanup(func() {
		if err := m.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
		if k, ok := m.(vmm.ConsoleKeeper); ok && t.Failed() {
			t.Logf("the guest's last words:\n%s", k.Console())
		}
		e.nothingLeft(t, m.Handle().ID, m.Handle().Dir)
	})
}

func (e *env) nothingLeft(t *testing.T, id, path string) {
	t.Helper()
	if e.Alive(t, e.driver, id) {
		t.Errorf("the VMM of %s still runs", id)
	}
	left, err := os.ReadDir(path)
	if err != nil {
		t.Error(err)
	}
	for _, f := range left {
		t.Errorf("%s is left in the machine's directory", f.Name())
	}
}

// ask gives the guest one command and returns its answer. Where the first connection to a restored guest may break before there is one it
// asks again; all commands may be given twice.
func (e *env) ask(ctx context.Context, m vmm.Machine, command string) (string, error) {
	answer, err := askOnce(ctx, m, command)
	restored := slices.ContainsFunc(m.Timings(), func(p warmboot.Phase) bool { return p.Name == warmboot.PhaseRestore })
	if answer == "" && errors.Is(err, io.EOF) && restored && e.FirstMayBreak {
		answer, err = askOnce(ctx, m, command)
	}
	return answer, err
}

func askOnce(ctx context.Context, m vmm.Machine, command string) (string, error) {
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

func (e *env) mustAsk(t *testing.T, m vmm.Machine, command, want string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	got, err := e.ask(ctx, m, command)
	if err != nil {
		if k, ok := m.(vmm.ConsoleKeeper); ok {
			said := k.Console()
			t.Logf("the guest's console ends with:\n%s", said[max(0, len(said)-8000):])
		}
		t.Fatalf("%s: %v", command, err)
	}
	if want != "" && got != want {
		t.Fatalf("%s: the guest answers %q, want %q", command, got, want)
	}
	return got
}

func (e *env) counter(t *testing.T, m vmm.Machine) int { t.Helper(); return e.number(t, m, "counter") }

// number is the answer to a command, which is one.
func (e *env) number(t *testing.T, m vmm.Machine, command string) int {
	t.Helper()
	n, err := strconv.Atoi(e.mustAsk(t, m, command, ""))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func digest(t *testing.T, path string) [32]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return [32]byte(h.Sum(nil))
}

func (e *env) probe(t *testing.T) {
	caps, err := e.driver.Probe(e.context(t))
	if err != nil {
		t.Fatal(err)
	}
	if caps.Driver != e.driver.Name() || caps.Version == "" || caps.SnapshotVersion == "" || caps.Accelerator == "" || caps.Arch == "" {
		t.Errorf("capabilities have gaps: %+v", caps)
	}
	again, err := e.Again(t, e.driver).Probe(e.context(t))
	if err != nil || again != caps {
		t.Errorf("a second probe says %+v (%v), the first %+v", again, err, caps)
	}
	t.Logf("%+v", caps)
}

// freeze boots a machine, checks that its time stands still while it is paused, and makes the snapshot.
func (e *env) freeze(t *testing.T) {
	ctx := e.context(t)
	e.spec = e.Spec(t)
	e.spec.ID, e.spec.Dir = e.place(t)
	e.spec.MemoryFile = filepath.Join(e.spec.Dir, "..", "memory")
	if os.Geteuid() == 0 {
		// The VMM must be able to open it where it is.
		if err := os.Chown(e.dir, -1, int(e.spec.Owner.Readers)); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	m, err := e.driver.Create(ctx, e.spec)
	if err != nil {
		t.Fatal(err)
	}
	e.stopAtEnd(t, m)
	e.mustAsk(t, m, "ping", "pong")
	t.Logf("boot to the guest's first answer: %v; %v", time.Since(start), m.Timings())
	e.mustAsk(t, m, fmt.Sprintf("fill %d 7", filled), "ok")

	stateFile := filepath.Join(e.dir, "state")
	_, err = m.Snapshot(ctx, vmm.SnapshotOptions{StateFile: stateFile})
	expect.Code(t, err, warmboot.Conflict) // it runs
	if _, err := os.Stat(stateFile); err == nil {
		t.Error("a snapshot that failed left its state file")
	}

	if !e.NoBareResume {
		e.pause(t, ctx, m)
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	e.snap, err = m.Snapshot(ctx, vmm.SnapshotOptions{StateFile: stateFile})
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(stateFile)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("snapshot: %v, %d bytes of state", time.Since(start), info.Size())
	if err := m.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	info, err = os.Stat(e.snap.MemoryFile)
	if err != nil {
		t.Fatal(err)
	}
	if want := int64(e.spec.MemoryMiB) << 20; info.Size() != want {
		t.Errorf("the memory file has %d bytes, want %d", info.Size(), want)
	}
	if os.Geteuid() == 0 {
		// As the agent seals it: who comes there may read it, and a group of VMMs write to it if nothing else will do.
		caps, err := e.driver.Probe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o444)
		if caps.WritableMemoryFile {
			mode = 0o664
		}
		if err := errors.Join(os.Chown(e.snap.MemoryFile, 0, int(e.spec.Owner.Readers)), os.Chmod(e.snap.MemoryFile, mode)); err != nil {
			t.Fatal(err)
		}
	}
}

// pause checks that a paused machine's time stands still, and that it goes on afterwards.
func (e *env) pause(t *testing.T, ctx context.Context, m vmm.Machine) {
	t.Helper()
	const pause = 600 * time.Millisecond
	begin := time.Now()
	before := e.counter(t, m)
	for range 2 { // both are idempotent
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	paused := time.Now()
	short, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	if answer, err := e.ask(short, m, "ping"); err == nil {
		t.Errorf("a paused guest answers %q", answer)
	}
	stood := time.Since(paused)
	for range 2 {
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	ran := time.Duration(e.counter(t, m)-before) * time.Millisecond
	if could := time.Since(begin) - stood; ran < 0 || ran > could+pause/2 { // on a busy host it takes long to pause it, and to ask it
		t.Errorf("the guest's loop went on for %v, in %v and a pause of %v", ran, could, stood)
	}
}

func (e *env) clones(t *testing.T) {
	want := digest(t, e.snap.MemoryFile)
	var all sync.WaitGroup
	machines := make([]vmm.Machine, 3)
	for i := range machines {
		machines[i] = e.restore(t)
	}
	for i, m := range machines {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), limit)
			defer cancel()
			for _, step := range [][2]string{
				{"read", "7"}, // as at the snapshot
				{fmt.Sprintf("fill %d %d", filled, 100+i), "ok"},
				{"read", strconv.Itoa(100 + i)}, // and nobody else's
			} {
				if got, err := e.ask(ctx, m, step[0]); err != nil || got != step[1] {
					t.Errorf("clone %d: %s: %q, %v, want %q", i, step[0], got, err, step[1])
				}
			}
		})
	}
	all.Wait()
	if digest(t, e.snap.MemoryFile) != want {
		t.Error("the clones have changed the snapshot's memory file")
	}
	start := time.Now()
	m := e.restore(t)
	e.mustAsk(t, m, "ping", "pong")
	t.Logf("restore to the guest's first answer: %v; %v", time.Since(start), m.Timings())
	var phases []warmboot.PhaseName
	for _, p := range m.Timings() {
		phases = append(phases, p.Name)
	}
	if fmt.Sprint(phases) != "[vmm restore]" {
		t.Errorf("timed phases %v, want [vmm restore]", phases)
	}
	if err := m.Pause(e.context(t)); err != nil {
		t.Fatal(err)
	}
	_, err := m.Snapshot(e.context(t), vmm.SnapshotOptions{StateFile: filepath.Join(e.dir, "second")})
	expect.Code(t, err, warmboot.Invalid) // its memory is in no file
}

func (e *env) recover(t *testing.T) {
	first := e.restore(t)
	e.mustAsk(t, first, "fill 1 9", "ok")
	ctx := e.context(t)
	m, err := e.Again(t, e.driver).Recover(ctx, first.Handle())
	if err != nil {
		t.Fatal(err)
	}
	if m.Handle() != first.Handle() {
		t.Errorf("the handle became %+v, was %+v", m.Handle(), first.Handle())
	}
	e.mustAsk(t, m, "read", "9")
	if err := errors.Join(m.Pause(ctx), m.Resume(ctx)); err != nil {
		t.Error(err)
	}
	if !e.NoBareResume {
		e.mustAsk(t, m, "ping", "pong")
	}
	if err := m.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	for i, x := range []vmm.Machine{m, first} {
		select {
		case <-x.Done():
		case <-ctx.Done():
			t.Errorf("machine %d does not say that it has ended", i)
		}
	}
}

func (e *env) recoverDead(t *testing.T) {
	m := e.restore(t)
	e.Kill(t, e.driver, m)
	<-m.Done()
	reused := m.Handle()
	reused.PID = os.Getpid() // somebody else's now
	for _, h := range []vmm.Handle{m.Handle(), reused} {
		_, err := e.Again(t, e.driver).Recover(e.context(t), h)
		expect.Code(t, err, warmboot.NotFound)
		e.nothingLeft(t, h.ID, h.Dir)
	}
}

func (e *env) kill(t *testing.T) {
	m := e.restore(t)
	e.mustAsk(t, m, "ping", "pong")
	ctx := e.context(t)
	conn, err := m.DialGuest(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	e.Kill(t, e.driver, m)
	select {
	case <-m.Done():
	case <-ctx.Done():
		t.Fatal("a machine that was killed does not say so")
	}
	conn.SetReadDeadline(time.Now().Add(limit))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the guest channel of a dead machine goes on: %v", err)
	}
	expect.Code(t, m.Pause(ctx), warmboot.Unavailable)
	if conn, err := m.DialGuest(ctx); err == nil {
		conn.Close()
		t.Error("the guest of a dead machine can be dialled")
	}
}

func (e *env) poweroff(t *testing.T) {
	m := e.restore(t)
	ctx := e.context(t)
	if answer, err := e.ask(ctx, m, "poweroff"); err == nil {
		t.Errorf("a guest that powers off answers %q", answer)
	}
	select {
	case <-m.Done():
	case <-ctx.Done():
		t.Error("the VMM goes on although the guest has powered off")
	}
}

func (e *env) stopTogether(t *testing.T) {
	m := e.restore(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := m.Stop(context.Background(), 10*time.Millisecond); err != nil {
				t.Error(err)
			}
			select {
			case <-m.Done():
			default:
				t.Error("Stop returned before the VMM had ended")
			}
		})
	}
	all.Wait()

	// A context that is over does not leave the machine alive.
	m = e.restore(t)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.Stop(over, time.Minute); err != nil {
		t.Error(err)
	}
	e.nothingLeft(t, m.Handle().ID, m.Handle().Dir)
}

func (e *env) createFails(t *testing.T) {
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).AddrPort()
	forwards := warmboot.Conflict
	if e.NoForwards {
		forwards = warmboot.Invalid
	}
	for name, c := range map[string]struct {
		change func(*vmm.Spec)
		code   warmboot.Code
		says   string
		over   bool
	}{
		"no kernel": {change: func(s *vmm.Spec) { s.Kernel = filepath.Join(s.Dir, "no-such") }, code: warmboot.NotFound, says: "no-such"},
		"no disk":   {change: func(s *vmm.Spec) { s.DataDisk.Path = "/no-such-disk" }, code: warmboot.NotFound, says: "no-such-disk"},
		"taken port": {change: func(s *vmm.Spec) {
			s.Network.Forwards = []vmm.Forward{{Protocol: warmboot.TCP, HostIP: port.Addr(), HostPort: port.Port(), GuestPort: 80}}
		}, code: forwards, says: fmt.Sprint(port.Port())},
		"bad id":          {change: func(s *vmm.Spec) { s.ID = "a,b" }, code: warmboot.Invalid, says: "a,b"},
		"memory is there": {change: func(s *vmm.Spec) { s.MemoryFile = e.snap.MemoryFile }, code: warmboot.Conflict, says: "exists"},
		"canceled":        {change: func(*vmm.Spec) {}, code: warmboot.Canceled, over: true},
	} {
		t.Run(name, func(t *testing.T) {
			spec := e.spec
			id, path := e.place(t)
			spec.ID, spec.Dir, spec.MemoryFile = id, path, path+".memory"
			c.change(&spec)
			ctx := e.context(t)
			if c.over {
				over, cancel := context.WithCancel(ctx)
				cancel()
				ctx = over
			}
			m, err := e.driver.Create(ctx, spec)
			if err == nil {
				m.Stop(ctx, 0)
			}
			expect.Code(t, err, c.code)
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error does not mention %q: %v", c.says, err)
			}
			e.nothingLeft(t, id, path)
			if _, err := os.Stat(path + ".memory"); err == nil {
				t.Error("the memory file is left")
			}
		})
	}
}

func (e *env) restoreFails(t *testing.T) {
	state, err := os.ReadFile(e.snap.StateFile)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, content []byte) string {
		path := filepath.Join(e.dir, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		change func(*vmm.Snapshot)
		code   warmboot.Code
	}{
		"half a state":   {func(s *vmm.Snapshot) { s.StateFile = write("half", state[:len(state)/2]) }, warmboot.Corrupt},
		"empty state":    {func(s *vmm.Snapshot) { s.StateFile = write("empty", nil) }, warmboot.Corrupt},
		"not a state":    {func(s *vmm.Snapshot) { s.StateFile = write("not", []byte(strings.Repeat("not a state", 100))) }, warmboot.Corrupt},
		"no state":       {func(s *vmm.Snapshot) { s.StateFile = filepath.Join(e.dir, "no-such") }, warmboot.NotFound},
		"no memory":      {func(s *vmm.Snapshot) { s.MemoryFile = filepath.Join(e.dir, "no-such") }, warmboot.NotFound},
		"half of memory": {func(s *vmm.Snapshot) { s.MemoryFile = write("memory-half", make([]byte, 1<<20)) }, warmboot.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			id, path := e.place(t)
			snap := e.snap
			c.change(&snap)
			start := time.Now()
			m, err := e.driver.Restore(e.context(t), snap, vmm.RestoreOptions{
				ID: id, Dir: path, RootDisk: e.spec.RootDisk, DataDisk: e.spec.DataDisk, Network: e.spec.Network, Owner: e.spec.Owner})
			if err == nil {
				m.Stop(context.Background(), 0)
			}
			expect.Code(t, err, c.code)
			t.Logf("after %v: %v", time.Since(start), err)
			e.nothingLeft(t, id, path)
		})
	}
}
