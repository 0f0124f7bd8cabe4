package firecracker

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/guest"
	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/netns"
	"warmboot/internal/programtest"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
	"warmboot/internal/vmm/probe"
	"warmboot/internal/vmm/process"
)

// mutantVar names a mutant of the stand-in that the conformance suite is to be run on.
const mutantVar = "WARMBOOT_TEST_FIRECRACKER_MUTANT"

// mutants do what no Firecracker does.
var mutants = map[string]struct {
	faults standin.Faults
	caught string // the test of the suite that fails
}{
	"shares memory":     {standin.Faults{SharedMemory: true}, "ClonesAreAlikeAndPrivate"},
	"pauses not":        {standin.Faults{Restless: true}, "BootPauseFreeze"},
	"loads any state":   {standin.Faults{AnyState: true}, "RestoreFails/half_a_state"},
	"refuses to pause":  {standin.Faults{Calls: map[string]standin.Fault{"PATCH /vm": {Refuse: "no"}}}, "BootPauseFreeze"},
	"breaks the first":  {standin.Faults{FirstBreaks: true}, "ClonesAreAlikeAndPrivate"},
	"yields no memory":  {standin.Faults{Stubborn: true}, "Reclaim"},
	"only says it does": {standin.Faults{Hollow: true}, "Reclaim"},
}

// A suite that cannot fail proves nothing.
func TestTheSuiteCatchesMutants(t *testing.T) {
	t.Parallel()
	for name, mutant := range mutants {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestConformanceOfMutant$", "-test.v")
			cmd.Env = append(os.Environ(), mutantVar+"="+name)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || !bytes.Contains(out, []byte("--- FAIL: TestConformanceOfMutant/"+mutant.caught+" ")) {
				t.Errorf("the suite ended with %v, and not because of %s:\n%s", err, mutant.caught, out)
			}
		})
	}
}

func TestConformanceOfMutant(t *testing.T) {
	name := os.Getenv(mutantVar)
	if name == "" {
		t.Skipf("SKIPPED: it is run by TestTheSuiteCatchesMutants, with %s set", mutantVar)
	}
	mutant, ok := mutants[name]
	if !ok {
		t.Fatalf("there is no mutant %q", name)
	}
	conformance(t, standin.Profile{Version: "1.16.2", Faults: mutant.faults})
}

// Of a guest's memory only what it has used takes space.
func TestSnapshotOfUnusedMemoryIsSmall(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	info, err := os.Stat(r.snap.MemoryFile)
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; used > 8<<20 {
		t.Errorf("the memory of a guest that has filled 4 MiB takes %d bytes", used)
	}
}

// The releases in which a bare pause and resume leaves the guest deaf do so here too; after a snapshot they do not.
func TestDeafAfterBareResume(t *testing.T) {
	t.Parallel()
	for version, deaf := range map[string]bool{"1.15.1": false, "1.16.1": true, "1.16.2": false} {
		r := newRig(t, standin.Profile{Version: version})
		m := r.mustRestore(t)
		mustAsk(t, m, "ping", "pong")
		if err := errors.Join(m.Pause(t.Context()), m.Resume(t.Context())); err != nil {
			t.Fatal(err)
		}
		if deaf {
			ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			defer cancel()
			if answer, err := ask(ctx, m, "ping"); err == nil {
				t.Errorf("%s: a deaf guest answers %q", version, answer)
			}
		} else {
			mustAsk(t, m, "ping", "pong")
		}
		if caps, err := r.Probe(t.Context()); err != nil || (caps.Warning != "") != deaf {
			t.Errorf("%s: the warning is %q, %v", version, caps.Warning, err)
		}
	}
}

func TestDisks(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	other := filepath.Join(r.dir, "other")
	write(t, other, bytes.Repeat([]byte("other"), 100))
	if owner.Confined() {
		if err := os.Chown(other, int(owner.UID), int(owner.GID)); err != nil {
			t.Fatal(err)
		}
	}
	first := r.mustRestore(t)
	second, err := r.restore(t, t.Context(), func(_ *vmm.Snapshot, o *vmm.RestoreOptions) { o.DataDisk.Path = other })
	if err != nil {
		t.Fatal(err)
	}
	mustAsk(t, first, "disk root 0 13", `"the root disk"`)
	mustAsk(t, first, "disk data 0 = mine", "ok")
	mustAsk(t, first, "disk data 0 4", `"mine"`)
	mustAsk(t, second, "disk data 0 5", `"other"`) // and not the path that was frozen
	if answer, err := ask(t.Context(), second, "disk root 0 = mine"); answer == "ok" || err != nil {
		t.Errorf("the guest writes to its root disk: %q, %v", answer, err)
	}
	if content, _ := os.ReadFile(r.spec.DataDisk.Path); !bytes.HasPrefix(content, []byte("mine")) {
		t.Errorf("the disk's file begins with %.10q", content)
	}
	_, err = r.restore(t, t.Context(), func(_ *vmm.Snapshot, o *vmm.RestoreOptions) { o.DataDisk.Format = vmm.QCOW2 })
	wantError(t, err, warmboot.Invalid, "raw disks only")
}

// A VMM is where a guest would break out to, so it has nothing to offer there.
func TestConfinement(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can give machines users of their own")
	}
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	m, err := r.create(t, t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(text)) {
		k, v, _ := strings.Cut(line, ":")
		status[k] = strings.Join(strings.Fields(v), " ")
	}
	uid, gid, none := fmt.Sprint(owner.UID), fmt.Sprint(owner.GID), "0000000000000000"
	for k, want := range map[string]string{
		"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " "),
		"CapEff": none, "CapPrm": none, "CapInh": none, "CapAmb": none,
	} {
		if status[k] != want {
			t.Errorf("%s is %q, want %q", k, status[k], want)
		}
	}
	if pid, err := unix.Getsid(m.Handle().PID); err != nil || pid != m.Handle().PID {
		t.Errorf("it is in session %d (%v), not in one of its own", pid, err)
	}
	root, err := m.(*machine).openRoot()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for path, want := range map[string]struct {
		uid  uint32
		mode os.FileMode
	}{
		root.Name() + "/.": {owner.UID, 0o700}, m.Handle().Dir + "/" + machineFile: {0, 0o600}, m.Handle().Dir + ".memory": {owner.UID, 0o600},
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != want.uid || info.Mode().Perm() != want.mode {
			t.Errorf("%s belongs to %d and has mode %v", path, st.Uid, info.Mode())
		}
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.Handle().PID))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if to, _ := os.Readlink(f); strings.HasPrefix(to, r.dir) && !strings.HasSuffix(to, "/data") && !strings.HasSuffix(to, "/root") {
			t.Errorf("it has inherited %s", to)
		}
	}
}

// TestKernelCommandLine: as under QEMU, a guest that is not ours finds its root disk, and its udev leaves eth0 its name.
func TestKernelCommandLine(t *testing.T) {
	t.Parallel()
	spec := vmm.Spec{RootDisk: vmm.Disk{Path: "/r"}, KernelArgs: []string{"noxsave"}}
	if got, want := kernelCommandLine(spec), " net.ifnames=0 root=/dev/vda ro noxsave"; !strings.HasSuffix(got, want) {
		t.Errorf("got %s, want it to end with%s", got, want)
	}
}

// withTAP makes a TAP in a namespace of its own for the rig's machines. Where they are not jailed they run as root, because /dev/net/tun need not be
// for everybody; in a jail they have one of their own.
func (r *rig) withTAP(t *testing.T) vmm.Network {
	t.Helper()
	needRoot(t)
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() { ns.Close() })
	must(t, netns.In(ns, func() error { return netns.MakeTAP("tap0", owner.UID) }))
	if r.Unjailed {
		r.spec.Owner = vmm.Owner{}
	}
	return vmm.Network{TAP: "tap0", Namespace: netns.Path(ns), MAC: "02:11:22:33:44:55"}
}

// A machine's process runs in the network namespace that its TAP is in, and nothing else of ours does.
func TestNetwork(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can make network namespaces")
	}
	for _, version := range []string{"1.15.1", "1.16.0"} { // whose jailers differ
		t.Run(version, func(t *testing.T) { t.Parallel(); inNetwork(t, newRig(t, standin.Profile{Version: version})) })
	}
}

func inNetwork(t *testing.T, r *rig) {
	t.Helper()
	network := r.withTAP(t)
	want, err := os.Readlink(network.Namespace)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil || ours == want {
		t.Fatalf("%s and %s, %v", ours, want, err)
	}
	m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.Network = network })
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", m.Handle().PID)); got != want {
		t.Errorf("it runs in %s, want %s (%v)", got, want, err)
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	withNIC, err := m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	clone, err := r.restore(t, t.Context(), func(s *vmm.Snapshot, o *vmm.RestoreOptions) {
		*s, o.Network = withNIC, network
	})
	if err != nil {
		t.Fatal(err)
	}
	mustAsk(t, clone, "ping", "pong")
	if got, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", clone.Handle().PID)); got != want {
		t.Errorf("the clone runs in %s, want %s", got, want)
	}
	if err := clone.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	r.spec.Owner = owner // root would get a TAP that is not there
	for name, n := range map[string]vmm.Network{
		"no TAP": {TAP: "no-such-tap", Namespace: network.Namespace}, "no namespace": {TAP: "tap0", Namespace: "/no/such/namespace"}, "no interface": {TAP: "lo", Namespace: network.Namespace},
		"no network namespace": {TAP: "tap0", Namespace: "/proc/self/ns/uts"}, "wrong MAC": {TAP: "tap0", MAC: "02:11"},
	} {
		if _, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.Network = n }); err == nil {
			t.Errorf("%s: it starts", name)
		}
	}
	if now, err := os.Readlink("/proc/self/ns/net"); now != ours {
		t.Errorf("this process has changed to %s, %v", now, err)
	}
}

func TestStopWithGrace(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stubborn bool
		grace    time.Duration
	}{"goes": {false, time.Minute}, "stubborn": {true, 200 * time.Millisecond}} {
		r := newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Stubborn: c.stubborn}})
		m := r.mustRestore(t)
		within(t, 20*time.Second, func() {
			if err := m.Stop(t.Context(), c.grace); err != nil {
				t.Error(err)
			}
		})
		if how := ending(m.(*machine).process.State()); strings.Contains(how, "went down") == c.stubborn {
			t.Errorf("%s: %s", name, how)
		}
	}
}

func TestReclaim(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	r.Balloon = true
	big := func(s *vmm.Spec) { s.MemoryMiB = 160 }
	m, err := r.create(t, t.Context(), big)
	if err != nil {
		t.Fatal(err)
	}
	mustAsk(t, m, "fill 150 1", "ok")
	resident := func() int {
		t.Helper()
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", m.Handle().PID))
		if err != nil {
			t.Fatal(err)
		}
		pages, err := strconv.Atoi(strings.Fields(string(text))[1])
		if err != nil {
			t.Fatal(err)
		}
		return pages * os.Getpagesize() >> 20
	}
	before := resident()
	reclaimer := m.(vmm.MemoryReclaimer)
	if got, err := reclaimer.Reclaim(t.Context(), 96); got != 0 || err != nil {
		t.Errorf("of a guest that uses all of its memory %d MiB were reclaimed, %v", got, err)
	}
	mustAsk(t, m, "read", "1")
	mustAsk(t, m, "release", "ok")
	if got, err := reclaimer.Reclaim(t.Context(), 96); got != 96 || err != nil {
		t.Errorf("reclaimed %d MiB, %v", got, err)
	}
	if freed := before - resident(); freed < 80 {
		t.Errorf("the process is only %d MiB smaller", freed)
	}
	if got, err := reclaimer.Reclaim(t.Context(), 0); got != 0 || err != nil {
		t.Errorf("gave back all but %d MiB, %v", got, err)
	}
	for _, mib := range []int{-1, 97, 160, 1 << 20} {
		_, err := reclaimer.Reclaim(t.Context(), mib)
		wantError(t, err, warmboot.Invalid, "cannot do without")
	}

	r.Balloon = false
	if m, err = r.create(t, t.Context(), big); err != nil {
		t.Fatal(err)
	}
	_, err = m.(vmm.MemoryReclaimer).Reclaim(t.Context(), 96)
	wantError(t, err, warmboot.Conflict, "no balloon")

	r = newRig(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{Stubborn: true}})
	r.Balloon = true
	if m, err = r.create(t, t.Context(), big); err != nil {
		t.Fatal(err)
	}
	within(t, 15*time.Second, func() {
		if got, err := m.(vmm.MemoryReclaimer).Reclaim(t.Context(), 96); got != 0 || err != nil {
			t.Errorf("of a guest that yields nothing %d MiB were reclaimed, %v", got, err)
		}
	})
}

func TestKernelIsUnpackedOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write(kerneltest.ELF(100_000)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	vmlinuz := filepath.Join(r.dir, "vmlinuz")
	write(t, vmlinuz, kerneltest.BzImage(packed.Bytes()))
	boot := func() {
		t.Helper()
		m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.Kernel = vmlinuz })
		if err != nil {
			t.Fatal(err)
		}
		mustAsk(t, m, "ping", "pong")
		if err := m.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	_, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.Kernel = vmlinuz })
	wantError(t, err, warmboot.Invalid, "StateDir")
	r.StateDir = filepath.Join(r.dir, "vmm")
	if err := os.Mkdir(r.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	var first os.FileInfo
	for range 2 {
		boot()
		files, err := filepath.Glob(filepath.Join(r.StateDir, "kernels", "*"))
		if err != nil || len(files) != 1 {
			t.Fatalf("%v, %v", files, err)
		}
		info, err := os.Stat(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = info
		} else if !os.SameFile(first, info) || !first.ModTime().Equal(info.ModTime()) {
			t.Error("the kernel was unpacked a second time")
		}
	}
	write(t, vmlinuz, kerneltest.BzImage([]byte("neither gzip nor anything else")))
	_, err = r.create(t, t.Context(), func(s *vmm.Spec) { s.Kernel = vmlinuz })
	wantError(t, err, warmboot.Invalid, "another kernel")
	write(t, vmlinuz, []byte("no kernel at all"))
	_, err = r.create(t, t.Context(), func(s *vmm.Spec) { s.Kernel = vmlinuz })
	wantError(t, err, warmboot.Internal, "kernel")
}

// However much a guest prints, the end of it is kept and no more.
func TestConsoleIsBounded(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	m := r.mustRestore(t)
	mustAsk(t, m, "print 20000", "ok")
	// It is on its way to us when the guest says that it has printed.
	for late := time.After(10 * time.Second); ; {
		text, more := m.(*machine).console.Watch()
		if strings.Contains(text, "for whoever reads it\r\n") && len(text) >= 1000 {
			break
		}
		select {
		case <-more:
			continue
		case <-late:
		}
		break
	}
	console := m.(vmm.ConsoleKeeper).Console()
	if len(console) < 1000 || len(console) > process.TailLimit || !strings.Contains(console, "for whoever reads it\r\n") {
		t.Errorf("%d bytes are kept; they end with %q", len(console), console[max(0, len(console)-100):])
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			snap, opts := r.snap, vmm.RestoreOptions{RootDisk: r.spec.RootDisk, DataDisk: r.spec.DataDisk, Owner: owner}
			opts.ID, opts.Dir = r.place(t)
			m, err := r.Restore(t.Context(), snap, opts)
			if err != nil {
				t.Error(err)
				return
			}
			for _, step := range [][2]string{{"read", "7"}, {fmt.Sprintf("fill 4 %d", 100+i), "ok"}, {"read", fmt.Sprint(100 + i)}} {
				if got, err := ask(t.Context(), m, step[0]); got != step[1] {
					t.Errorf("clone %d: %s: %q, %v", i, step[0], got, err)
				}
			}
			if err := m.Stop(t.Context(), 0); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// A connection that was there at the snapshot is gone, in the clone and here; the listener is not.
func TestConnectionDoesNotSurviveTheSnapshot(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	m, err := r.create(t, t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := m.DialGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"}); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %v", err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustAsk(t, m, "ping", "pong")
}

// helperVar, set to a helped or its like as JSON, makes this test binary restore a machine and end.
const helperVar = "WARMBOOT_TEST_FIRECRACKER_HELPER"

// left has this test run in a process of its own, which is told what to do, and returns the machine that it leaves.
func left(t *testing.T, told any) (h vmm.Handle) {
	t.Helper()
	text, err := json.Marshal(told)
	if err != nil {
		t.Fatal(err)
	}
	helper := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	helper.Env = append(os.Environ(), helperVar+"="+string(text), cgroupVar+"="+testCgroup())
	out, err := helper.Output()
	if err == nil {
		err = json.Unmarshal(out, &h)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return h
}

// leave ends that process, and nothing is cleaned up.
func leave(t *testing.T, m vmm.Machine, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(m.Handle())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s\n", out)
	os.Exit(0)
}

// helped is what the helper is told.
type helped struct {
	Binary string
	Caps   vmm.Capabilities
	Snap   vmm.Snapshot
	Opts   vmm.RestoreOptions
}

// A machine goes on when the process that started it ends, and nothing of that process is missed.
func TestMachineOutlivesUs(t *testing.T) {
	if text := os.Getenv(helperVar); text != "" {
		var h helped
		if err := json.Unmarshal([]byte(text), &h); err != nil {
			t.Fatal(err)
		}
		d := newDriver(Config{Unjailed: !jailing(), Unlimited: !limitable(), Binary: h.Binary})
		d.found = foundAs(t, h.Caps, Release{1, 15, 1})
		m, err := d.Restore(t.Context(), h.Snap, h.Opts)
		leave(t, m, err)
	}
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	h := helped{Binary: r.Binary, Caps: r.found.caps, Snap: r.snap, Opts: vmm.RestoreOptions{RootDisk: r.spec.RootDisk, DataDisk: r.spec.DataDisk, Owner: owner}}
	h.Opts.ID, h.Opts.Dir = r.place(t)
	handle := left(t, h)
	m, err := r.Recover(t.Context(), handle)
	if err != nil {
		t.Fatal(err)
	}
	r.after(t, m, nil, handle.ID, handle.Dir)
	mustAsk(t, m, "read", "7")
	mustAsk(t, m, "print 5000", "ok") // more than any pipe holds
	if err := errors.Join(m.Pause(t.Context()), m.Resume(t.Context())); err != nil {
		t.Error(err)
	}
	mustAsk(t, m, "ping", "pong")
}

// The release that a machine is spoken to as is its own, whatever is installed by now.
func TestRecoverAfterAnUpgrade(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.12.1"})
	first := r.mustRestore(t)
	r.found = foundAs(t, r.found.caps, Release{1, 17, 0})
	m, err := r.Recover(t.Context(), first.Handle())
	if err != nil {
		t.Fatal(err)
	}
	if got := m.(*machine).kept.Release; got != (Release{1, 12, 1}) {
		t.Errorf("it is spoken to as %s", got)
	}
}

// A machine of which nothing is known any more is ended, not left to itself.
func TestRecoverWithoutRecord(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	m := r.mustRestore(t)
	write(t, filepath.Join(m.Handle().Dir, machineFile), []byte("{"))
	_, err := r.Recover(t.Context(), m.Handle())
	wantError(t, err, warmboot.NotFound, "it was ended")
	<-m.Done()
	r.nothingLeft(t, m.Handle().ID, m.Handle().Dir)
	_, err = r.Recover(t.Context(), vmm.Handle{Driver: "qemu", ID: "x"})
	wantError(t, err, warmboot.Invalid, "qemu")
}

func TestProbe(t *testing.T) {
	t.Parallel()
	c := configFor(t, standin.Profile{Version: "1.16.1"})
	c.StateDir = filepath.Join(shared(t), "vmm")
	// anew puts the same binary in its place; at first it may be linked to that of all tests, and change with every link.
	anew := func() {
		t.Helper()
		content, err := os.ReadFile(c.Binary)
		must(t, err, programtest.Write(c.Binary, content))
	}
	anew()
	caps, err := newDriver(c).Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if caps.FCVersion() != "v1.16.1" || caps.SnapshotVersion != "10.0.0" || !strings.Contains(caps.Warning, "1.16.2") {
		t.Errorf("found %+v", caps)
	}
	// A snapshot is tied to all of it, and to how machines are connected here, which is not the driver's to say.
	connected := caps
	connected.Network = "tap"
	f := reflect.ValueOf(snapshot.FingerprintOf(connected, "image", 1, 512))
	for i := range f.NumField() {
		if f.Field(i).IsZero() {
			t.Errorf("the fingerprint has no %s", f.Type().Field(i).Name)
		}
	}
	if parts := strings.Split(caps.CPUModel, "/"); len(parts) != 4 || parts[0] == "" || parts[3] == "" {
		t.Errorf("the CPU is %q", caps.CPUModel)
	}

	// What may be another next time is not remembered.
	poor := c
	poor.StateDir = filepath.Join(shared(t), "vmm")
	short := standin.Profile{Version: "1.16.1", Faults: standin.Faults{Calls: map[string]standin.Fault{
		"PUT /actions": {Refuse: "Cannot allocate memory (os error 12)"},
	}}}
	must(t, standin.Change(c.Binary, short))
	_, err = newDriver(poor).Probe(t.Context())
	wantError(t, err, warmboot.Unavailable, "os error 12")
	if _, err := os.Stat(filepath.Join(poor.StateDir, probeFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what was found out was written down: %v", err)
	}
	must(t, standin.Change(c.Binary, standin.Profile{Version: "1.16.1"}))
	if again, err := newDriver(poor).Probe(t.Context()); err != nil || again.FCVersion() != "v1.16.1" {
		t.Errorf("with memory again: %+v, %v", again, err)
	}
	anew()
	if caps, err = newDriver(c).Probe(t.Context()); err != nil {
		t.Fatal(err)
	}

	// What was found out is remembered, until the binary changes.
	broken := standin.Profile{Version: "1.16.1", Faults: standin.Faults{BootSays: "KVM internal error"}}
	if err := standin.Change(c.Binary, broken); err != nil {
		t.Fatal(err)
	}
	if again, err := newDriver(c).Probe(t.Context()); c.Unjailed && (err != nil || again != caps) { // else the profile is in the binary
		t.Errorf("the second time: %+v, %v", again, err)
	}
	anew()
	for range 2 { // the second time it is remembered
		_, err = newDriver(c).Probe(t.Context())
		wantError(t, err, warmboot.Unavailable, "KVM internal error")
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "warmboot-kvm-*")); len(left) > 0 {
		t.Logf("another probe may be running: %v", left)
	}
}

// A binary that is replaced while the driver is in use is not taken for the one that was found, however it was replaced; the same one again is.
func TestBinaryIsReplaced(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	content, err := os.ReadFile(r.Binary)
	must(t, err)
	install := func(content []byte) {
		t.Helper()
		must(t, programtest.Write(r.Binary, content))
	}
	install(append(content, ' '))
	caps := r.found.caps
	caps.BinaryDigest, err = probe.FileDigest(r.Binary)
	must(t, err)
	r.found = foundAs(t, caps, r.found.release)
	works := func(when string) {
		t.Helper()
		m := r.mustRestore(t)
		mustAsk(t, m, "read", "7")
		must(t, m.Stop(t.Context(), 0))
		if now, err := r.Probe(t.Context()); err != nil || now != caps {
			t.Errorf("%s: found %+v, %v", when, now, err)
		}
	}
	refused := func(when string) {
		t.Helper()
		_, err := r.restore(t, t.Context(), nil)
		wantError(t, err, warmboot.Unavailable, "restart warmboot")
		_, err = r.create(t, t.Context(), nil)
		wantError(t, err, warmboot.Unavailable, "restart warmboot")
		if now, err := r.Probe(t.Context()); warmboot.CodeOf(err) != warmboot.Unavailable {
			t.Errorf("%s: found %+v, %v", when, now, err)
		}
	}
	works("at first")
	install(append(content, ' '))
	works("the same again")
	install(append(content, ' ', ' '))
	refused("another")
	must(t, os.Remove(r.Binary))
	refused("none")
	install(append(content, ' '))
	works("the old one is back")

	// In place, of the same size, and as if it were as old.
	before, err := os.Stat(r.Binary)
	must(t, err)
	func() {
		syscall.ForkLock.RLock() // see programtest.Write
		defer syscall.ForkLock.RUnlock()
		f, err := os.OpenFile(r.Binary, os.O_WRONLY, 0)
		must(t, err)
		defer f.Close()
		_, err = f.WriteAt([]byte("\n"), before.Size()-1)
		must(t, err)
	}()
	must(t, os.Chtimes(r.Binary, before.ModTime(), before.ModTime()))
	refused("changed in place")
}

func TestProbeFails(t *testing.T) {
	t.Parallel()
	notOurs := "does not say"
	if jailing() {
		notOurs = "needs libraries"
	}
	for name, c := range map[string]struct {
		profile standin.Profile
		change  func(*Config)
		says    string
	}{
		"not there":   {change: func(c *Config) { c.Binary = "/no/such/firecracker" }, says: "releases"},
		"not ours":    {change: func(c *Config) { c.Jailer, c.Binary = filepath.Join(filepath.Dir(c.Binary), "jailer"), "/bin/echo" }, says: notOurs},
		"too old":     {profile: standin.Profile{Version: "1.6.0"}, says: "too old"},
		"unknown":     {profile: standin.Profile{Version: "2.0.0"}, says: "does not know"},
		"no kernel":   {change: func(c *Config) { c.ProbeKernel = "/no/such/kernel" }, says: "no such file"},
		"KVM breaks":  {profile: standin.Profile{Version: "1.15.1", Faults: standin.Faults{BootSays: "emulation failure"}}, says: "emulation failure"},
		"KVM refuses": {profile: standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /actions": {Refuse: "Start microvm error: Kvm error: Error creating KVM object: No such file or directory (os error 2)"}}}}, says: "cannot use KVM"},
		"hangs":       {profile: standin.Profile{Version: "1.15.1", Faults: standin.Faults{Calls: map[string]standin.Fault{"PUT /actions": {Exit: exitSIGSEGV}}}}, says: "crashed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.profile.Version == "" {
				c.profile.Version = "1.15.1"
			}
			config := configFor(t, c.profile)
			if c.change != nil {
				c.change(&config)
			}
			_, err := newDriver(config).Probe(t.Context())
			wantError(t, err, warmboot.Unavailable, c.says)
		})
	}
	t.Run("canceled", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		d := newDriver(configFor(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{NoSocket: true}}))
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := d.Probe(ctx)
		wantError(t, err, warmboot.Canceled, "")
	})
}

func TestMachineThatCannotBe(t *testing.T) {
	t.Parallel()
	r := newRig(t, standin.Profile{Version: "1.15.1"})
	for says, change := range map[string]func(*vmm.Spec){
		"1 to 32 CPUs":   func(s *vmm.Spec) { s.VCPUs = 33 },
		"at least 16":    func(s *vmm.Spec) { s.MemoryMiB = 8 },
		"needs a kernel": func(s *vmm.Spec) { s.Kernel = "" },
		"raw disks only": func(s *vmm.Spec) { s.RootDisk.Format = vmm.QCOW2 },
		"absolute":       func(s *vmm.Spec) { s.Initrd = "initrd" },
	} {
		_, err := r.create(t, t.Context(), change)
		wantError(t, err, warmboot.Invalid, says)
	}
}

// The driver and the guest agent must agree on it without importing each other.
func TestGuestPort(t *testing.T) {
	t.Parallel()
	if guestPort != guest.VsockPort {
		t.Errorf("the guest listens on %d", guest.VsockPort)
	}
}
