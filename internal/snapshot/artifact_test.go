package snapshot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/vmm"
)

// written commits a small artifact below a new storage root.
func written(t *testing.T, access Access) (root string, a *Artifact) {
	t.Helper()
	root = t.TempDir()
	image, id := warmboot.NewID(), warmboot.NewID()
	d, err := NewDraft(root, image, id, os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{MemoryFile: "memory", StateFile: "state", DataFile: "data"} {
		if err := os.WriteFile(d.File(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(Dir(root, image, id)); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a draft is in its final place already: %v", err)
	}
	a, err = d.Commit(Metadata{ID: id, RuntimeImageID: image, CreatedAt: time.Now().UTC()}, access)
	if err != nil {
		t.Fatal(err)
	}
	if a.Path != Dir(root, image, id) {
		t.Errorf("path is %s", a.Path)
	}
	return root, a
}

func TestAnArtifactIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	_, a := written(t, Access{Group: os.Getegid()})
	got, err := Open(a.Path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Metadata.ID != a.Metadata.ID || got.Metadata.Files[MemoryFile] != a.Metadata.Files[MemoryFile] || len(got.Metadata.Files) != 3 {
		t.Errorf("read %+v, wrote %+v", got.Metadata, a.Metadata)
	}
	if err := NewVerifier().Verify(got); err != nil {
		t.Error(err)
	}
	for _, name := range []string{MemoryFile, StateFile, DataFile} {
		if info, err := os.Stat(a.File(name)); err != nil || info.Mode().Perm() != 0o444 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestOnlyTheMemoryFileIsWritableAndOnlyWhereItMustBe(t *testing.T) {
	t.Parallel()
	_, a := written(t, Access{Group: os.Getegid(), WritableMemory: true})
	for name, want := range map[string]os.FileMode{MemoryFile: 0o664, StateFile: 0o444, DataFile: 0o444} {
		if info, err := os.Stat(a.File(name)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: %v, want %v (%v)", name, info.Mode(), want, err)
		}
	}
}

func TestDamageIsFound(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		damage func(path string) error
		want   string
	}{
		{"truncated", func(p string) error { return os.Truncate(p, 2) }, "truncated"},
		{"other bytes, same size", func(p string) error { return os.WriteFile(p, []byte("MEMORY"), 0o440) }, "not what was written"},
		{"other bytes, same size and time", func(p string) error {
			info, err := os.Stat(p)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(p, []byte("MEMORY"), 0o440), os.Chtimes(p, info.ModTime(), info.ModTime()))
		}, "not what was written"},
		{"replaced", func(p string) error {
			return errors.Join(os.WriteFile(p+".new", []byte("MEMORY"), 0o440), os.Rename(p+".new", p))
		}, "not what was written"},
		{"gone", os.Remove, "missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, a := written(t, Access{Group: os.Getegid(), WritableMemory: true})
			v := NewVerifier()
			if err := v.Verify(a); err != nil { // so that it is known, and only looked at again
				t.Fatal(err)
			}
			if err := tt.damage(a.File(MemoryFile)); err != nil {
				t.Fatal(err)
			}
			err := v.Verify(a)
			if warmboot.CodeOf(err) != warmboot.Corrupt || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestMetadataThatCannotBeTrusted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, text string
		want       warmboot.Code
	}{
		{"empty", "", warmboot.Corrupt},
		{"not JSON", "{", warmboot.Corrupt},
		{"another format", `{"format":1}`, warmboot.Incompatible},
		{"a field that nobody knows", `{"format":2,"x":1}`, warmboot.Corrupt},
		{"no files", `{"format":2}`, warmboot.Corrupt},
		{"far too large", strings.Repeat(" ", MetadataLimit+1), warmboot.Corrupt},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, MetadataFile), []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir); warmboot.CodeOf(err) != tt.want {
				t.Errorf("error is %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := Open(t.TempDir()); warmboot.CodeOf(err) != warmboot.NotFound {
		t.Errorf("nothing there: %v", err)
	}
}

func TestACrashLeavesOnlyADraftAndThatGoes(t *testing.T) {
	t.Parallel()
	root, whole := written(t, Access{Group: os.Getegid()})
	d, err := NewDraft(root, whole.Metadata.RuntimeImageID, warmboot.NewID(), os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.File(MemoryFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A file is missing: nothing may come into place.
	if _, err := d.Commit(Metadata{}, Access{Group: os.Getegid()}); err == nil {
		t.Error("half an artifact was committed")
	}
	if err := RemoveDrafts(root, func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Dir(whole.Path))
	if err != nil || len(entries) != 1 || entries[0].Name() != string(whole.Metadata.ID) {
		t.Errorf("left: %v, %v", entries, err)
	}
	for range 2 { // removing twice does no harm
		if err := Remove(whole.Path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFullDiskIsSaidToBeFull(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root to mount a small file system")
	}
	root := t.TempDir()
	if err := syscall.Mount("warmboot-test", root, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, 0); err != nil {
			t.Error(err)
		}
	})
	d, err := NewDraft(root, warmboot.NewID(), warmboot.NewID(), os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{MemoryFile, StateFile, DataFile} {
		if err := os.WriteFile(d.File(name), make([]byte, 10), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(d.File("filler"), make([]byte, 1<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	_, err = d.Commit(Metadata{}, Access{Group: os.Getegid()})
	if warmboot.CodeOf(err) != warmboot.Exhausted || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("error is %v", err)
	}
	if err := d.Discard(); err != nil {
		t.Error(err)
	}
}

func TestEveryFieldOfTheFingerprintMatters(t *testing.T) {
	t.Parallel()
	caps := vmm.Capabilities{Driver: "qemu", Version: "1", BinaryDigest: "d", SnapshotVersion: "s", Accelerator: "tcg", MachineType: "q35", Arch: "x86_64", CPUModel: "max"}
	f := FingerprintOf(caps, "image", 1, 512)
	if diff := f.Mismatch(f); diff != "" {
		t.Errorf("the same differs: %s", diff)
	}
	for name, change := range map[string]func(*Fingerprint){
		"VMM": func(f *Fingerprint) { f.VMM = "x" }, "version": func(f *Fingerprint) { f.Version = "x" },
		"binary": func(f *Fingerprint) { f.BinaryDigest = "x" }, "format": func(f *Fingerprint) { f.SnapshotVersion = "x" },
		"accelerator": func(f *Fingerprint) { f.Accelerator = "x" }, "machine": func(f *Fingerprint) { f.MachineType = "x" },
		"arch": func(f *Fingerprint) { f.Arch = "x" }, "CPU": func(f *Fingerprint) { f.CPUModel = "x" },
		"kernel": func(f *Fingerprint) { f.KernelRelease = "x" }, "image": func(f *Fingerprint) { f.ImageDigest = "x" },
		"vCPUs": func(f *Fingerprint) { f.VCPUs = 2 }, "memory": func(f *Fingerprint) { f.MemoryMiB = 1024 },
		"network": func(f *Fingerprint) { f.Network = "tap" },
	} {
		other := f
		change(&other)
		if f.Mismatch(other) == "" {
			t.Errorf("another %s goes unnoticed", name)
		}
		if same := f.Platform() == other.Platform(); same != (name == "image") {
			t.Errorf("with another %s it is the same platform: %v", name, same)
		}
	}
	if f.platform(FormatVersion) != f.Platform() || f.platform(FormatVersion+1) == f.Platform() {
		t.Error("hosts that write another format are of the same platform, and would build snapshots for one another that neither can read")
	}
}
