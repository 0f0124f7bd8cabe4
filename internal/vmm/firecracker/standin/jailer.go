package standin

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The jailer's options that take a value and are known here. Those that no driver of ours uses are refused like unknown ones: --cgroup,
// --cgroup-version, --parent-cgroup, --daemonize, --new-pid-ns.
var jailerOptions = map[string]bool{
	"--id": true, "--exec-file": true, "--uid": true, "--gid": true, "--chroot-base-dir": true, "--netns": true, "--resource-limit": true,
}

// jailer is the program's main when it is called that: it does to itself what Firecracker's jailer does, in the same order, and becomes the
// program that it is told of.
func jailer(p Profile, args []string) int {
	if p.Jailer.Says != "" {
		return bad(exitError, "%s", p.Jailer.Says)
	}
	if p.Jailer.Hang {
		forever()
	}
	return bad(exitError, "%v", jail(parse(p.Version), args))
}

// jail returns only if it fails.
func jail(r release, args []string) error {
	// What is done below is done to one thread, which then becomes the process.
	runtime.LockOSThread()
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return err
	}
	options, limits, rest, err := jailerArguments(args)
	if err != nil {
		return err
	}
	uid, uidErr := strconv.ParseUint(options["--uid"], 10, 32)
	gid, gidErr := strconv.ParseUint(options["--gid"], 10, 32)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return err
	}
	binary, err := filepath.EvalSymlinks(options["--exec-file"])
	if err != nil {
		return fmt.Errorf("failed to canonicalize path: %w", rust(err))
	}
	root := filepath.Join(options["--chroot-base-dir"], filepath.Base(binary), options["--id"], "root")
	if err := os.MkdirAll(root, 0o777); err != nil {
		return fmt.Errorf("failed to create directory %s: %w", root, rust(err))
	}
	if err := intoJail(binary, filepath.Join(root, filepath.Base(binary)), int(uid), int(gid)); err != nil {
		return err
	}
	if ns := options["--netns"]; ns != "" {
		f, err := os.OpenFile(ns, os.O_RDONLY|r.netnsFlags(), 0)
		if err != nil {
			return fmt.Errorf("failed to open file %s: %w", ns, rust(err))
		}
		if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("failed to join network namespace: netns: %w", rust(err))
		}
	}
	for resource, most := range limits {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return fmt.Errorf("failed to set limit for resource: %w", rust(err))
		}
	}
	if err := pivot(root); err != nil {
		return err
	}
	if err := devices(int(uid), int(gid)); err != nil {
		return err
	}
	if err := errors.Join(unix.Setgroups(nil), unix.Setresgid(int(gid), int(gid), int(gid)), unix.Setresuid(int(uid), int(uid), int(uid))); err != nil {
		return rust(err)
	}
	program := "/" + filepath.Base(binary)
	argv := append([]string{program, "--id", options["--id"], "--start-time-us", "1", "--start-time-cpu-us", "1", "--parent-cpu-time-us", "1"}, rest...)
	return fmt.Errorf("failed to exec into Firecracker: %w", rust(syscall.Exec(program, argv, nil)))
}

// jailerArguments takes a command line apart, as strictly as the jailer. limits are by the number of the resource.
func jailerArguments(args []string) (options map[string]string, limits map[int]uint64, rest []string, err error) {
	options, limits = map[string]string{}, map[int]uint64{unix.RLIMIT_NOFILE: 2048}
	for len(args) > 0 && args[0] != "--" {
		name := args[0]
		if !jailerOptions[name] {
			return nil, nil, nil, fmt.Errorf("found argument '%s' which wasn't expected, or isn't valid in this context", name)
		}
		if len(args) < 2 || strings.HasPrefix(args[1], "--") {
			return nil, nil, nil, fmt.Errorf("the argument '%s' requires a value, but none was supplied", name)
		}
		if _, twice := options[name]; twice && name != "--resource-limit" {
			return nil, nil, nil, fmt.Errorf("the argument '%s' was provided more than once", name)
		}
		options[name] = args[1]
		if name == "--resource-limit" {
			resource, value, _ := strings.Cut(args[1], "=")
			number, known := map[string]int{"fsize": unix.RLIMIT_FSIZE, "no-file": unix.RLIMIT_NOFILE}[resource]
			if limits[number], err = strconv.ParseUint(value, 10, 64); err != nil || !known {
				return nil, nil, nil, fmt.Errorf("invalid resource argument: %s", args[1])
			}
		}
		args = args[2:]
	}
	for _, name := range []string{"--id", "--exec-file", "--uid", "--gid"} {
		if options[name] == "" {
			return nil, nil, nil, fmt.Errorf("argument '%s' required, but not found", name)
		}
	}
	if !instanceID.MatchString(options["--id"]) {
		return nil, nil, nil, fmt.Errorf("invalid instance ID: %s", options["--id"])
	}
	if len(args) > 0 {
		rest = args[1:]
	}
	return options, limits, rest, nil
}

// intoJail copies the program into the jail and gives it to its user.
func intoJail(from, to string, uid, gid int) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("failed to open %s: %w", from, rust(err))
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, info.Mode().Perm())
	if err != nil {
		return fmt.Errorf("failed to open %s: %w", to, rust(err))
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dst.Fd()), &st); err == nil && st.Nlink > 1 {
		return fmt.Errorf("detected hard link at: %s", to)
	}
	if err := dst.Chown(uid, gid); err != nil {
		return err
	}
	if _, err := io.Copy(dst, src); err != nil {
		return fmt.Errorf("failed to copy %s: %w", from, rust(err))
	}
	return dst.Close()
}

// pivot makes a directory all that this thread sees.
func pivot(root string) error {
	const old = "old_root"
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"unshare into new mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"change the propagation type to slave", func() error { return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") }},
		{"bind mount the jail root directory", func() error { return unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, "") }},
		{"set current directory", func() error { return unix.Chdir(root) }},
		{"create the jail root directory before pivoting root", func() error { return unix.Mkdir(old, 0o600) }},
		{"pivot root", func() error { return unix.PivotRoot(".", old) }},
		{"chdir into chroot directory", func() error { return unix.Chdir("/") }},
		{"unmount the old jail root", func() error { return unix.Unmount(old, unix.MNT_DETACH) }},
		{"remove old jail root directory", func() error { return unix.Rmdir(old) }},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("failed to %s: %w", step.what, rust(err))
		}
	}
	return nil
}

// devices makes the directories and devices that the jailer makes.
func devices(uid, gid int) error {
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		if err := errors.Join(os.MkdirAll(dir, 0o700), unix.Chmod(dir, 0o700), unix.Chown(dir, uid, gid)); err != nil {
			return err
		}
	}
	for _, d := range []struct {
		path         string
		major, minor uint32
	}{{"/dev/net/tun", 10, 200}, {"/dev/kvm", 10, 232}, {"/dev/urandom", 1, 9}} {
		if err := unix.Mknod(d.path, unix.S_IFCHR|0o600, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("failed to create %s via mknod inside the jail: %w", d.path, rust(err))
		}
		if err := unix.Chown(d.path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}
