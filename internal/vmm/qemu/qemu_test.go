package qemu

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"warmboot/internal/vmm"
	"warmboot/internal/vmm/vmmtest"
)

// owner is a user that nothing else runs as.
var owner = vmm.Owner{UID: 1_900_099_001, GID: 1_900_099_000}

func TestConformance(t *testing.T) {
	t.Parallel()
	kernel := vmmtest.Kernel(t)
	dir := shared(t)
	initrd := vmmtest.Initrd(t, dir)
	root := filepath.Join(dir, "root.img")
	if err := os.WriteFile(root, make([]byte, 1<<20), 0o444); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	vmmtest.Run(t, vmmtest.Suite{
		New:   func(*testing.T) vmm.Driver { return New(Config{StateDir: state}) },
		Again: func(*testing.T, vmm.Driver) vmm.Driver { return New(Config{StateDir: state}) },
		Spec: func(*testing.T) vmm.Spec {
			return vmm.Spec{
				VCPUs: 1, MemoryMiB: 128, Kernel: kernel, Initrd: initrd, RootDisk: vmm.Disk{Path: root, Format: vmm.Raw},
				Network: vmm.Network{Subnet: netip.MustParsePrefix("100.64.7.0/24")}, Owner: owner,
			}
		},
		Kill: func(t *testing.T, _ vmm.Driver, m vmm.Machine) {
			if err := syscall.Kill(m.Handle().PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Alive: func(t *testing.T, _ vmm.Driver, id string) bool { return find(t, id) != 0 },
	})
}

// find returns the QEMU process of a machine, or 0.
func find(t *testing.T, id string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(text), "\x00warmboot-"+id+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	return 0
}

// shared is a temporary directory that others may read.
func shared(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "qemutest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}
