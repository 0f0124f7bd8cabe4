package agent

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"warmboot"
	"warmboot/internal/disk"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/fake"
)

// A container that QEMU has run starts under another VMM: its disk is converted once, and after that no snapshot is kept for its sake.
func TestADiskOfAnotherVMMIsConverted(t *testing.T) {
	t.Parallel()
	root, err := os.MkdirTemp("/var/tmp", "warmboot-convert-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	base, dir := filepath.Join(root, "snapshot"), filepath.Join(root, "container")
	if err := errors.Join(os.Mkdir(base, 0o711), os.Mkdir(dir, 0o711), os.Chmod(root, 0o711)); err != nil {
		t.Fatal(err)
	}
	c := &container{id: warmboot.NewID(), dir: dir}
	disks := func(driver string) *disk.Store {
		t.Helper()
		s, err := disk.Open(t.Context(), disk.Config{Dir: filepath.Join(root, "templates-"+driver), Driver: driver})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	baseDisk := filepath.Join(base, snapshot.DataFile)
	if _, err := disks("qemu").New(t.Context(), baseDisk, 64<<20, vmm.Owner{}); err != nil {
		t.Fatal(err)
	}
	d, err := disks("qemu").Clone(t.Context(), baseDisk, c.dataDisk(), vmm.Owner{})
	if err != nil {
		t.Fatal(err)
	}
	if d.Format == vmm.Raw {
		t.Skip("SKIPPED: this file system has reflinks, so every VMM can read every disk")
	}
	if err := c.keep(func(r *record) { r.Disk, r.BasedOn = d, base }); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.rawDisk(), []byte("what an attempt has left that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	a := &Agent{Config: Config{Driver: fake.New(fake.Config{}), Log: slog.New(slog.DiscardHandler)}}
	l := &launch{a: a, c: c}

	a.disks = disks("qemu")
	if same, err := l.readable(t.Context(), d, vmm.Owner{}); err != nil || same != d {
		t.Fatalf("for QEMU: %+v, %v", same, err)
	}
	a.disks = disks("firecracker")
	raw, err := l.readable(t.Context(), d, vmm.Owner{})
	if err != nil || raw != (vmm.Disk{Path: c.rawDisk(), Format: vmm.Raw}) {
		t.Fatalf("got %+v, %v", raw, err)
	}
	if _, err := os.Stat(d.Path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the overlay is still there: %v", err)
	}
	kept, err := readRecord(dir)
	if err != nil || kept.Disk != raw || kept.BasedOn != "" {
		t.Errorf("the record has %+v, %v", kept, err)
	}
	for _, driver := range []string{"firecracker", "qemu"} { // and back
		a.disks = disks(driver)
		if again, err := l.readable(t.Context(), raw, vmm.Owner{}); err != nil || again != raw {
			t.Errorf("for %s afterwards: %+v, %v", driver, again, err)
		}
	}
}
