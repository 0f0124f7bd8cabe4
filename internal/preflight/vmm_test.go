package preflight

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/programtest"
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/install"
	"warmboot/internal/vmm/firecracker/standin"
)

var update = flag.Bool("update", false, "write the golden file anew")

func program(t *testing.T, path, script string) string {
	t.Helper()
	if err := programtest.Write(path, []byte("#!/bin/sh\n"+script+"\n")); err != nil {
		t.Fatal(err)
	}
	return path
}

// hostWith is a host with a QEMU that has no KVM, and a Firecracker as the profile says, for which KVM works unless it has a fault.
func hostWith(t *testing.T, p standin.Profile) choice.Config {
	t.Helper()
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, kerneltest.ELF(4096), 0o644); err != nil {
		t.Fatal(err)
	}
	c := choice.Config{QEMU: program(t, filepath.Join(dir, "qemu"), `[ "$1" = -version ] && echo "QEMU emulator version 7.2.22"`), ProbeKernel: kernel, Unjailed: true}
	if p.Version != "" {
		c.Firecracker = standin.Install(t, p)
	}
	return c
}

func tryOn(t *testing.T, c choice.Config) tried {
	t.Helper()
	got, err := try(t.Context(), Config{VMM: c})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

const (
	withSVM    = "processor : 0\nflags\t\t: fpu vme svm\n"
	withoutSVM = "processor : 0\nvmx flags : x\nflags\t\t: fpu vme\n"
)

// Everything that doctor can say about the VMMs and what they need, in words. Each is caused by what would cause it.
func TestWhatDoctorSays(t *testing.T) {
	var b strings.Builder
	say := func(when string, c Check) {
		t.Helper()
		if c.Status != OK && c.Fix == "" {
			t.Errorf("%s: %+v fails and does not say what to do", when, c)
		}
		fmt.Fprintf(&b, "%s\n    %s %s: %s\n", when, c.Status, c.Name, c.Detail)
		if c.Fix != "" {
			fmt.Fprintf(&b, "    → %s\n", c.Fix)
		}
	}

	for _, k := range []struct {
		when  string
		facts kvmFacts
	}{
		{"KVM works", kvmFacts{cpuinfo: withSVM, kernel: "/boot/vmlinuz", under: "QEMU"}},
		{"there is no /dev/kvm", kvmFacts{open: &fs.PathError{Op: "open", Path: "/dev/kvm", Err: fs.ErrNotExist}, cpuinfo: withSVM}},
		{"/dev/kvm does not open", kvmFacts{open: &fs.PathError{Op: "open", Path: "/dev/kvm", Err: unix.EACCES}, cpuinfo: withSVM}},
		{"no kernel to try it with", kvmFacts{cpuinfo: withSVM, why: "KVM was not tried: there is no kernel in /boot to try it with"}},
		{"root's alone", kvmFacts{cpuinfo: withSVM, kernel: "/boot/vmlinuz", why: "KVM cannot be used: only root may open /dev/kvm, and VMMs do not run as root; give it to a group: `chgrp kvm /dev/kvm && chmod 660 /dev/kvm`"}},
		{"no virtualization", kvmFacts{cpuinfo: withoutSVM, kernel: "/boot/vmlinuz", why: "KVM does not work: boot a kernel: QEMU ended before the kernel was up: "}},
		{"a kernel does not boot", kvmFacts{cpuinfo: withSVM, kernel: "/boot/vmlinuz", why: "KVM does not work: boot a kernel: a stock kernel was silent for 10s"}},
		{"nothing to try it with", kvmFacts{cpuinfo: withSVM, kernel: "/boot/vmlinuz", why: noVMM, alone: true}},
		{"Firecracker cannot be started, and there is no QEMU", kvmFacts{cpuinfo: withSVM, kernel: "/boot/vmlinuz", why: notStarted, alone: true}},
		{"a kernel does not boot, and there is no QEMU", kvmFacts{cpuinfo: withSVM, kernel: "/boot/vmlinuz", why: "Firecracker needs KVM, and KVM does not work here", alone: true}},
	} {
		say(k.when, kvm(k.facts))
	}

	// The paths differ from one run to the next.
	named := func(when string, c choice.Config, check func(tried) Check) {
		t.Helper()
		got := check(tryOn(t, c))
		if got.Status != OK && got.Fix == "" {
			t.Errorf("%s: %+v fails and does not say what to do", when, got)
		}
		for _, r := range [][2]string{{c.Firecracker, "FIRECRACKER"}, {filepath.Dir(c.Firecracker), "BESIDE"}, {c.QEMU, "QEMU"}, {filepath.Dir(c.QEMU), "DIR"}} {
			if r[0] != "" && r[0] != "." {
				got.Detail, got.Fix = strings.ReplaceAll(got.Detail, r[0], r[1]), strings.ReplaceAll(got.Fix, r[0], r[1])
			}
		}
		// And so does why QEMU has no KVM on the machine that runs this.
		got.Detail, _, _ = strings.Cut(got.Detail, "; KVM ")
		say(when, got)
	}
	t.Setenv("PATH", "/no/such/directory")
	good := hostWith(t, standin.Profile{Version: "1.15.1"})
	slow := hostWith(t, standin.Profile{Version: "1.15.1", Faults: standin.Faults{BootSays: "KVM: entry failed, hardware error 0x7"}})
	faulty := hostWith(t, standin.Profile{Version: "1.16.1"})
	newer := hostWith(t, standin.Profile{Version: "1.18.0"})
	none := hostWith(t, standin.Profile{})
	byName := func(t tried) Check { return t.firecracker("it is") }
	found := func(t tried) Check { return t.firecracker("") }
	chosen := func(t tried) Check { return t.chosen("") }
	named("Firecracker works", good, found)
	named("a release with a fault", faulty, found)
	named("a release with a fault is named", faulty, byName)
	named("an old release", hostWith(t, standin.Profile{Version: "1.4.0"}), found)
	named("Firecracker without KVM", slow, found)
	named("no Firecracker, no KVM", none, found)
	installable := tryOn(t, none)
	installable.kvm.under = "QEMU"
	say("no Firecracker, and KVM", installable.firecracker(""))
	installable.held = held{"cgroup v2: not mounted; " + unlimited, cgroupFix, true}
	say("no Firecracker, and KVM, and no cgroup v2", installable.firecracker(""))
	back := tryOn(t, none)
	back.Binary, back.FirecrackerError, back.held = "FIRECRACKER", errors.New("no cgroup v2"), installable.held
	say("no cgroup v2", back.firecracker(""))
	back.FirecrackerError, back.held.failed = errors.New("jailer was not found; put it beside FIRECRACKER"), false
	say("no cgroup v2, and no jailer either", back.firecracker(""))
	back.held = held{"only root can jail machines", "run as root", true}
	say("not root", back.firecracker("it is"))
	named("a release that is newer than what is known", newer, found)
	named("a newer release is named", newer, byName)

	named("Firecracker is chosen", good, chosen)
	named("Firecracker is chosen, and has a fault", faulty, chosen)
	named("KVM does not work", slow, chosen)
	gone := slow
	gone.QEMU = "/no/such/qemu"
	named("neither is there", gone, chosen)
	wanted := slow
	wanted.Want = choice.Firecracker
	named("Firecracker is asked for, and KVM does not work", wanted, func(t tried) Check { return t.chosen(choice.Firecracker) })

	jailer := func(c choice.Config) func(tried) Check {
		return func(tr tried) Check { return tr.jailer(t.Context(), Config{VMM: c}) }
	}
	named("no jailer is wanted", good, jailer(good))
	good.Unjailed = false
	named("no jailer", good, jailer(good))
	named("no Firecracker", none, jailer(choice.Config{}))
	jailed := good
	jailed.Jailer = program(t, filepath.Join(filepath.Dir(good.QEMU), "jailer"), `echo "Jailer v1.15.1"`)
	// Its Firecracker is probed without it, because nobody has to be root for that.
	probed := func(c choice.Config) choice.Config { c.Unjailed = true; return c }
	named("the jailer is named", probed(jailed), jailer(jailed))
	program(t, jailed.Jailer, `echo "Jailer v1.14.0"`)
	named("a jailer of another release", probed(jailed), jailer(jailed))
	program(t, jailed.Jailer, `echo "this is something else"; exit 1`)
	named("a jailer that is none", probed(jailed), jailer(jailed))

	v2 := func(file string) (string, error) {
		return map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma\n", "/sys/fs/cgroup/unified/cgroup.controllers": "\n"}[file], nil
	}
	for _, c := range []struct{ when, mounts string }{
		{"cgroup v2", "29 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"},
		{"cgroup v1 and v2", "29 23 0:26 / /sys/fs/cgroup ro shared:4 - tmpfs tmpfs ro\n30 29 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n31 29 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"},
		{"cgroup v1 only", "31 29 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"},
		{"in a container", "812 811 0:27 /.. /sys/fs/cgroup ro,nosuid,nodev,noexec,relatime - cgroup2 cgroup rw\n"},
		{"not a mount", "cgroup2 - cgroup2\n"},
	} {
		say(c.when, cgroup(c.mounts, v2))
	}
	say("its controllers cannot be read", cgroup("29 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", func(file string) (string, error) {
		return "", &fs.PathError{Op: "open", Path: file, Err: unix.EACCES}
	}))

	say("the clock is kept right", clock(unix.TIME_OK, unix.Timex{Esterror: 1500}, nil))
	say("nobody keeps the clock right", clock(unix.TIME_ERROR, unix.Timex{Status: unix.STA_UNSYNC}, nil))
	say("the clock cannot be asked about", clock(-1, unix.Timex{}, unix.EPERM))

	const golden = "testdata/says.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("if this is right, run the test with -update (-was +is):\n%s", diff)
	}
}

// What only QEMU needs is no failure where microVMs run under Firecracker.
func TestQEMUIsSparedWhereFirecrackerWorks(t *testing.T) {
	t.Parallel()
	missing := Check{Name: "qemu-img", Status: Fail, Detail: "not found", Fix: "apt-get install qemu-utils"}
	works := tryOn(t, hostWith(t, standin.Profile{Version: "1.15.1"}))
	if got := works.spared(missing); got.Status != Warn || got.Fix == "" {
		t.Errorf("with Firecracker: %+v", got)
	}
	c := hostWith(t, standin.Profile{Version: "1.15.1"})
	c.Want = choice.QEMU
	if got := tryOn(t, c).spared(missing); got.Status != Fail {
		t.Errorf("with QEMU: %+v", got)
	}
}

func TestAVMMThatThereIsNot(t *testing.T) {
	t.Parallel()
	got := Run(t.Context(), Config{VMM: choice.Config{Want: "bochs"}})
	if Worst(got) != Fail || !strings.Contains(got[0].Detail, "bochs") {
		t.Errorf("%+v", got)
	}
}

func TestRuntimeImages(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	build := func(name string, docker ...string) string {
		t.Helper()
		tree := t.TempDir()
		for _, d := range docker {
			if err := errors.Join(os.MkdirAll(filepath.Join(tree, filepath.Dir(d)), 0o755), os.WriteFile(filepath.Join(tree, d), []byte("dockerd"), 0o755)); err != nil {
				t.Fatal(err)
			}
		}
		path := filepath.Join(root, "images", name, "rootfs.ext4")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		mkfs, err := tool("mkfs.ext4")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(mkfs, "-q", "-d", tree, path, "4M").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return path
	}
	check := func(c Config, want Status, says string) {
		t.Helper()
		c.StorageRoot = root
		got := checkImage(t.Context(), c)
		if got.Status != want || !strings.Contains(got.Detail, says) || want != OK && got.Fix == "" {
			t.Errorf("got %+v, want %s: %s", got, want, says)
		}
	}
	check(Config{}, Warn, "there is none yet")
	check(Config{RuntimeRootfs: "/no/such/rootfs"}, Warn, "no such file")
	first := build("0123", "usr/sbin/dockerd")
	check(Config{}, OK, first+" holds Docker")
	build("4567", "usr/bin/dockerd")
	build(".draft-1") // a build that goes on
	check(Config{}, OK, "2, and all hold Docker")
	elsewhere := build("../elsewhere/own")
	check(Config{RuntimeRootfs: elsewhere}, Warn, elsewhere+" has no Docker")
	index := filepath.Join(root, "images", "index.json")
	if err := os.WriteFile(index, []byte(fmt.Sprintf(`{"a": {"rootfs": %q}, "b": {"rootfs": "/gone"}, "c": {"rootfs": %q}}`, elsewhere, first)), 0o600); err != nil {
		t.Fatal(err)
	}
	check(Config{}, Warn, elsewhere+" has no Docker")
	if err := os.WriteFile(elsewhere, []byte("no file system"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(Config{}, Warn, "it holds no ext4 file system")
	if err := os.WriteFile(index, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	check(Config{}, OK, "2, and all")
	if err := errors.Join(os.Remove(index), os.Mkdir(index, 0o755)); err != nil {
		t.Fatal(err)
	}
	if got := checkImage(t.Context(), Config{StorageRoot: root}); got.Status != Warn {
		t.Errorf("with an index that is a directory: %+v", got)
	}
}

// ended keeps what Fix was told.
type told []string

func (s *told) progress(step string, _ float64) { *s = append(*s, step) }

func fixFirecracker(t *testing.T, c Config) (Fixed, told) {
	t.Helper()
	tr, err := try(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	var s told
	return tr.install(t.Context(), c, s.progress), s
}

// nowhere is where there is nothing to be had.
func nowhere(t *testing.T) install.Config {
	t.Helper()
	return install.Config{Dir: t.TempDir(), URL: "http://127.0.0.1:1/firecracker.tgz", Retry: 1}
}

func TestWhatIsNotInstalled(t *testing.T) {
	t.Setenv("PATH", "/no/such/directory")
	slow := standin.Profile{Version: "1.15.1", Faults: standin.Faults{BootSays: "KVM: entry failed"}}
	found := hostWith(t, standin.Profile{Version: "1.15.1"})
	found.Places, found.Firecracker = []string{found.Firecracker}, ""
	newer := hostWith(t, standin.Profile{Version: "1.18.0"})
	newer.Places, newer.Firecracker = []string{newer.Firecracker}, ""
	qemu := hostWith(t, standin.Profile{})
	qemu.Want = choice.QEMU
	for name, c := range map[string]struct {
		vmm  choice.Config
		says []string
	}{
		"a binary is named":                {hostWith(t, standin.Profile{Version: "1.17.0"}), []string{"FIRECRACKER", "nothing is installed", "v1.17.0"}},
		"a binary is named, and of no use": {hostWith(t, slow), []string{"FIRECRACKER", "nothing is installed", "KVM: entry failed"}},
		"one is there and works":           {found, []string{"is there already", found.Places[0]}},
		"a newer one is there":             {newer, []string{"is there already", newer.Places[0], "v1.18.0", "newer than what this warmboot was made for"}},
		"QEMU is asked for":                {qemu, []string{"QEMU is asked for"}},
		"there is no KVM":                  {hostWith(t, standin.Profile{}), []string{"nothing is installed: it needs KVM, and "}},
	} {
		got, steps := fixFirecracker(t, Config{VMM: c.vmm, Install: nowhere(t)})
		if got.Err != nil || len(steps) > 0 {
			t.Errorf("%s: %+v, %q", name, got, steps)
		}
		for _, s := range c.says {
			if !strings.Contains(got.Detail, s) {
				t.Errorf("%s: it does not say %q: %q", name, s, got.Detail)
			}
		}
	}
}

// Where KVM works and Firecracker is not there, or is a release with a fault, it is downloaded; without a network the error says what to do.
func TestFirecrackerIsInstalledWhereKVMWorks(t *testing.T) {
	t.Setenv("PATH", "/no/such/directory")
	faulty := hostWith(t, standin.Profile{Version: "1.16.1"})
	faulty.Places, faulty.Firecracker = []string{faulty.Firecracker}, ""
	got, _ := fixFirecracker(t, Config{VMM: faulty, Install: nowhere(t)})
	if warmboot.CodeOf(got.Err) != warmboot.Unavailable || !strings.Contains(got.Err.Error(), "FIRECRACKER=") {
		t.Errorf("without a network: %+v", got)
	}
}

// The release that would be installed is there as it was installed, and does not work: it is said why.
func TestWhatIsInstalledAlready(t *testing.T) {
	t.Setenv("PATH", "/no/such/directory")
	c := Config{VMM: hostWith(t, standin.Profile{Version: "1.15.1"}), Install: nowhere(t)}
	dir := filepath.Join(c.Install.Dir, install.Version)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var sums string
	for _, name := range []string{"firecracker", "jailer"} {
		sums += fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte("#!/bin/sh\nexit 3\n")), name)
		program(t, filepath.Join(dir, name), "exit 3")
	}
	if err := os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums), 0o644); err != nil {
		t.Fatal(err)
	}
	c.VMM.Places, c.VMM.Firecracker = install.Binaries(c.Install.Dir), ""
	tr, err := try(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	tr.kvm.under = "QEMU"
	got := tr.install(t.Context(), c, func(string, float64) {})
	if want := "v1.15.1 is installed already: " + filepath.Join(dir, "firecracker") + "; but "; got.Err != nil || !strings.HasPrefix(got.Detail, want) || !strings.Contains(got.Detail, "exit status 3") {
		t.Errorf("%+v, want %s…", got, want)
	}
}

func TestLoadModule(t *testing.T) {
	dir := t.TempDir()
	device := filepath.Join(dir, "tun")
	t.Setenv("PATH", dir)
	load := func() (Fixed, bool) { return loadModule(context.Background(), "TAP devices", device, "tun") }
	program(t, filepath.Join(dir, "modprobe"), "echo 'FATAL: Module tun not found' >&2; exit 1")
	if got, needed := load(); !needed || got.Err == nil || !strings.Contains(got.Err.Error(), "Module tun not found") {
		t.Errorf("a module that there is not: %+v, %v", got, needed)
	}
	program(t, filepath.Join(dir, "modprobe"), ":")
	if got, needed := load(); !needed || got.Err == nil || !strings.Contains(got.Err.Error(), "and yet") {
		t.Errorf("a module that makes no device: %+v, %v", got, needed)
	}
	program(t, filepath.Join(dir, "modprobe"), `[ "$1" = tun ] && : >`+device)
	if got, needed := load(); !needed || got.Err != nil || !strings.Contains(got.Detail, "was loaded") {
		t.Errorf("a module that does: %+v, %v", got, needed)
	}
	if got, needed := load(); needed {
		t.Errorf("once it is there: %+v", got)
	}
	for cpuinfo, want := range map[string]string{withSVM: "kvm_amd", strings.Replace(withSVM, "svm", "vmx", 1): "kvm_intel", withoutSVM: ""} {
		if got := kvmModule(cpuinfo); got != want {
			t.Errorf("the module of %q is %q, want %q", cpuinfo, got, want)
		}
	}
	if _, needed := loadModule(t.Context(), "KVM", filepath.Join(dir, "kvm"), ""); needed {
		t.Error("a processor without virtualization has no module")
	}
}
