package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
	"warmboot/internal/vmm"
)

const testSize = 256 << 20

var testOwner = vmm.Owner{UID: 1_900_099_001, GID: 1_900_099_001, Readers: 1_900_099_000}

func open(t *testing.T, driver string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "templates"), Driver: driver})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func output(t *testing.T, program string, args ...string) string {
	t.Helper()
	path, err := lookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", program, args, err, out)
	}
	return string(out)
}

// allocated is what a file takes on disk, in bytes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestNewIsAnEmptySparseFileSystem(t *testing.T) {
	t.Parallel()
	s := open(t, "qemu")
	path := filepath.Join(t.TempDir(), "data.ext4")
	const size = 8 << 30
	d, err := s.New(t.Context(), path, size, testOwner)
	if err != nil {
		t.Fatal(err)
	}
	if want := (vmm.Disk{Path: path, Format: vmm.Raw}); d != want {
		t.Errorf("got %+v, want %+v", d, want)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() != size || info.Mode().Perm() != 0o600 {
		t.Errorf("size %d, mode %v; want %d, 0600", info.Size(), info.Mode(), int64(size))
	}
	if st := info.Sys().(*syscall.Stat_t); os.Geteuid() == 0 && (st.Uid != testOwner.UID || st.Gid != testOwner.GID) {
		t.Errorf("owned by %d:%d, want %+v", st.Uid, st.Gid, testOwner)
	}
	if n := allocated(t, path); n > 16<<20 {
		t.Errorf("an empty disk takes %d bytes", n)
	}
	output(t, "e2fsck", "-fn", path)
	groups := output(t, "dumpe2fs", path)
	if all, zeroed := len(regexp.MustCompile(`(?m)^Group \d+:`).FindAllString(groups, -1)), strings.Count(groups, "ITABLE_ZEROED"); all == 0 || all != zeroed {
		t.Errorf("%d of %d inode tables are known to be zero; the guest's kernel would write the others", zeroed, all)
	}
	start := time.Now()
	if _, err := s.New(t.Context(), path+"2", size, testOwner); err != nil {
		t.Fatal(err)
	}
	t.Logf("a second disk took %v", time.Since(start))
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	s := open(t, "qemu")
	path := filepath.Join(t.TempDir(), "data.ext4")
	for _, size := range []int64{-1, 0, 1 << 20, 20<<20 + 1} {
		_, err := s.New(t.Context(), path, size, vmm.Owner{})
		expect.Code(t, err, warmboot.Invalid)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.New(t.Context(), path, testSize, vmm.Owner{})
	expect.Code(t, err, warmboot.Conflict)
	if text, _ := os.ReadFile(path); string(text) != "precious" {
		t.Error("the file that was there is no longer what it was")
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.New(over, path+"2", testSize*2, vmm.Owner{})
	expect.Code(t, err, warmboot.Canceled)
	left, _ := os.ReadDir(s.Dir)
	if len(left) != 1 { // the template of testSize
		t.Errorf("%v is in the template directory", left)
	}
}

// makeBase makes a raw disk with something in the middle.
func makeBase(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "base.ext4")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("what the guest wrote"), size/2); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCloneUnderQEMU(t *testing.T) {
	t.Parallel()
	s := open(t, "qemu")
	base := makeBase(t, 4<<30)
	if err := s.Prepare(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var all sync.WaitGroup
	start := time.Now()
	for i := range 8 {
		all.Go(func() {
			path := filepath.Join(dir, fmt.Sprint(i))
			d, err := s.Clone(t.Context(), base, path, testOwner)
			if err != nil {
				t.Error(err)
				return
			}
			if d.Path != path {
				t.Errorf("got %+v", d)
			}
		})
	}
	all.Wait()
	t.Logf("8 clones at once took %v", time.Since(start))
	path := filepath.Join(dir, "0")
	if n := allocated(t, path); n > 1<<20 {
		t.Errorf("a clone takes %d bytes", n)
	}
	magic := make([]byte, 4)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.Read(magic)
	if !bytes.Equal(magic, []byte("QFI\xfb")) {
		t.Skip("SKIPPED: this file system has reflinks, so no overlay is made")
	}
	output(t, "qemu-img", "check", path)
	var info struct {
		Format        string `json:"format"`
		Size          int64  `json:"virtual-size"`
		Backing       string `json:"backing-filename"`
		BackingFormat string `json:"backing-filename-format"`
	}
	if err := json.Unmarshal([]byte(output(t, "qemu-img", "info", "--output=json", path)), &info); err != nil {
		t.Fatal(err)
	}
	if info.Format != "qcow2" || info.Size != 4<<30 || info.Backing != base || info.BackingFormat != "raw" {
		t.Errorf("the clone is %+v", info)
	}
	// It reads as the base, and what is written to it is not in the base, nor in another clone.
	output(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", base, path)
	before, err := os.ReadFile(filepath.Join(dir, "1"))
	if err != nil {
		t.Fatal(err)
	}
	output(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", path)
	output(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", base, filepath.Join(dir, "1"))
	if after, _ := os.ReadFile(filepath.Join(dir, "1")); !bytes.Equal(before, after) {
		t.Error("writing to one clone changed another")
	}
}

func TestCloneTakesNoLongerOfALargeBase(t *testing.T) {
	t.Parallel()
	s := open(t, "qemu")
	base := makeBase(t, 1<<40)
	if err := s.Prepare(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if _, err := s.Clone(t.Context(), base, filepath.Join(t.TempDir(), "clone"), vmm.Owner{}); err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	t.Logf("a clone of 1 TiB took %v", took)
	if took > time.Second { // far above what it takes, far below what copying would
		t.Errorf("a clone of 1 TiB took %v", took)
	}
}

func TestCloneForOtherVMMsIsRawAndSparse(t *testing.T) {
	t.Parallel()
	s := open(t, "firecracker")
	base := makeBase(t, 1<<30)
	path := filepath.Join(t.TempDir(), "clone")
	d, err := s.Clone(t.Context(), base, path, vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	if d.Format != vmm.Raw {
		t.Errorf("got %+v", d)
	}
	if n := allocated(t, path); n > 1<<20 {
		t.Errorf("the clone takes %d bytes", n)
	}
	output(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", base, path)
}

func TestTemplatesFollowTheBase(t *testing.T) {
	t.Parallel()
	s := open(t, "qemu")
	base := makeBase(t, testSize)
	templates := func() []string {
		names, err := filepath.Glob(filepath.Join(s.Dir, overlayPrefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if err := s.Prepare(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	first := templates()
	if err := os.Rename(makeBase(t, 2*testSize), base); err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(t.Context(), base); err != nil {
		t.Fatal(err)
	}
	second := templates()
	if len(first) != 1 || len(second) != 1 || first[0] == second[0] {
		t.Errorf("templates were %v, and of the new base are %v", first, second)
	}
	other := makeBase(t, testSize)
	if err := s.Prepare(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	os.Remove(base)
	if err := s.Forget(base); err != nil {
		t.Fatal(err)
	}
	if left := templates(); len(left) != 1 {
		t.Errorf("after forgetting one of two bases there are the templates %v", left)
	}
	_, err := s.Clone(t.Context(), base, filepath.Join(t.TempDir(), "clone"), vmm.Owner{})
	expect.Code(t, err, warmboot.NotFound)
}

func TestOpenRemovesWhatACrashLeft(t *testing.T) {
	t.Parallel()
	s := open(t, "qemu")
	if err := os.WriteFile(filepath.Join(s.Dir, draftPrefix+"1"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.New(t.Context(), filepath.Join(t.TempDir(), "disk"), testSize, vmm.Owner{}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), s.Config); err != nil {
		t.Fatal(err)
	}
	left, _ := os.ReadDir(s.Dir)
	if len(left) != 1 || strings.HasPrefix(left[0].Name(), ".") {
		t.Errorf("%v is in the template directory", left)
	}
}

func TestFullDiskLeavesNothing(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: this test mounts a small tmpfs, for which it must be root")
	}
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(small, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	// The templates have room, the disks have not.
	s := open(t, "firecracker")
	base := makeBase(t, testSize)
	f, err := os.OpenFile(base, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	f.Close()
	_, err = s.Clone(t.Context(), base, filepath.Join(small, "clone"), vmm.Owner{})
	expect.Code(t, err, warmboot.Exhausted)
	_, err = s.New(t.Context(), filepath.Join(small, "new"), testSize, vmm.Owner{})
	expect.Code(t, err, warmboot.Exhausted)
	// The templates have no room either.
	full, err := Open(t.Context(), Config{Dir: filepath.Join(small, "templates"), Driver: "qemu"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = full.New(t.Context(), filepath.Join(small, "new"), testSize, vmm.Owner{})
	expect.Code(t, err, warmboot.Exhausted)
	for _, dir := range []string{small, full.Dir} {
		left, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range left {
			if !l.IsDir() {
				t.Errorf("%s is left in %s", l.Name(), dir)
			}
		}
	}
}

func TestMissingToolIsNamedWithItsPackage(t *testing.T) {
	t.Parallel()
	err := run(t.Context(), "make data disk", "e2fsprogs", "mkfs.no-such-thing")
	expect.Code(t, err, warmboot.Unavailable)
	if !strings.Contains(fmt.Sprint(err), "apt-get install e2fsprogs") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}
