package firecracker

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/vmm"
)

// Machines are limited by cgroups (https://docs.kernel.org/admin-guide/cgroup-v2.html): each has one of its own below a common parent.

// defaultCgroup is the parent's name, below the root of the hierarchy.
const defaultCgroup = "warmboot"

// controllers are those that the limits need.
var controllers = []string{"cpu", "memory", "pids"}

// limit is one line in one file of a group.
type limit struct{ file, value string }

const (
	// cpuPeriod is the kernel's own, in microseconds.
	cpuPeriod = 100_000
	// cpuLeast is the least of a period that the kernel takes for a limit.
	cpuLeast = 1_000
	// maxThreads is far more than Firecracker has besides its CPUs' threads, and too few to be a burden.
	maxThreads = 64
)

// limits are what a machine may use of the host. It may have its CPUs in full, and Firecracker's own work is done in that time. A container may get less
// once its machine is up (limitCPU), but not less memory: it never needs more than its guest has.
func limits(spec vmm.Spec) []limit {
	memory := spec.MemoryMiB + memoryOverhead(spec.MemoryMiB)
	if spec.MemoryFile != "" {
		memory += spec.MemoryMiB // it is written there, and if that is memory too, then it counts twice
	}
	return []limit{
		cpuLimit(spec, float64(spec.VCPUs)),
		{"memory.max", strconv.Itoa(memory << 20)},
		{"pids.max", strconv.Itoa(spec.VCPUs + maxThreads)},
	}
}

// cpuLimit is so many CPUs of those that a machine has.
func cpuLimit(spec vmm.Spec, cpus float64) limit {
	quota := math.Round(min(cpus, float64(spec.VCPUs)) * cpuPeriod)
	return limit{"cpu.max", fmt.Sprintf("%d %d", max(int(quota), cpuLeast), cpuPeriod)}
}

// memoryOverhead is how many MiB a machine may use besides its guest's memory, for a guest of so many. It uses 7 or 8: 3 for the copy of
// the binary, 2 or 3 for Firecracker's own, 1 to 3 for the kernel's (Firecracker 1.16.1, 256 and 512 MiB, 1 and 4 CPUs), and page tables of a
// 256th where no large pages are to be had. The rest is for the page cache of its disk: without any, each write would wait for the disk.
func memoryOverhead(mib int) int { return 64 + mib/32 }

// cgroups is the parent of all machines' groups.
type cgroups struct {
	name   string   // "warmboot", "a/b"
	wanted []string // controllers
	limits func(vmm.Spec) []limit
}

func newCgroups(name string) *cgroups {
	if name == "" {
		name = defaultCgroup
	}
	return &cgroups{name: name, wanted: controllers, limits: limits}
}

// hierarchy finds where the one hierarchy of version 2 is mounted; "" if it is not.
var hierarchy = sync.OnceValues(func() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		// 31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw
		mount, kind, _ := strings.Cut(s.Text(), " - ")
		if fields := strings.Fields(mount); strings.HasPrefix(kind, "cgroup2 ") && len(fields) > 4 {
			return fields[4], nil
		}
	}
	return "", s.Err()
})

// remedy is what helps where machines cannot be limited.
const remedy = "boot the host with systemd.unified_cgroup_hierarchy=1; in a container, give it its host's cgroup namespace, writable"

// parent makes the parent and has it offer the controllers to its groups.
func (c *cgroups) parent() (string, error) {
	const op = "limit machines"
	root, err := hierarchy()
	if err != nil {
		return "", warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	if root == "" {
		return "", warmboot.Errorf(warmboot.Unavailable, op, "this host has no cgroup v2, by which machines are limited; %s", remedy)
	}
	path := root
	for _, part := range append(strings.Split(c.name, "/"), "") {
		if err := enable(path, c.wanted); err != nil {
			return "", warmboot.Errorf(warmboot.Unavailable, op, "cgroup v2 limits no machines here: %w; %s", err, remedy)
		}
		if part == "" {
			break
		}
		path = filepath.Join(path, part)
		if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", warmboot.Errorf(warmboot.Unavailable, op, "no cgroup can be made here: %w; %s", err, remedy)
		}
	}
	return path, nil
}

// enable has a group offer controllers to those below it.
func enable(path string, wanted []string) error {
	read := func(file string) ([]string, error) {
		text, err := os.ReadFile(filepath.Join(path, file))
		return strings.Fields(string(text)), err
	}
	enabled, err := read("cgroup.subtree_control")
	if err != nil {
		return err
	}
	offered, err := read("cgroup.controllers")
	if err != nil {
		return err
	}
	var missing, add []string
	for _, w := range wanted {
		switch {
		case slices.Contains(enabled, w):
		case slices.Contains(offered, w):
			add = append(add, "+"+w)
		default:
			missing = append(missing, w)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s does not have the controllers %s", path, strings.Join(missing, ", "))
	}
	if len(add) == 0 {
		return nil
	}
	return writeFile(filepath.Join(path, "cgroup.subtree_control"), strings.Join(add, " "))
}

// writeFile writes to a file that is there.
func writeFile(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// lock is held while a group may be without a process for good reason (shared), or is looked at for that (exclusive).
func lock(parent string, how int) (unlock func(), err error) {
	f, err := os.Open(parent)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: parent, Err: err}
	}
	return func() { f.Close() }, nil
}

// make makes a machine's group. Its first process must be in it before done is called.
func (c *cgroups) make(spec vmm.Spec) (g *os.File, done func(), err error) {
	const op = "limit machine"
	parent, err := c.parent()
	if err != nil {
		return nil, nil, err
	}
	unlock, err := lock(parent, unix.LOCK_SH)
	if err != nil {
		return nil, nil, warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	path := filepath.Join(parent, spec.ID)
	err = os.Mkdir(path, 0o755)
	if errors.Is(err, fs.ErrExist) {
		// Of an earlier life of the machine, unless that goes on.
		if err = os.Remove(path); err != nil {
			unlock()
			return nil, nil, warmboot.Errorf(warmboot.Conflict, op, "there is a cgroup of machine %s already, with processes in it: %w", spec.ID, err)
		}
		err = os.Mkdir(path, 0o755)
	}
	if err == nil {
		if g, err = openLimited(path, c.limits(spec)); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		unlock()
		return nil, nil, warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	return g, unlock, nil
}

func openLimited(path string, limits []limit) (*os.File, error) {
	for _, l := range limits {
		if err := writeFile(filepath.Join(path, l.file), l.value); err != nil {
			return nil, err
		}
	}
	return os.Open(path)
}

// limitCPU changes the limit of a machine that runs. It is an fs.ErrNotExist if the machine has no group.
func (c *cgroups) limitCPU(spec vmm.Spec, cpus float64) error {
	root, err := hierarchy()
	if err != nil {
		return err
	}
	if root == "" {
		return fmt.Errorf("there is no cgroup v2 here: %w", fs.ErrNotExist)
	}
	l := cpuLimit(spec, cpus)
	return writeFile(filepath.Join(root, c.name, spec.ID, l.file), l.value)
}

// emptyLimit is how long killed processes may take to be gone.
const emptyLimit = 5 * time.Second

// remove ends what is left in a machine's group, which its main process was not alone in if the guest has broken out, and removes it.
func (c *cgroups) remove(id string) error {
	root, err := hierarchy()
	if err != nil || root == "" {
		return err
	}
	path := filepath.Join(root, c.name, id)
	for end := time.Now().Add(emptyLimit); ; time.Sleep(time.Millisecond) {
		err := ignoreMissing(os.Remove(path))
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		if err := ignoreMissing(writeFile(filepath.Join(path, "cgroup.kill"), "1")); err != nil {
			return err
		}
	}
}

// sweep removes the groups of machines that ended when nobody looked.
func (c *cgroups) sweep() error {
	root, err := hierarchy()
	if err != nil || root == "" {
		return err
	}
	parent := filepath.Join(root, c.name)
	unlock, err := lock(parent, unix.LOCK_EX)
	if err != nil {
		return ignoreMissing(err)
	}
	defer unlock()
	entries, err := os.ReadDir(parent)
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if busy := os.Remove(filepath.Join(parent, e.Name())); !errors.Is(busy, unix.EBUSY) {
			err = errors.Join(err, ignoreMissing(busy))
		}
	}
	return err
}
