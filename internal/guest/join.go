package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// writablePlaces are the directories that must be writable, with or without a writable root disk.
var writablePlaces = []string{"/etc", "/var", "/root", "/opt"}

// join is for a machine that another init has set up what boot is for one of ours: it does what that init cannot know of. The init
// runs it before it mounts local file systems, so before Docker and whoever writes to the root disk. An agent that is
// started again finds everything done.
func (g *Guest) join(ctx context.Context) error {
	if err := os.MkdirAll(runDir, 0o755); err != nil {
		return internal("join", err)
	}
	if gateway, err := defaultGateway(); err == nil && gateway.IsValid() { // of an agent before us
		g.gateway = gateway.String()
	}
	// udev would do it too, and later than a host asks for the network.
	if err := g.loadDrivers(ctx); err != nil {
		g.Log.Warn("drivers not loaded", "error", err)
	}
	if err := ownMachineID(makeWritable); err != nil {
		return internal("make the root disk writable", err)
	}
	mounted, err := mountPoint(dockerDir)
	if err == nil && !mounted { // by an agent before us, or by the image itself, which then has its own use for the data disk
		if err = mountData(ctx, hasDataDisk()); err == nil {
			g.prepareDockerDisk()
		}
	}
	if err != nil {
		return internal("join", err)
	}
	return internal("join", ownResolver())
}

// makeWritable covers with memory what is read-only and must not be: the root disk is shared by all machines of a host.
func makeWritable() error {
	for _, dir := range writablePlaces {
		if !errors.Is(unix.Access(dir, unix.W_OK), unix.EROFS) {
			continue
		}
		upper, work := runDir+dir, runDir+dir+".work"
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if err := keepMode(upper, dir); err != nil {
			return err
		}
		if err := mountAll([]mount{{"overlay", dir, "overlay", 0, "lowerdir=" + dir + ",upperdir=" + upper + ",workdir=" + work}}); err != nil {
			return err
		}
	}
	return nil
}

// ownMachineID keeps the machine-id that the init has chosen, through meanwhile, in a file that can be written. systemd has it in
// a read-only one that it mounts over the disk's.
func ownMachineID(meanwhile func() error) error {
	id, err := readFile(machineIDPath)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := meanwhile(); err != nil {
		return err
	}
	covered, err := mountPoint(machineIDPath)
	if err != nil {
		return err
	}
	if covered {
		if err := unix.Unmount(machineIDPath, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", machineIDPath, err)
		}
	}
	if is, err := readFile(machineIDPath); len(id) == 0 || err == nil && bytes.Equal(is, id) {
		return nil
	}
	return writeFile(machineIDPath, string(id))
}

// keepMode gives the upper directory of an overlay, which is what is seen of the two, the mode of the lower one.
func keepMode(upper, lower string) error {
	info, err := os.Stat(lower)
	if err != nil {
		return err
	}
	return os.Chmod(upper, info.Mode().Perm())
}

// ownResolver makes /etc/resolv.conf a file: as a link it leads to something that a resolver of the image writes, or that is not
// there at all.
func ownResolver() error {
	const path = "/etc/resolv.conf"
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSymlink {
		text, _ := os.ReadFile(path) // empty if it leads nowhere
		if err := os.Remove(path); err != nil {
			return err
		}
		return os.WriteFile(path, text, 0o644)
	}
	return nil
}

// mountPoint tells whether something is mounted at path and not hidden by what is mounted above it; proc_pid_mountinfo(5).
func mountPoint(path string) (bool, error) {
	table, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return false, err
	}
	there := false
	for line := range bytes.Lines(table) {
		// id, parent, device, root, mount point, ...; what is mounted later comes later.
		f := bytes.Fields(line)
		if len(f) < 5 {
			continue
		}
		at := string(f[4])
		there = at == path || there && !strings.HasPrefix(path, strings.TrimSuffix(at, "/")+"/")
	}
	return there, nil
}

// notifyReady tells an init that waits for it that what depends on us may start; sd_notify(3).
func notifyReady() error {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	conn, err := net.Dial("unixgram", address) // an @ at its beginning means the same to Go
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1"))
	return err
}
