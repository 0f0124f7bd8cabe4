package disk

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"warmboot"
	"warmboot/internal/expect"
	"warmboot/internal/vmm"
)

// overlayOf makes an overlay of base as Clone does under QEMU on a file system without reflinks, with something of its own in it, in a
// directory that owner can reach.
func overlayOf(t *testing.T, base string) vmm.Disk {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "flatten-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "a disk, of a container")
	if err := errors.Join(os.Chmod(dir, 0o711), makeOverlay(t.Context(), base, path)); err != nil {
		t.Fatal(err)
	}
	output(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 64k", path)
	give(t, path)
	return vmm.Disk{Path: path, Format: vmm.QCOW2}
}

// give makes a file testOwner's alone, if we can.
func give(t *testing.T, path string) {
	t.Helper()
	err := os.Chmod(path, 0o600)
	if os.Geteuid() == 0 {
		err = errors.Join(err, os.Chown(path, int(testOwner.UID), int(testOwner.GID)))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// reachableBase is makeBase where testOwner can read it.
func reachableBase(t *testing.T, size int64) string {
	t.Helper()
	from := makeBase(t, size)
	f, err := os.CreateTemp("/var/tmp", "flatten-base-")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { os.Remove(f.Name()) })
	if err := errors.Join(os.Remove(f.Name()), place("test", from, f.Name(), vmm.Owner{}, sparseCopy), os.Chmod(f.Name(), 0o644)); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func TestFlatten(t *testing.T) {
	t.Parallel()
	s := open(t, "firecracker")
	base := reachableBase(t, 1<<30)
	overlay := overlayOf(t, base)
	if s.Reads(overlay) || !s.Reads(vmm.Disk{Format: vmm.Raw}) || !open(t, "qemu").Reads(overlay) {
		t.Error("only QEMU reads qcow2, and every VMM raw disks")
	}
	path := filepath.Join(filepath.Dir(overlay.Path), "raw")
	// The directory need not let the owner make files.
	got, err := s.Flatten(t.Context(), overlay, base, path, testOwner)
	if err != nil {
		t.Fatal(err)
	}
	if want := (vmm.Disk{Path: path, Format: vmm.Raw}); got != want {
		t.Errorf("got %+v", got)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); info.Size() != 1<<30 || info.Mode().Perm() != 0o600 || os.Geteuid() == 0 && (st.Uid != testOwner.UID || st.Gid != testOwner.GID) {
		t.Errorf("the disk has %d bytes, mode %v, owner %d", info.Size(), info.Mode(), st.Uid)
	}
	if n := allocated(t, path); n > 1<<20 {
		t.Errorf("it takes %d bytes", n)
	}
	output(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", path, overlay.Path)
	content := make([]byte, 64<<10)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(content, 1<<20); err != nil || !bytes.Equal(content, bytes.Repeat([]byte{7}, len(content))) {
		t.Errorf("what the container has written is not there (%v)", err)
	}
	if _, err := f.ReadAt(content[:4], 1<<29); err != nil || string(content[:4]) != "what" {
		t.Errorf("what the snapshot had is not there: %q, %v", content[:4], err)
	}
	_, err = s.Flatten(t.Context(), overlay, base, path, testOwner)
	expect.Code(t, err, warmboot.Conflict)
}

// What a hostile guest has written into its overlay leads nowhere, and a damaged overlay leaves nothing.
func TestFlattenBelievesNothing(t *testing.T) {
	t.Parallel()
	s := open(t, "firecracker")
	base := reachableBase(t, testSize)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, bytes.Repeat([]byte("a secret of the host's"), testSize/64), 0o644); err != nil {
		t.Fatal(err)
	}
	flip := func(at int64, with ...byte) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(with, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		code  warmboot.Code // "": it is converted
		says  string
	}{
		"another base": {spoil: func(t *testing.T, path string) {
			output(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, path)
		}},
		"a base on the network": {spoil: func(t *testing.T, path string) {
			output(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "nbd://127.0.0.1:1/x", path)
		}},
		"data elsewhere": {spoil: func(t *testing.T, path string) {
			err := os.Remove(path)
			if err != nil {
				t.Fatal(err)
			}
			output(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+secret+",data_file_raw=on", path, "1M")
		}, code: warmboot.Corrupt, says: "another file"},
		"no overlay":    {spoil: flip(0, []byte("something else")...), code: warmboot.Corrupt, says: "no qcow2"},
		"old version":   {spoil: flip(7, 2), code: warmboot.Corrupt, says: "no qcow2"},
		"nothing in it": {spoil: func(t *testing.T, path string) { os.Truncate(path, 0) }, code: warmboot.Corrupt, says: "too short"},
		"too large":     {spoil: func(t *testing.T, path string) { output(t, "qemu-img", "resize", "-q", "-f", "qcow2", path, "8G") }, code: warmboot.Internal, says: "qemu-img"},
		"somebody else's": {spoil: func(t *testing.T, path string) {
			if err := os.Chown(path, 0, 0); err != nil {
				t.Skip("SKIPPED: only root can give files away")
			}
		}, code: warmboot.Internal, says: "Permission denied"},
		"a link": {spoil: func(t *testing.T, path string) {
			if err := errors.Join(os.Remove(path), os.Symlink(secret, path)); err != nil {
				t.Fatal(err)
			}
		}, code: warmboot.Internal, says: "symbolic link"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			overlay := overlayOf(t, base)
			c.spoil(t, overlay.Path)
			if name != "somebody else's" && name != "a link" {
				give(t, overlay.Path)
			}
			path := filepath.Join(filepath.Dir(overlay.Path), "raw")
			_, err := s.Flatten(t.Context(), overlay, base, path, testOwner)
			if c.code != "" {
				expect.Code(t, err, c.code)
				if !strings.Contains(fmt.Sprint(err), c.says) {
					t.Errorf("the error does not say %q: %v", c.says, err)
				}
				if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a disk is left: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if content, err := os.ReadFile(path); err != nil || bytes.Contains(content, []byte("a secret of the host's")) || !bytes.Contains(content, []byte("what the guest wrote")) {
				t.Errorf("the disk has what it must not have, or has not what it must (%v)", err)
			}
		})
	}
}
