package guest

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// inMounts runs f on a thread with mounts of its own, where /run and /etc are empty file systems; it ends with f.
func inMounts(t *testing.T, f func()) {
	t.Helper()
	needRoot(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, see inNamespaces
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		for _, dir := range []string{"/run", "/etc"} {
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0755"); err != nil {
				t.Error(err)
				return
			}
		}
		f()
	}()
	<-done
}

func mustMount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		t.Errorf("mount %s on %s: %v", source, target, err)
	}
}

func mustWrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Error(err)
	}
}

// transientMachineID is what systemd does when /etc/machine-id is empty.
func transientMachineID(t *testing.T, id string) {
	mustWrite(t, "/etc/machine-id", "")
	mustWrite(t, "/run/machine-id", id)
	mustMount(t, "/run/machine-id", "/etc/machine-id", "", unix.MS_BIND, "")
	mustMount(t, "", "/etc/machine-id", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, "")
}

func TestAReadOnlyRootBecomesWritable(t *testing.T) {
	t.Parallel()
	const id, other = "0123456789abcdef0123456789abcdef\n", "fedcba9876543210fedcba9876543210\n"
	for _, readOnly := range []bool{true, false} {
		inMounts(t, func() {
			if err := os.MkdirAll(runDir, 0o755); err != nil {
				t.Error(err)
			}
			mustWrite(t, "/etc/kept", "of the disk")
			transientMachineID(t, id)
			if readOnly {
				mustMount(t, "", "/etc", "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
				mustMount(t, "tmpfs", "/root", "tmpfs", unix.MS_RDONLY, "mode=0700")
			}
			before := mounts(t)
			if err := ownMachineID(makeWritable); err != nil {
				t.Errorf("read-only %v: %v", readOnly, err)
				return
			}
			if now := mounts(t); readOnly && now != before+2 || !readOnly && now != before-1 {
				t.Errorf("read-only %v: %d mounts became %d", readOnly, before, now)
			}
			if got, err := os.ReadFile(machineIDPath); string(got) != id || err != nil {
				t.Errorf("read-only %v: the machine-id is %q, %v", readOnly, got, err)
			}
			if err := writeFile(machineIDPath, other); err != nil {
				t.Errorf("read-only %v: %v", readOnly, err)
			}
			if got, err := os.ReadFile("/etc/kept"); string(got) != "of the disk" || err != nil {
				t.Errorf("read-only %v: %q, %v", readOnly, got, err)
			}
			if info, err := os.Stat("/root"); readOnly && (err != nil || info.Mode().Perm() != 0o700) {
				t.Errorf("/root is %v, %v", info.Mode(), err)
			}
			// An agent that is started again changes nothing.
			before = mounts(t)
			if err := ownMachineID(makeWritable); err != nil || mounts(t) != before {
				t.Errorf("read-only %v, again: %v, %d mounts", readOnly, err, mounts(t)-before)
			}
			if got, err := os.ReadFile(machineIDPath); string(got) != other || err != nil {
				t.Errorf("read-only %v: the machine-id is %q, %v", readOnly, got, err)
			}
		})
	}
}

func mounts(t *testing.T) int {
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	return bytes.Count(table, []byte("\n"))
}

func TestOwnResolver(t *testing.T) {
	t.Parallel()
	inMounts(t, func() {
		mustWrite(t, "/run/stub", "nameserver 127.0.0.53\n")
		for link, want := range map[string]string{"/run/stub": "nameserver 127.0.0.53\n", "/run/nowhere": ""} {
			if err := os.Symlink(link, "/etc/resolv.conf"); err != nil {
				t.Error(err)
			}
			for range 2 {
				if err := ownResolver(); err != nil {
					t.Error(err)
				}
			}
			info, err := os.Lstat("/etc/resolv.conf")
			if got, readErr := os.ReadFile("/etc/resolv.conf"); err != nil || !info.Mode().IsRegular() || string(got) != want || readErr != nil {
				t.Errorf("a link to %s became %v %q (%v, %v)", link, info, got, err, readErr)
			}
			os.Remove("/etc/resolv.conf")
		}
		if err := ownResolver(); err != nil {
			t.Errorf("none at all: %v", err)
		}
	})
}

func TestMountPoint(t *testing.T) {
	t.Parallel()
	inMounts(t, func() {
		if err := os.MkdirAll("/etc/a/b", 0o755); err != nil {
			t.Error(err)
		}
		want := func(is bool, when string) {
			t.Helper()
			if got, err := mountPoint("/etc/a/b"); got != is || err != nil {
				t.Errorf("%s: %v, %v", when, got, err)
			}
		}
		want(false, "nothing is mounted")
		mustMount(t, "/etc/a/b", "/etc/a/b", "", unix.MS_BIND, "")
		want(true, "bound to itself")
		mustMount(t, "tmpfs", "/etc/a", "tmpfs", 0, "")
		want(false, "hidden")
		if err := os.Mkdir("/etc/a/b", 0o755); err != nil {
			t.Error(err)
		}
		mustMount(t, "tmpfs", "/etc/a/b", "tmpfs", 0, "")
		want(true, "mounted again")
	})
}

func TestUnitOf(t *testing.T) {
	t.Parallel()
	for cgroup, want := range map[string]string{
		"0::/system.slice/docker.service\n":                                      "docker.service",
		"0::/system.slice/docker.service/init\n":                                 "docker.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":                          "",
		"12:cpu:/x.service\n1:name=systemd:/system.slice/docker.service\n0::/\n": "docker.service",
		"0::/\n": "",
		"":       "",
		"0::/user.slice/user-1000.slice/user@1000.service/app.slice/docker.service\n": "docker.service",
	} {
		if got := unitOf(cgroup); got != want {
			t.Errorf("%q: %q, want %q", cgroup, got, want)
		}
	}
}

func TestNotifyReady(t *testing.T) {
	if err := notifyReady(); err != nil {
		t.Errorf("an init that does not wait: %v", err)
	}
	for _, address := range []string{filepath.Join(t.TempDir(), "notify"), "@warmboot-" + filepath.Base(t.TempDir())} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		t.Setenv("NOTIFY_SOCKET", address)
		if err := notifyReady(); err != nil {
			t.Fatal(err)
		}
		l.SetDeadline(time.Now().Add(10 * time.Second))
		text := make([]byte, 100)
		n, err := l.Read(text)
		if string(text[:n]) != "READY=1" || err != nil {
			t.Errorf("%s: %q, %v", address, text[:n], err)
		}
	}
}
