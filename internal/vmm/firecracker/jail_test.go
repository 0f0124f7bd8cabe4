package firecracker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
)

// TestAllInJails runs all tests of this package once more, with the stand-in in jails.
func TestAllInJails(t *testing.T) {
	if jailing() {
		t.Skip("SKIPPED: it is this that runs")
	}
	needRoot(t)
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.skip=^(TestAllInJails|TestJail.*|TestTheSuiteCatchesMutants|TestReal.*)$")
	cmd.Env = append(os.Environ(), jailedVar+"=1", cgroupVar+"="+testCgroup())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v:\n%s", err, out)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can make jails and network namespaces")
	}
}

// jailedRig is newRig with a jail, whatever the other tests have.
func jailedRig(t testing.TB, p standin.Profile) *rig {
	t.Helper()
	needRoot(t)
	kernel := configFor(t, p).ProbeKernel
	return rigWith(t, p.Version, jailedConfig(t, p, kernel))
}

// What a guest finds that has broken out: the files that are its machine's, and nothing to do with them that the machine may not.
func TestJailHoldsNothingElse(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	ctime := func() (all []unix.Timespec) {
		t.Helper()
		for _, path := range []string{r.snap.MemoryFile, r.snap.StateFile, r.spec.RootDisk.Path} {
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			all = append(all, st.Ctim)
		}
		return all
	}
	before := ctime()
	m := r.mustRestore(t)
	mustAsk(t, m, "disk data 0 = mine", "ok")
	if after := ctime(); !slices.Equal(before, after) {
		t.Errorf("the files' ctimes were %v and are %v", before, after)
	}
	pid := m.Handle().PID
	root := fmt.Sprintf("/proc/%d/root", pid)
	var found []string
	if err := filepath.WalkDir(root+"/", func(path string, _ os.DirEntry, err error) error {
		found = append(found, strings.TrimPrefix(path, root))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	want := []string{"/", "/api.sock", "/data", "/dev", "/dev/kvm", "/dev/net", "/dev/net/tun", "/dev/urandom", "/firecracker", "/guest.sock", "/memory", "/rootfs", "/run", "/state"}
	if !slices.Equal(found, want) {
		t.Errorf("it has %q, want %q", found, want)
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		limits := strings.Split(f[5], ",")
		writable := f[4] == "/" || f[4] == "/data"
		if slices.Contains(limits, "rw") != writable || !slices.Contains(limits, "nosuid") || f[4] != "/" && (!slices.Contains(limits, "nodev") || !slices.Contains(limits, "noexec")) {
			t.Errorf("%s is mounted with %s", f[4], f[5])
		}
		if f[4] == "/" && !strings.Contains(line, " - tmpfs "+m.Handle().Dir+" ") {
			t.Errorf("the root is %s", line)
		}
	}
	for _, name := range []string{"/memory", "/state", "/rootfs"} {
		if f, err := os.OpenFile(root+name, os.O_WRONLY, 0); err == nil {
			f.Close()
			t.Errorf("%s can be written, by root", name)
		}
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	ours, ourErr := os.Readlink("/proc/self/ns/mnt")
	if err != nil || ourErr != nil || theirs == ours {
		t.Errorf("its mounts are %s, ours %s (%v, %v)", theirs, ours, err, ourErr)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !strings.Contains(string(limits), fmt.Sprintf("Max file size             %d ", stateLimit)) {
		t.Errorf("its limits are %s, %v", limits, err)
	}
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil || len(environment) > 0 {
		t.Errorf("it is told %q, %v", environment, err)
	}
	if path := groupOf(t, m.Handle().ID); path != "" {
		if procs, err := os.ReadFile(path + "/cgroup.procs"); strings.TrimSpace(string(procs)) != fmt.Sprint(pid) {
			t.Errorf("its cgroup has the processes %q, %v", procs, err)
		}
	}
}

// A guest that has broken out may leave whatever it can; nothing of it is found by us.
func TestJailIsGoneWithWhateverIsInIt(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	m := r.mustRestore(t)
	victim := filepath.Join(r.dir, "victim")
	if err := os.MkdirAll(filepath.Join(victim, "kept"), 0o777); err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("/proc/%d/root", m.Handle().PID)
	if err := errors.Join(os.Symlink(victim, root+"/link"), os.Remove(root+"/api.sock"), os.MkdirAll(root+"/run/a/b/c", 0o700), os.RemoveAll(root+"/dev")); err != nil {
		t.Fatal(err)
	}
	// It fills no disk of ours.
	f, err := os.Create(root + "/full")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.ReadFrom(zeros{})
	if !errors.Is(err, unix.ENOSPC) || size > jailRoom {
		t.Errorf("%d bytes fit into the jail: %v", size, err)
	}
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(victim, "kept")); err != nil {
		t.Error(err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// Nor does a process of it stay.
func TestJailIsGoneWithWhoeverIsInIt(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	m := r.mustRestore(t)
	path := groupOf(t, m.Handle().ID)
	if path == "" {
		t.Skip("SKIPPED: needs cgroup v2")
	}
	left := exec.Command("sleep", "1000")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+"/cgroup.procs", []byte(fmt.Sprint(left.Process.Pid)), 0); err != nil {
		_ = left.Process.Kill()
		t.Error(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- left.Wait() }()
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
	if err := <-ended; err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended with %v", err)
	}
}

func TestJailFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		profile standin.Profile
		change  func(*rig, *vmm.Snapshot, *vmm.RestoreOptions)
		code    warmboot.Code
		says    string
	}{
		"no jailer": {change: func(r *rig, _ *vmm.Snapshot, _ *vmm.RestoreOptions) { r.jail.jailer = "/no/such/jailer" }, code: warmboot.Unavailable, says: "(/no/such/jailer) was not found"},
		"nothing beside": {change: func(r *rig, _ *vmm.Snapshot, _ *vmm.RestoreOptions) {
			must(t, os.Remove(filepath.Join(filepath.Dir(r.Binary), "jailer")))
		}, code: warmboot.Unavailable, says: "belongs beside"},
		"jailer dies":  {profile: standin.Profile{Jailer: standin.JailerFaults{Says: "no jail today"}}, code: warmboot.Internal, says: "the jail could not be made, or Firecracker ended in it at once: Error: no jail today"},
		"jailer hangs": {profile: standin.Profile{Jailer: standin.JailerFaults{Hang: true}}, code: warmboot.Timeout, says: "not ready in time"},
		"no binary": {change: func(r *rig, _ *vmm.Snapshot, _ *vmm.RestoreOptions) {
			r.found.caps.Binary = filepath.Join(filepath.Dir(r.Binary), "none")
		},
			code: warmboot.Unavailable, says: "no such file"},
		"needs libraries": {change: func(r *rig, _ *vmm.Snapshot, _ *vmm.RestoreOptions) {
			r.jail.jailer = filepath.Join(filepath.Dir(r.Binary), "jailer")
			caps := r.found.caps
			caps.Binary = "/bin/sleep"
			r.found = foundAs(t, caps, r.found.release)
		}, code: warmboot.Unavailable, says: "needs libraries"},
		"no user": {change: func(_ *rig, _ *vmm.Snapshot, o *vmm.RestoreOptions) { o.Owner = vmm.Owner{} }, code: warmboot.Invalid, says: "no user of its own"},
		"root":    {change: func(_ *rig, _ *vmm.Snapshot, o *vmm.RestoreOptions) { o.Owner = vmm.Owner{GID: 1} }, code: warmboot.Invalid, says: "no user of its own"},
		"foreign user": {change: func(_ *rig, _ *vmm.Snapshot, o *vmm.RestoreOptions) {
			o.Owner = vmm.Owner{UID: owner.UID + 1, GID: owner.GID + 1}
		},
			code: warmboot.Internal, says: "may not use a file"},
		"unreadable": {change: func(r *rig, s *vmm.Snapshot, _ *vmm.RestoreOptions) {
			content, err := os.ReadFile(s.StateFile)
			s.StateFile = filepath.Join(r.dir, "unreadable")
			must(t, err, os.WriteFile(s.StateFile, content, 0o600))
		}, code: warmboot.Internal, says: "may not use a file"},
		"no namespace": {change: func(_ *rig, _ *vmm.Snapshot, o *vmm.RestoreOptions) {
			o.Network = vmm.Network{TAP: "lo", Namespace: "/no/such/namespace"}
		},
			code: warmboot.Internal, says: "/no/such/namespace"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath("jailer"); err == nil && name == "nothing beside" {
				t.Skip("SKIPPED: there is a jailer in PATH")
			}
			c.profile.Version = "1.15.1"
			r := jailedRig(t, c.profile)
			ctx, cancel := context.WithCancel(t.Context())
			if c.code == warmboot.Timeout {
				ctx, cancel = context.WithTimeout(ctx, 300*time.Millisecond)
			}
			defer cancel()
			_, err := r.restore(t, ctx, func(s *vmm.Snapshot, o *vmm.RestoreOptions) {
				if c.change != nil {
					c.change(r, s, o)
				}
			})
			t.Log(err)
			wantError(t, err, c.code, c.says)
		})
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// A disk that allows neither devices nor programs can hold machines all the same.
func TestJailOnADiskWithoutDevices(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	r.dir = filepath.Join(r.dir, "mounted")
	must(t, os.Mkdir(r.dir, 0o755), unix.Mount("none", r.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"))
	t.Cleanup(func() {
		if err := unix.Unmount(r.dir, 0); err != nil {
			t.Errorf("something still uses it: %v", err)
		}
	})
	mustAsk(t, r.mustRestore(t), "read", "7")
}

// What a machine of the same id has left that ended without us is no obstacle; one that goes on is.
func TestJailAfterACrash(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	var id string
	stale := func(_ *vmm.Snapshot, o *vmm.RestoreOptions) {
		id = o.ID
		must(t, os.MkdirAll(filepath.Join(o.Dir, jailDir), 0o700))
		if path := groupOf(t, id); path != "" {
			must(t, os.MkdirAll(path, 0o755))
		}
	}
	m, err := r.restore(t, t.Context(), stale)
	if err != nil {
		t.Fatal(err)
	}
	mustAsk(t, m, "read", "7")
	if groupOf(t, id) == "" {
		t.Skip("SKIPPED: the rest needs cgroup v2")
	}
	_, dir := r.place(t)
	opts := vmm.RestoreOptions{ID: id, Dir: dir, RootDisk: r.spec.RootDisk, DataDisk: r.spec.DataDisk, Owner: owner}
	_, err = r.Restore(t.Context(), r.snap, opts)
	wantError(t, err, warmboot.Conflict, "cgroup of machine "+id)
	mustAsk(t, m, "read", "7") // and has not been harmed
}

// The groups of machines that nobody has released go when a driver starts its first machine; those in use stay.
func TestJailSweepsCgroups(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	if groupOf(t, "x") == "" {
		t.Skip("SKIPPED: needs cgroup v2")
	}
	r.jail.cgroups.name += "-sweep" // not below the others', whose drivers would sweep it
	parent, err := r.jail.cgroups.parent()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, os.Remove(parent)) })
	gone, used := filepath.Join(parent, "gone"), filepath.Join(parent, "used")
	must(t, os.Mkdir(gone, 0o755), os.Mkdir(used, 0o755))
	user := exec.Command("sleep", "1000")
	must(t, user.Start(), os.WriteFile(used+"/cgroup.procs", []byte(fmt.Sprint(user.Process.Pid)), 0))
	defer func() {
		must(t, r.jail.cgroups.remove("used"))
		_ = user.Wait()
	}()
	// A group whose process is about to come is not taken for one that is left.
	group, done, err := r.jail.cgroups.make(vmm.Spec{ID: "coming", VCPUs: 1, MemoryMiB: 32})
	must(t, err, group.Close())
	swept := make(chan vmm.Machine)
	go func() {
		defer close(swept)
		if m, err := r.restore(t, t.Context(), nil); err != nil {
			t.Error(err)
		} else {
			swept <- m
		}
	}()
	select {
	case <-swept:
		t.Error("it did not wait")
	case <-time.After(100 * time.Millisecond):
	}
	if _, err := os.Stat(filepath.Join(parent, "coming")); err != nil {
		t.Error(err)
	}
	done()
	m := <-swept
	if _, err := os.Stat(gone); err == nil {
		t.Error("the group of a machine that is gone is left")
	}
	if _, err := os.Stat(used); err != nil {
		t.Error(err)
	}
	if m != nil {
		must(t, m.Stop(t.Context(), 0))
	}
}

// What a machine may use of its host is what its size says, and the kernel holds it to that.
func TestJailLimits(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if !limitable() {
		t.Skip("SKIPPED: needs cgroup v2 with the controllers cpu, memory and pids")
	}
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.VCPUs = 2 })
	if err != nil {
		t.Fatal(err)
	}
	path := groupOf(t, m.Handle().ID)
	for file, want := range map[string]string{"cpu.max": "200000 100000", "memory.max": fmt.Sprint((2*32 + memoryOverhead(32)) << 20), "pids.max": fmt.Sprint(2 + maxThreads)} {
		if got, err := os.ReadFile(filepath.Join(path, file)); strings.TrimSpace(string(got)) != want {
			t.Errorf("%s is %q, want %q (%v)", file, got, want, err)
		}
	}
	group, err := os.Open(path)
	must(t, err)
	defer group.Close()
	within := func(script string) error {
		limited, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(limited, "sh", "-c", script)
		cmd.WaitDelay = time.Second
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
		out, err := cmd.CombinedOutput()
		t.Logf("%s: %v, %q", script, err, out)
		return err
	}
	must(t, within("true"))
	if err := within("echo 0 >/proc/self/oom_score_adj; exec dd if=/dev/zero of=/dev/null bs=300M count=1"); err == nil {
		t.Error("300 MiB fit into it")
	}
	if err := within("for i in $(seq 100); do sleep 5 & done; wait"); err == nil {
		t.Error("a hundred processes fit into it")
	}
	events, err := os.ReadFile(filepath.Join(path, "memory.events"))
	if err != nil || strings.Contains(string(events), "oom_kill 0\n") {
		t.Errorf("nobody was killed for it: %s, %v", events, err)
	}
}

// Without limits a machine has no group; one that was started with them still takes its group along.
func TestJailUnlimited(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	limited := r.mustRestore(t)
	d := newDriver(r.Config)
	d.jail.unlimited, d.found = true, r.found
	r.Driver = d
	m := r.mustRestore(t)
	if path := groupOf(t, m.Handle().ID); path != "" {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("there is %s", path)
		}
	}
	again, err := r.Recover(t.Context(), limited.Handle())
	if err != nil {
		t.Fatal(err)
	}
	mustAsk(t, again, "read", "7")
	must(t, again.Stop(t.Context(), 0))
	r.nothingLeft(t, limited.Handle().ID, limited.Handle().Dir)
}

// A host that cannot limit machines says what it lacks, and starts none.
func TestJailWithoutCgroups(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	r.jail.cgroups = newCgroups(testCgroup())
	r.jail.cgroups.wanted = []string{"cpu", "none-such"}
	_, err := r.restore(t, t.Context(), nil)
	wantError(t, err, warmboot.Unavailable, "boot the host with systemd.unified_cgroup_hierarchy=1")
	t.Log(err)
}

// Threads that have been elsewhere end, and the process's first one never goes there.
func TestMountsAreAThreadsOwn(t *testing.T) {
	t.Parallel()
	needRoot(t)
	const ours = "/proc/self/ns/mnt" // of the first thread
	before, err := os.Readlink(ours)
	must(t, err)
	dir := shared(t)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			err := withMounts(func() error {
				if here, err := os.Readlink("/proc/thread-self/ns/mnt"); err != nil || here == before {
					t.Errorf("it runs in %s, %v", here, err)
				}
				return unix.Mount("none", dir, "tmpfs", 0, "")
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if now, err := os.Readlink(ours); err != nil || now != before {
		t.Errorf("the first thread is in %s, %v", now, err)
	}
	if err := withMounts(func() error { return syscall.ENOTTY }); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("got %v, want f's own error", err)
	}
	if err := os.Remove(dir); err != nil {
		t.Errorf("something is mounted there: %v", err)
	}
}
