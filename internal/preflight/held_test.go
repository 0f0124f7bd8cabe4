package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/standin"
)

// heldVar, if set, makes this process a host that it describes, for what doctor says there. It is a process because a host's mounts are.
const heldVar = "WARMBOOT_TEST_HELD"

// heldHost is a host on which /dev/kvm opens, and without QEMU.
type heldHost struct {
	Without string // what it lacks: "cgroups", "writable cgroups", "limits", "root", "TAPs"
	Binary  string // Firecracker's, if it is there
	Kernel  string
	Dir     string // for whatever is made
	URL     string // where Firecracker would come from
	Jailed  bool
}

// heldSays is what doctor says there.
type heldSays struct {
	Checks map[string]Check
	Fixed  string // what --fix says of Firecracker
}

// heldMain is the process.
func heldMain(text string) error {
	var h heldHost
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return err
	}
	if err := h.become(); err != nil {
		return err
	}
	c := Config{StorageRoot: filepath.Join(h.Dir, "root"), Listen: "127.0.0.1:0", VMM: choice.Config{QEMU: "/no/such/qemu", ProbeKernel: h.Kernel, Unjailed: !h.Jailed}}
	if h.Binary != "" {
		c.VMM.Places = []string{h.Binary}
	}
	if h.Without == "TAPs" {
		c.Network = "user"
	}
	c.Install.Dir, c.Install.URL, c.Install.Retry = filepath.Join(h.Dir, "installed"), h.URL, 1
	says := heldSays{Checks: map[string]Check{}}
	for _, f := range Fix(context.Background(), c, func(string, float64) {}) {
		if says.Fixed = f.Detail; f.Err != nil {
			says.Fixed = f.Err.Error()
		}
	}
	for _, check := range Run(context.Background(), c) {
		says.Checks[check.Name] = check
	}
	return json.NewEncoder(os.Stdout).Encode(says)
}

// become makes this process's mounts, or its user, those of the host.
func (h heldHost) become() error {
	kvm, tun := "/dev/kvm", "/dev/net/tun"
	if err := errors.Join(
		unix.Mount("test", "/dev", "tmpfs", 0, "mode=0755"), unix.Mknod("/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		os.WriteFile(kvm, nil, 0o600), os.Chmod(kvm, 0o666), os.Mkdir(filepath.Dir(tun), 0o755), unix.Mknod(tun, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))),
	); err != nil {
		return err
	}
	if h.Without == "root" {
		return errors.Join(os.Chmod("/dev/null", 0o666), syscall.Setgid(65534), syscall.Setuid(65534))
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		mount, kind, _ := strings.Cut(line, " - ")
		if !strings.HasPrefix(kind, "cgroup2 ") {
			continue
		}
		path := strings.Fields(mount)[4]
		switch h.Without {
		case "cgroups":
			err = unix.Unmount(path, unix.MNT_DETACH)
		case "writable cgroups":
			err = unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
		case "limits": // its controllers are there, and cannot be had
			for name, text := range map[string]string{"cgroup.controllers": "cpu memory pids\n", "cgroup.subtree_control": ""} {
				file := filepath.Join(h.Dir, name)
				err = errors.Join(err, os.WriteFile(file, []byte(text), 0o644), unix.Mount(file, filepath.Join(path, name), "", unix.MS_BIND, ""),
					unix.Mount("", filepath.Join(path, name), "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// Where the host keeps Firecracker from working, doctor says what to do about the host. Another binary would be held back as well, so it recommends none,
// and --fix gets none.
func TestTheHostHoldsFirecrackerBack(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test makes hosts that lack something out of mounts, for which it must be root")
	}
	dir, err := os.MkdirTemp("", "warmboot-held-") // not t.TempDir: one host is without root, and must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := standin.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(dir, "kernel")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(kernel, kerneltest.ELF(4096), 0o644)); err != nil {
		t.Fatal(err)
	}
	jailable := standin.InstallJailed(t, standin.Profile{Version: "1.16.2"}, program)
	noBoot := standin.InstallJailed(t, standin.Profile{Version: "1.16.2", Faults: standin.Faults{BootSays: "KVM: entry failed, hardware error 0x7"}}, program)
	alone := standin.InstallJailed(t, standin.Profile{Version: "1.16.2"}, program)
	if err := os.Remove(filepath.Join(filepath.Dir(alone), "jailer")); err != nil {
		t.Fatal(err)
	}
	const cgroups = "systemd.unified_cgroup_hierarchy=1"
	for name, c := range map[string]struct {
		heldHost
		why, fix string // what holds it back, and what is to be done
		kvm      string // what is said of KVM
		cgroup   Status
	}{
		"there is no cgroup v2":        {heldHost{Without: "cgroups", Binary: jailable, Jailed: true}, "cgroup v2: not mounted", cgroups, "KVM was not tried", Warn},
		"cgroup v2 cannot be written":  {heldHost{Without: "writable cgroups", Binary: jailable, Jailed: true}, "is mounted read-only", cgroups, "KVM was not tried", Warn},
		"cgroup v2 limits nothing":     {heldHost{Without: "limits", Binary: jailable, Jailed: true}, "read-only file system", cgroups, "KVM was not tried", Warn},
		"doctor does not run as root":  {heldHost{Without: "root", Binary: jailable, Jailed: true}, "only root can jail machines", "run as root", "KVM was not tried", ""},
		"no jailer, and no cgroup v2":  {heldHost{Without: "cgroups", Binary: alone, Jailed: true}, "Firecracker's jailer (" + filepath.Dir(alone) + "/jailer) was not found", cgroups, "KVM was not tried", ""},
		"it is not there, nor cgroups": {heldHost{Without: "cgroups", Jailed: true}, "cgroup v2: not mounted", cgroups, "KVM was not tried", Warn},
		"there can be no TAPs":         {heldHost{Without: "TAPs"}, "it needs TAPs", "MANAGER_NETWORK", "KVM was not tried", ""},
		"KVM boots no kernel":          {heldHost{Binary: noBoot}, "KVM: entry failed", "see KVM", "KVM: entry failed", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked.Add(1)
				w.WriteHeader(http.StatusNotFound)
			}))
			t.Cleanup(server.Close)
			h := c.heldHost
			h.Kernel, h.URL, h.Dir = kernel, server.URL, filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := errors.Join(os.Mkdir(h.Dir, 0o755), os.Chown(h.Dir, 65534, 65534)); err != nil {
				t.Fatal(err)
			}
			says := h.doctor(t)
			if n := asked.Load(); n > 0 || !strings.Contains(says.Fixed, "nothing is installed") || c.Binary != alone && !strings.Contains(says.Fixed, c.why) || c.fix != "see KVM" && !strings.Contains(says.Fixed, c.fix) {
				t.Errorf("--fix has asked for a release %d times, and says %q", n, says.Fixed)
			}
			got := says.Checks["Firecracker"]
			if c.Binary == "" && (got.Status != OK || got.Detail != "not there; it would need KVM") {
				t.Errorf("%+v", got)
			}
			if c.Binary != "" && (got.Status != Warn || !strings.Contains(got.Detail, c.why) || !strings.Contains(got.Fix, c.fix) || strings.Contains(got.Fix, "--fix")) {
				t.Errorf("%+v", got)
			}
			kvm := says.Checks["KVM"]
			if kvm.Status != Warn || !strings.Contains(kvm.Detail, c.kvm) || strings.Contains(kvm.Detail, "software emulation") {
				t.Errorf("%+v: there is no QEMU", kvm)
			}
			if c.why != c.kvm && (strings.Contains(kvm.Detail, c.why) || strings.Contains(kvm.Fix, "dmesg")) {
				t.Errorf("%+v: that is no fault of KVM's", kvm)
			}
			if got := says.Checks["cgroup v2"]; c.cgroup != "" && (got.Status != c.cgroup || !strings.Contains(got.Detail, strings.TrimPrefix(c.why, "cgroup v2: ")) || !strings.Contains(got.Fix, c.fix)) {
				t.Errorf("%+v", got)
			}
		})
	}
}

// doctor is what `warmboot doctor --fix` does on the host.
func (h heldHost) doctor(t *testing.T) (says heldSays) {
	t.Helper()
	text, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = []string{heldVar + "=" + string(text), "PATH=/no/such/directory", "TMPDIR=" + h.Dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS} // its mounts are private then
	cmd.Stderr = t.Output()
	out, err := cmd.Output()
	if err := errors.Join(err, json.Unmarshal(out, &says)); err != nil {
		t.Fatal(err)
	}
	return says
}
