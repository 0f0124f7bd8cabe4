package firecracker

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// jailed starts Firecracker by way of its jailer, which gives it a root directory with nothing else in it, devices of its own, and its user. The
// process is the jailer first and Firecracker then; its number stays.
//
// The root lies in a file system in memory that is mounted for the jailer alone, and our files are mounted into it. So whatever ends the process,
// and whatever a guest that has broken out has left there, nothing of it is there afterwards; and the storage root's disk need not allow
// devices or programs.
type jailed struct {
	jailer    string
	unlimited bool
	cgroups   *cgroups // also of machines that were started when there were limits
	sweep     sync.Once
}

const (
	// jailDir in a machine's directory is where the jailer finds its base directory. To everybody else it is empty.
	jailDir = "jail"
	// jailRoom is for what Firecracker makes in its root: sockets, and a state file.
	jailRoom = 2 * stateLimit
	// jailNodes is how many files that may be.
	jailNodes = 256
	// netnsName in its base directory is the machine's network namespace.
	netnsName = "netns"
	// mountLimits are what may not be done with our files, whatever is in them.
	mountLimits = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
)

// newJailed looks at nothing yet.
func newJailed(c Config) *jailed {
	return &jailed{jailer: c.Jailer, unlimited: c.Unlimited, cgroups: newCgroups(c.Cgroup)}
}

// find returns the jailer's path.
func (j *jailed) find(op, binary string) (string, error) {
	candidates := []string{j.jailer}
	if j.jailer == "" {
		candidates = []string{filepath.Join(filepath.Dir(binary), "jailer"), "jailer"}
	}
	for _, c := range candidates {
		if path, err := exec.LookPath(c); err == nil {
			return filepath.Abs(path)
		}
	}
	return "", warmboot.Errorf(warmboot.Unavailable, op, "Firecracker's jailer (%s) was not found; it comes with each release from https://github.com/firecracker-microvm/firecracker/releases and belongs beside %s", candidates[0], binary)
}

// check says why machines cannot be jailed here; nil if they can.
func (j *jailed) check(op, binary string) error {
	err := j.checkPrograms(op, binary)
	if err == nil && !j.unlimited {
		_, err = j.cgroups.parent()
	}
	return err
}

func (j *jailed) checkPrograms(op, binary string) error {
	if os.Geteuid() != 0 {
		return warmboot.Errorf(warmboot.Unavailable, op, "only root can jail machines; run as root, or start Firecracker without its jailer for development")
	}
	if _, err := j.find(op, binary); err != nil {
		return err
	}
	f, err := elf.Open(binary)
	if err != nil {
		return warmboot.Errorf(warmboot.Unavailable, op, "%s is no program that can be jailed: %w", binary, err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return warmboot.Errorf(warmboot.Unavailable, op, "%s needs libraries, and there are none in a jail; use the binary of a release, which needs none", binary)
		}
	}
	return nil
}

// name: a file that is mounted can be called whatever we like.
func (*jailed) name(p placed) string { return p.name }

func (j *jailed) start(o order, ready func(*os.File) error) (p *process.Process, err error) {
	const op = "jail machine"
	if !o.spec.Owner.Confined() || o.spec.Owner.UID == 0 {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "machine %s has no user of its own, and root would not stay in a jail", o.spec.ID)
	}
	if err := j.checkPrograms(op, o.binary); err != nil { // it may have been replaced
		return nil, err
	}
	jailer, err := j.find(op, o.binary)
	if err != nil {
		return nil, err
	}
	base := filepath.Join(o.spec.Dir, jailDir)
	if err := os.Mkdir(base, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	how := &syscall.SysProcAttr{}
	if !j.unlimited {
		group, done, err := j.cgroups.make(o.spec)
		if err != nil {
			return nil, err
		}
		defer done()
		undo.Push("make cgroup", func() error { return j.cgroups.remove(o.spec.ID) })
		defer group.Close()
		// From its first moment: the jailer itself would move there later, and not at all if it did not find the group.
		how.UseCgroupFD, how.CgroupFD = true, int(group.Fd())
	}
	binary, err := filepath.EvalSymlinks(o.binary) // the jailer does, and names a directory after it
	if err != nil {
		return nil, err
	}
	args, err := j.arguments(binary, base, o)
	if err != nil {
		return nil, err
	}
	err = withMounts(func() error {
		root, err := furnish(binary, base, o)
		if err != nil {
			return err
		}
		if err := ready(root); err != nil {
			return err
		}
		cmd := exec.Command(jailer, args...)
		cmd.Env = []string{}
		cmd.Stdout, cmd.Stderr = o.console, o.said
		cmd.SysProcAttr = how
		p, err = process.Start(cmd, vmm.Owner{}, nil)
		return err
	})
	if err == nil {
		undo.Move()
	}
	return p, err
}

// arguments is the jailer's command line (docs/jailer.md there). It makes no cgroup if it is asked for none.
func (j *jailed) arguments(binary, base string, o order) ([]string, error) {
	largest := int64(stateLimit)
	for _, f := range o.files {
		if info, err := os.Stat(f.target); err != nil {
			return nil, err
		} else if f.writable {
			largest = max(largest, info.Size())
		}
	}
	args := []string{
		"--id", o.spec.ID, "--exec-file", binary, "--chroot-base-dir", base,
		"--uid", strconv.FormatUint(uint64(o.spec.Owner.UID), 10), "--gid", strconv.FormatUint(uint64(o.spec.Owner.GID), 10),
		// Else a guest that has broken out could make its disk's file as large as the host's disk.
		"--resource-limit", fmt.Sprintf("fsize=%d", largest),
	}
	if o.spec.Network.Namespace != "" {
		args = append(args, "--netns", filepath.Join(base, netnsName))
	}
	return append(append(args, "--"), o.args...), nil
}

// furnish makes the root where the jailer looks for it, and mounts the files there. Nobody but this thread sees it.
func furnish(binary, base string, o order) (*os.File, error) {
	program, err := os.Stat(binary)
	if err != nil {
		return nil, err
	}
	// The source says whose it is, to whoever reads the process's mounts.
	options := fmt.Sprintf("mode=0700,size=%d,nr_inodes=%d", program.Size()+jailRoom, jailNodes)
	if err := unix.Mount(o.spec.Dir, base, "tmpfs", unix.MS_NOSUID, options); err != nil {
		return nil, &os.PathError{Op: "mount", Path: base, Err: err}
	}
	if from := o.spec.Network.Namespace; from != "" {
		// The jailer of 1.16.0 follows no link, and every name for a namespace that is only open is one.
		path := filepath.Join(base, netnsName)
		if err := os.WriteFile(path, nil, 0o400); err != nil {
			return nil, err
		}
		if err := unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
			return nil, &os.PathError{Op: "mount", Path: from, Err: err}
		}
	}
	path := filepath.Join(base, filepath.Base(binary), o.spec.ID, "root")
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	for _, f := range o.files {
		if err := bind(filepath.Join(path, f.name), f); err != nil {
			return nil, err
		}
	}
	return os.Open(path)
}

// bind mounts a file on a new one. It does not touch the file itself.
func bind(path string, f placed) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	how := uintptr(mountLimits)
	if !f.writable {
		how |= unix.MS_RDONLY
	}
	err := unix.Mount(f.target, path, "", unix.MS_BIND, "")
	if err == nil {
		err = unix.Mount("", path, "", unix.MS_BIND|unix.MS_REMOUNT|how, "")
	}
	if err != nil {
		return &os.PathError{Op: "mount", Path: f.target, Err: err}
	}
	return nil
}
