package preflight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"warmboot"
	"warmboot/internal/vmm/choice"
)

// limits are the controllers with which Firecracker's machines are limited.
var limits = []string{"cpu", "memory", "pids"}

const (
	cgroupName = "cgroup v2"
	unlimited  = "Firecracker's machines cannot be limited, and are not started"
	cgroupFix  = "boot with systemd.unified_cgroup_hierarchy=1; in a container, give it its host's cgroup namespace, writable"
)

// checkCgroup sees that machines can be limited.
func checkCgroup(context.Context, Config) Check {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Check{cgroupName, Warn, err.Error(), mountProc}
	}
	return cgroup(string(mounts), func(file string) (string, error) {
		text, err := os.ReadFile(file)
		return string(text), err
	})
}

// cgroup judges by the text of /proc/self/mountinfo and what the hierarchy of version 2 says about itself.
func cgroup(mounts string, read func(string) (string, error)) Check {
	for line := range strings.Lines(mounts) {
		// 31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw
		mount, kind, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if !strings.HasPrefix(kind, "cgroup2 ") || len(fields) < 6 {
			continue
		}
		path := fields[4]
		if slices.Contains(strings.Split(fields[5], ","), "ro") {
			return Check{cgroupName, Warn, fmt.Sprintf("%s is mounted read-only; %s", path, unlimited), cgroupFix}
		}
		text, err := read(filepath.Join(path, "cgroup.controllers"))
		if err != nil {
			return Check{cgroupName, Warn, fmt.Sprintf("%v; %s", err, unlimited), cgroupFix}
		}
		there := strings.Fields(text)
		var missing []string
		for _, l := range limits {
			if !slices.Contains(there, l) {
				missing = append(missing, l)
			}
		}
		if len(missing) > 0 {
			return Check{cgroupName, Warn, fmt.Sprintf("%s does not have the controllers %s; %s", path, strings.Join(missing, ", "), unlimited), cgroupFix}
		}
		return Check{cgroupName, OK, fmt.Sprintf("%s, with the controllers %s", path, strings.Join(limits, ", ")), ""}
	}
	return Check{cgroupName, Warn, "not mounted; " + unlimited, cgroupFix}
}

// cannotLimit is why Firecracker's driver cannot limit machines, if that is what its error is about.
func cannotLimit(err error) string {
	var e *warmboot.Error
	if !errors.As(err, &e) || e.Op != "limit machines" {
		return ""
	}
	why, _, _ := strings.Cut(choice.Plain(err), "; ") // what to do follows
	return why
}
