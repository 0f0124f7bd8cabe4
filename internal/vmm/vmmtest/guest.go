package vmmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ImageVar names the environment variable that enables tests with real machines.
const ImageVar = "WARMBOOT_TEST_IMAGE"

// GuestVar names the environment variable with the test guest's program, for where there is no Go to build it with.
const GuestVar = "WARMBOOT_TEST_VMM_GUEST"

// AcceleratorVar names the environment variable that says what machines must run on here: "kvm", or "tcg".
const AcceleratorVar = "WARMBOOT_TEST_ACCELERATOR"

// Image is the directory of the runtime image to test with. Without one the test is skipped; one that cannot be used
// fails it.
func Image(t *testing.T) string {
	t.Helper()
	dir := os.Getenv(ImageVar)
	if dir == "" {
		t.Skipf("SKIPPED: this test starts real microVMs; set %s to the directory of a built runtime image", ImageVar)
	}
	return dir
}

// Kernel is the kernel of Image.
func Kernel(t *testing.T) string {
	t.Helper()
	path := filepath.Join(Image(t), "vmlinux")
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is set, but has no kernel: %v", ImageVar, err)
	}
	return path
}

// Initrd makes an initrd in dir with the test guest as its init, which loads these modules in this order, and returns its path.
func Initrd(t *testing.T, dir string, modules ...string) string {
	t.Helper()
	program := os.Getenv(GuestVar)
	if program == "" {
		program = filepath.Join(dir, "guest")
		build := exec.Command("go", "build", "-ldflags=-s -w", "-o", program, "warmboot/internal/vmm/vmmtest/guest")
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build test guest: %v\n%s", err, out)
		}
	}
	init, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	entry := func(name string, mode int, device [2]int, content []byte) {
		// The "new ASCII" format: thirteen numbers of eight hexadecimal digits, the name, the content, each padded to four bytes.
		archive.WriteString("070701")
		for _, n := range []int{archive.Len(), mode, 0, 0, 1, 0, len(content), 0, 0, device[0], device[1], len(name) + 1, 0} {
			fmt.Fprintf(&archive, "%08x", n)
		}
		for _, part := range [][]byte{append([]byte(name), 0), content} {
			archive.Write(part)
			archive.Write(make([]byte, -archive.Len()&3))
		}
	}
	entry("dev", 0o040755, [2]int{}, nil)
	entry("dev/console", 0o020600, [2]int{5, 1}, nil)
	entry("proc", 0o040755, [2]int{}, nil)
	entry("sys", 0o040755, [2]int{}, nil)
	entry("init", 0o100755, [2]int{}, init)
	entry("lib", 0o040755, [2]int{}, nil)
	entry("lib/modules", 0o040755, [2]int{}, nil)
	for i, m := range modules {
		content, err := os.ReadFile(m)
		if err != nil {
			t.Fatal(err)
		}
		entry(fmt.Sprintf("lib/modules/%02d-%s", i, filepath.Base(m)), 0o100644, [2]int{}, content)
	}
	entry("TRAILER!!!", 0, [2]int{}, nil)
	path := filepath.Join(dir, "initrd.img")
	if err := os.WriteFile(path, archive.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// modules are those of a distribution's kernel by which a Firecracker guest finds its vsock device and its balloon, in the order to load them.
var modules = []string{
	"drivers/virtio/virtio_mmio.ko", "net/vmw_vsock/vsock.ko",
	"net/vmw_vsock/vmw_vsock_virtio_transport_common.ko", "net/vmw_vsock/vmw_vsock_virtio_transport.ko",
	"drivers/virtio/virtio_balloon.ko",
}

// Modules takes what a Firecracker guest needs of its kernel's modules out of Image's root disk into dir and returns their paths.
func Modules(t *testing.T, dir string) []string {
	t.Helper()
	disk := filepath.Join(Image(t), "rootfs.ext4")
	debugfs := func(command string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "debugfs", "-R", command, disk).Output()
		if err != nil {
			t.Fatalf("debugfs (package e2fsprogs) %s: %v", command, err)
		}
		return string(out)
	}
	const all = "/usr/lib/modules/"
	var release string
	for line := range strings.Lines(debugfs("ls -p " + all)) { // /inode/mode/uid/gid/name/size/
		if f := strings.Split(line, "/"); len(f) > 5 && !strings.HasPrefix(f[5], ".") && f[5] != "" {
			release = f[5]
		}
	}
	var paths []string
	for _, m := range modules {
		found := false
		for _, suffix := range []string{"", ".xz", ".zst"} {
			to := filepath.Join(dir, filepath.Base(m)+suffix)
			debugfs("dump " + all + release + "/kernel/" + m + suffix + " " + to)
			if info, err := os.Stat(to); err == nil && info.Size() > 0 {
				paths, found = append(paths, to), true
				break
			}
			os.Remove(to) // debugfs makes it all the same
		}
		if !found {
			t.Logf("kernel %s has no module %s; it may be built in", release, m)
		}
	}
	return paths
}
