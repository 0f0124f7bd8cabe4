package preflight

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// limits are the controllers with which Firecracker's machines are limited.
var limits = []string{"cpu", "memory", "pids"}

// checkCgroup sees that machines can be limited.
func checkCgroup(context.Context, Config) Check {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Check{"cgroup v2", Warn, err.Error(), mountProc}
	}
	return cgroup(string(mounts), func(file string) (string, error) {
		text, err := os.ReadFile(file)
		return string(text), err
	})
}

// cgroup judges by the text of /proc/self/mountinfo and what the hierarchy of version 2 says about itself.
func cgroup(mounts string, read func(string) (string, error)) Check {
	const name, without = "cgroup v2", "Firecracker's machines cannot be limited, and are not started"
	const fix = "boot with systemd.unified_cgroup_hierarchy=1; in a container, give it its host's cgroup namespace, writable"
	for line := range strings.Lines(mounts) {
		// 31 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw
		mount, kind, _ := strings.Cut(line, " - ")
		fields := strings.Fields(mount)
		if !strings.HasPrefix(kind, "cgroup2 ") || len(fields) < 6 {
			continue
		}
		path := fields[4]
		if slices.Contains(strings.Split(fields[5], ","), "ro") {
			return Check{name, Warn, fmt.Sprintf("%s is mounted read-only; %s", path, without), fix}
		}
		text, err := read(filepath.Join(path, "cgroup.controllers"))
		if err != nil {
			return Check{name, Warn, fmt.Sprintf("%v; %s", err, without), fix}
		}
		there := strings.Fields(text)
		var missing []string
		for _, l := range limits {
			if !slices.Contains(there, l) {
				missing = append(missing, l)
			}
		}
		if len(missing) > 0 {
			return Check{name, Warn, fmt.Sprintf("%s does not have the controllers %s; %s", path, strings.Join(missing, ", "), without), fix}
		}
		return Check{name, OK, fmt.Sprintf("%s, with the controllers %s", path, strings.Join(limits, ", ")), ""}
	}
	return Check{name, Warn, "not mounted; " + without, fix}
}
