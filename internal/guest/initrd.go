package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// InitrdName is the name (argv[0]) under which the kernel starts the initrd's init.
const InitrdName = "/init"

const (
	moduleList   = "/lib/modules/warmboot.list" // in the initrd: paths of plain .ko files, in the order to load them
	rootDevice   = "/dev/vda"
	newRoot      = "/newroot"
	initPath     = "/sbin/init" // on the root disk: this agent, or the init of an image that somebody else made
	rootPatience = 10 * time.Second
)

// Initrd is the initrd's stage: it loads the modules that the root disk needs, mounts it read-only, removes the initrd's
// files, which would stay in memory, and goes on as PID 1 with the root disk's init. It returns only if that fails, and then the
// kernel panics: there is nothing else to run.
func Initrd(log *slog.Logger) error {
	if err := mountAll([]mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755"},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"proc", "/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	}); err != nil {
		return err
	}
	if err := loadModules(moduleList, log); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), rootPatience)
	defer cancel()
	if err := waitFor(ctx, "/dev", func() bool { return exists(rootDevice) }); err != nil {
		return fmt.Errorf("no root disk %s after %v: %w", rootDevice, rootPatience, err)
	}
	if err := mountAll([]mount{{rootDevice, newRoot, "ext4", unix.MS_RDONLY, ""}}); err != nil {
		return err
	}
	return switchRoot()
}

func loadModules(list string, log *slog.Logger) error {
	f, err := os.Open(list)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // a kernel with everything built in
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		path := strings.TrimSpace(lines.Text())
		if path == "" {
			continue
		}
		// A module that the machine can do without must not keep it from booting; a missing disk shows soon enough.
		if err := loadModule(path); err != nil {
			log.Warn("module not loaded", "module", path, "error", err)
		}
	}
	return lines.Err()
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

func switchRoot() error {
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		if err := unix.Mount(dir, newRoot+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s to the root disk: %w", dir, err)
		}
	}
	var self syscall.Stat_t
	if err := syscall.Lstat("/", &self); err != nil {
		return err
	}
	removeTree("/", self.Dev)
	if err := os.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root disk to /: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	err := syscall.Exec(initPath, []string{initPath}, os.Environ())
	return fmt.Errorf("run %s from the root disk: %w", initPath, err)
}

// removeTree removes what lies below dir on the device dev and nothing that is mounted there. Failures only cost memory.
func removeTree(dir string, dev uint64) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		var st syscall.Stat_t
		if syscall.Lstat(path, &st) != nil || st.Dev != dev {
			continue
		}
		if e.IsDir() {
			removeTree(path, dev)
		}
		_ = os.Remove(path)
	}
}
