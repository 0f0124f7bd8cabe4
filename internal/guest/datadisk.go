package guest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dataDevice   = "/dev/vdb"
	dataDir      = runDir + "/data"
	dockerDir    = "/var/lib/docker"
	dataPatience = 5 * time.Second
)

// dataBinds are the directories of the data disk and where they are seen.
func dataBinds() map[string]string {
	return map[string]string{
		dataDir + "/docker":     dockerDir,
		dataDir + "/containerd": "/var/lib/containerd",
	}
}

// mountData mounts the data disk, which holds everything that outlives the machine: Docker's and containerd's state. A machine
// that was given none keeps them in memory.
func mountData(ctx context.Context, expect bool) error {
	ctx, cancel := context.WithTimeout(ctx, dataPatience)
	defer cancel()
	m := mount{dataDevice, dataDir, "ext4", unix.MS_NOATIME, ""}
	if !expect {
		m = mount{"tmpfs", dataDir, "tmpfs", 0, "mode=0711"}
	} else if err := waitFor(ctx, "/dev", func() bool { return exists(dataDevice) }); err != nil {
		return fmt.Errorf("wait for the data disk %s: %w", dataDevice, err)
	}
	if err := os.MkdirAll(dataDir, 0o711); err != nil {
		return err
	}
	if err := mountAll([]mount{m}); err != nil {
		return fmt.Errorf("%w; the data disk must hold an ext4 file system", err)
	}
	// Under an init that shares mounts, what Docker mounts below one of the directories would show up below the disk too.
	if err := unix.Mount("", dataDir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", dataDir, err)
	}
	for dir, seen := range dataBinds() {
		for _, d := range []string{dir, seen} {
			if err := os.MkdirAll(d, 0o711); err != nil {
				return err
			}
		}
		if err := mountAll([]mount{{dir, seen, "", unix.MS_BIND, ""}}); err != nil {
			return err
		}
	}
	return nil
}

// hasDataDisk tells whether the machine has a second disk. All of a machine's disks are there when its first one is, since
// one driver finds them in one pass.
func hasDataDisk() bool { return exists(filepath.Join("/sys/block", filepath.Base(dataDevice))) }

// unmountData makes the data disk whole. Everyone who uses it must have been told to end.
func unmountData() error {
	for _, seen := range dataBinds() {
		_ = unix.Unmount(seen, unix.MNT_DETACH) // and what a Docker that was killed has left mounted below
	}
	// A process that was killed lets go of its files some time later, and no event tells when the last one has.
	const patience, pause = 2 * time.Second, 5 * time.Millisecond
	for end := time.Now().Add(patience); ; time.Sleep(pause) {
		if unix.Unmount(dataDir, 0) == nil {
			return nil
		}
		// Read-only is as good: it writes everything and closes the journal.
		err := unix.Mount("", dataDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")
		if err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("unmount %s: %w", dataDir, err)
		}
	}
}
