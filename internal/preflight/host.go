package preflight

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"
)

func checkUser(context.Context, Config) Check {
	if os.Geteuid() == 0 {
		return Check{"user", OK, "root: every VMM runs as a user and a group of its own", ""}
	}
	return Check{"user", Warn, fmt.Sprintf("user id %d: all VMMs run as this user, and can reach its files", os.Geteuid()),
		"run `warmboot serve` as root; it gives up its rights for every VMM that it starts"}
}

func checkKernel(context.Context, Config) Check {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Check{"kernel", Fail, err.Error(), "run warmboot on Linux"}
	}
	return kernel(unix.ByteSliceToString(u.Release[:]))
}

// kernel judges a kernel release: pidfds and what else warmboot needs came up to 5.10.
func kernel(release string) Check {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return Check{"kernel", Warn, fmt.Sprintf("Linux %s; its version cannot be read", release), "see that it is 5.10 or newer"}
	}
	if major < 5 || major == 5 && minor < 10 {
		return Check{"kernel", Fail, fmt.Sprintf("Linux %s is older than 5.10", release), "upgrade the kernel to 5.10 or newer"}
	}
	return Check{"kernel", OK, "Linux " + release, ""}
}

func hasVirtualization(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		name, flags, ok := strings.Cut(line, ":")
		if !ok || strings.TrimSpace(name) != "flags" {
			continue
		}
		for _, flag := range strings.Fields(flags) {
			if flag == "vmx" || flag == "svm" {
				return true
			}
		}
		return false
	}
	return false
}

// Below these amounts warmboot warns; below a quarter of them it fails.
const (
	wantMemory = 3 << 29 // 1.5 GiB: a runtime image build, or two containers
	wantDisk   = 4 << 30 // a runtime image, its snapshot, its rebuild, and some containers' disks
)

// mountProc is what to do where the kernel tells nothing of itself.
const mountProc = "mount -t proc proc /proc"

func checkMemory(context.Context, Config) Check {
	meminfo, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Check{"memory", Warn, err.Error(), mountProc}
	}
	free, err := memAvailable(string(meminfo))
	if err != nil {
		return Check{"memory", Warn, err.Error(), mountProc}
	}
	return amount("memory", "available", free, wantMemory, "end something that uses memory, or add some; a microVM takes 512 MiB unless told otherwise")
}

// memAvailable reads MemAvailable of /proc/meminfo, in bytes.
func memAvailable(meminfo string) (uint64, error) {
	for line := range strings.Lines(meminfo) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 54)
			if err != nil {
				return 0, fmt.Errorf("MemAvailable in /proc/meminfo cannot be read: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// amount judges a free amount in bytes against the wanted one.
func amount(name, where string, free, want uint64, fix string) Check {
	detail := humanize.IBytes(free) + " " + where
	switch {
	case free < want/4:
		return Check{name, Fail, fmt.Sprintf("%s; at least %s is needed, %s is right", detail, humanize.IBytes(want/4), humanize.IBytes(want)), fix}
	case free < want:
		return Check{name, Warn, fmt.Sprintf("%s; %s is right", detail, humanize.IBytes(want)), fix}
	}
	return Check{name, OK, detail, ""}
}

// checkOwners sees that nobody else has the user and group ids that VMMs run as.
func checkOwners(_ context.Context, c Config) Check {
	const name = "user ids"
	for _, path := range []string{"/etc/passwd", "/etc/group"} {
		f, err := os.Open(path)
		if err != nil {
			return Check{name, Warn, err.Error(), "chmod a+r " + path}
		}
		taken := idWithin(bufio.NewScanner(f), c.OwnerBase)
		f.Close()
		if taken != "" {
			return Check{name, Fail, fmt.Sprintf("%s in %s has an id that VMMs run as (%d to %d), and could reach their files", taken, path, c.OwnerBase, c.OwnerBase+ownerRange-1),
				"give " + taken + " another id, or set WARMBOOT_UID_BASE"}
		}
	}
	return Check{name, OK, fmt.Sprintf("%d to %d are free for VMMs", c.OwnerBase, c.OwnerBase+ownerRange-1), ""}
}

// idWithin returns the first name of a passwd or group file whose id lies in the VMMs' range, or "".
func idWithin(lines *bufio.Scanner, base uint32) string {
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) < 3 {
			continue
		}
		if id, err := strconv.ParseUint(fields[2], 10, 32); err == nil && id >= uint64(base) && id < uint64(base)+ownerRange {
			return fields[0]
		}
	}
	return ""
}
