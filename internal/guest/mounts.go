package guest

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// mount is one call of mount(2).
type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

// mountAll mounts in order. What is mounted already, by the initrd's stage or the kernel, is left alone.
func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s on %s: %w", m.source, m.target, err)
		}
	}
	return nil
}

// mountSystem mounts everything but the data disk. The root disk is read-only and shared by all machines of a host, so
// what must be writable is memory: /etc as an overlay, the rest as empty file systems.
func mountSystem() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV
	if err := mountAll([]mount{
		{"proc", "/proc", "proc", quiet | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", "sysfs", quiet | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"tmpfs", "/run", "tmpfs", quiet, "mode=0755"},
		{"tmpfs", "/tmp", "tmpfs", quiet, "mode=1777"},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", quiet | unix.MS_NOEXEC, "nsdelegate"},
	}); err != nil {
		return err
	}
	for _, dir := range []string{"/dev/pts", "/dev/shm", "/dev/mqueue", runDir, runDir + "/etc", runDir + "/etc.work", "/run/containerd", "/run/lock"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := mountAll([]mount{
		{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666"},
		{"tmpfs", "/dev/shm", "tmpfs", quiet, "mode=1777"},
		{"mqueue", "/dev/mqueue", "mqueue", quiet | unix.MS_NOEXEC, ""},
		{"overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir=" + runDir + "/etc,workdir=" + runDir + "/etc.work"},
	}); err != nil {
		return err
	}
	for _, dir := range []string{"/var/log", "/var/tmp", "/root", "/opt"} {
		if err := os.MkdirAll(dir, 0o755); err != nil { // only where the image has none, and then the root disk refuses
			continue
		}
		if err := mountAll([]mount{{"tmpfs", dir, "tmpfs", quiet, ""}}); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "/proc/self/fd/0", "/dev/stdout": "/proc/self/fd/1", "/dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(target, link); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return delegateControllers("/sys/fs/cgroup")
}

// delegateControllers lets the children of the root cgroup use every controller that there is.
func delegateControllers(dir string) error {
	names, err := os.ReadFile(dir + "/cgroup.controllers")
	if err != nil {
		return err
	}
	var add []string
	for _, name := range strings.Fields(string(names)) {
		add = append(add, "+"+name)
	}
	return os.WriteFile(dir+"/cgroup.subtree_control", []byte(strings.Join(add, " ")), 0o644)
}
