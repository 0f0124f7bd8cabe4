package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// dockerd is where distributions and Docker itself have the engine in an image.
var dockerd = []string{"/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd"}

const ownImage = "install Docker in it, as deploy/README.md says; or use one that `warmboot image build` makes"

// checkImage looks for runtime images, and for Docker in them.
func checkImage(ctx context.Context, c Config) Check {
	const name = "runtime image"
	images, err := images(c)
	if err != nil {
		return Check{name, Warn, err.Error(), "run as root, or let others read it"}
	}
	if len(images) == 0 {
		return Check{name, Warn, "there is none yet", "`warmboot image build` makes one; or set CONTAINER_RUNTIME_KERNEL and CONTAINER_RUNTIME_ROOTFS to one of yours"}
	}
	for _, path := range images {
		switch there, err := hasDocker(ctx, path); {
		case errors.Is(err, fs.ErrNotExist):
			return Check{name, Warn, err.Error(), "register an image that is there, or `warmboot image build`"}
		case errors.Is(err, exec.ErrNotFound):
			return Check{name, Warn, fmt.Sprintf("%s cannot be looked into: %v", path, err), "apt-get install e2fsprogs"}
		case err != nil:
			return Check{name, Warn, fmt.Sprintf("%s cannot be looked into: %v", path, err), "make it again, and register that: `warmboot image build`, or deploy/README.md for one of your own"}
		case !there:
			return Check{name, Warn, fmt.Sprintf("%s has no Docker (%s)", path, strings.Join(dockerd, ", ")), ownImage}
		}
	}
	detail := images[0] + " holds Docker"
	if n := len(images); n > 1 {
		detail = fmt.Sprintf("%d, and all hold Docker", n)
	}
	return Check{name, OK, detail, ""}
}

// images are the root disks of the images that serve registers by itself, of those that were registered on this host, and of those that
// were built and may be registered.
func images(c Config) ([]string, error) {
	var all []string
	if c.RuntimeRootfs != "" {
		all = append(all, c.RuntimeRootfs)
	}
	dir := filepath.Join(c.StorageRoot, "images")
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var index map[string]struct {
		Rootfs string `json:"rootfs"`
	}
	if err == nil {
		// One that cannot be read is made anew by the agent.
		_ = json.Unmarshal(text, &index)
	}
	for _, files := range index {
		if _, err := os.Stat(files.Rootfs); err == nil { // else it was unregistered, and is garbage
			all = append(all, files.Rootfs)
		}
	}
	built, err := filepath.Glob(filepath.Join(strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir), "*", "rootfs.ext4"))
	if err != nil {
		return nil, err
	}
	for _, path := range built {
		if !strings.HasPrefix(filepath.Base(filepath.Dir(path)), ".") {
			all = append(all, path)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// hasDocker looks for the engine in an ext4 file system, without mounting it.
func hasDocker(ctx context.Context, path string) (bool, error) {
	if _, err := os.Stat(path); err != nil {
		return false, err
	}
	debugfs, err := tool("debugfs")
	if err != nil {
		return false, err
	}
	for _, file := range dockerd {
		cmd := exec.CommandContext(ctx, debugfs, "-R", "stat "+file, path)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBUGFS_PAGER=cat", "PAGER=cat")
		var said strings.Builder
		cmd.Stderr = &said
		out, err := cmd.Output()
		switch {
		case err != nil:
			return false, fmt.Errorf("debugfs: %w: %s", err, strings.TrimSpace(said.String()))
		case strings.Contains(string(out), "Type: regular"), strings.Contains(string(out), "Type: symlink"):
			return true, nil
		case strings.Contains(said.String(), "while trying to open"), strings.Contains(said.String(), "Filesystem not open"):
			return false, errors.New("it holds no ext4 file system")
		}
	}
	return false, nil
}
