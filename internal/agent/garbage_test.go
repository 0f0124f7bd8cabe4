package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/snapshot"
	"warmboot/internal/vmm"
)

// garbageRoot is an agent on a storage root with the given files in it.
func garbageRoot(t *testing.T, files ...string) *Agent {
	t.Helper()
	a := &Agent{
		Config: Config{Root: t.TempDir(), Log: slog.New(slog.DiscardHandler), VCPUs: 1, MemoryMiB: 512},
		builds: map[warmboot.ID]*building{}, images: &imageIndex{known: map[string]imageFiles{}}, containers: map[warmboot.ID]*container{}, verifier: snapshot.NewVerifier(),
	}
	for _, f := range files {
		path := filepath.Join(a.Root, f)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Repeat("x", 5000)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestGarbageIsListedAndOnlyThatIsDiscarded(t *testing.T) {
	t.Parallel()
	image, snap, building, dead, c := warmboot.NewID(), warmboot.NewID(), warmboot.NewID(), warmboot.NewID(), warmboot.NewID()
	dir := "runtime-snapshots/" + string(image) + "/"
	a := garbageRoot(t, dir+string(snap)+"/snapshot.mem", dir+".draft-"+string(building)+"/snapshot.mem", dir+".draft-"+string(dead)+"/snapshot.mem",
		"builds/"+string(building)+"/qmp", "builds/"+string(dead)+"/qmp", "containers/"+string(c)+"/data.qcow2", "containers/notes/mine",
		"images/.lock", "images/0123456789abcdef/rootfs.ext4", "images/base-fedcba9876543210/base.ext4", "images/.draft-1/rootfs.ext4")
	_, end, err := a.beginBuild(t.Context(), building)
	if err != nil {
		t.Fatal(err)
	}
	all, err := a.Garbage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range all {
		rel, _ := filepath.Rel(a.Root, g.Path)
		got = append(got, fmt.Sprintf("%s %s", g.Kind, rel))
		if g.Bytes < 5000 || g.Modified.IsZero() {
			t.Errorf("%+v", g)
		}
		if g.Kind == controlplane.GarbageSnapshot && (g.ID != snap || g.ImageID != image) {
			t.Errorf("%+v", g)
		}
	}
	want := []string{
		"container containers/" + string(c), "image images/.draft-1", "image images/0123456789abcdef", "image images/base-fedcba9876543210",
		"snapshot " + dir + string(snap), "temporary builds/" + string(dead), "temporary " + dir + ".draft-" + string(dead),
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("listed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	discard := func(kind controlplane.GarbageKind, rel string) error {
		return a.Discard(t.Context(), controlplane.Garbage{Kind: kind, Path: filepath.Join(a.Root, rel)})
	}
	for _, rel := range []string{"builds/" + string(building), dir + ".draft-" + string(building)} {
		if err := discard(controlplane.GarbageTemporary, rel); warmboot.CodeOf(err) != warmboot.Conflict {
			t.Errorf("%s of a build that runs: %v", rel, err)
		}
	}
	end()
	for _, rel := range []string{"", "builds", "images", "containers/" + string(c), dir + string(snap), "../x", "builds/../../x"} {
		for _, kind := range []controlplane.GarbageKind{controlplane.GarbageTemporary, controlplane.GarbageImage} {
			if err := discard(kind, rel); warmboot.CodeOf(err) != warmboot.Invalid {
				t.Errorf("%s as %s: %v", rel, kind, err)
			}
		}
	}
	for _, g := range all {
		if g.Kind == controlplane.GarbageTemporary || g.Kind == controlplane.GarbageImage {
			if err := a.Discard(t.Context(), g); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(g.Path); !os.IsNotExist(err) {
				t.Errorf("%s is left", g.Path)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(a.Root, "containers/notes/mine")); err != nil {
		t.Error(err)
	}
}

func TestARegisteredImageKeepsItsBase(t *testing.T) {
	t.Parallel()
	a := garbageRoot(t, "images/0123456789abcdef/rootfs.ext4")
	dir := filepath.Join(a.Root, "images", "0123456789abcdef")
	if err := os.WriteFile(filepath.Join(dir, "image.json"), []byte(`{"base":"fedcba9876543210aaaa"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	used, err := a.ImageFiles(t.Context(), []*warmboot.Image{
		{KernelPath: filepath.Join(dir, "vmlinuz"), RootfsPath: filepath.Join(dir, "rootfs.ext4")}, {KernelPath: "/boot/k", RootfsPath: "/srv/r"},
	})
	if err != nil || len(used) != 2 || !used[dir] || !used[filepath.Join(a.Root, "images", "base-fedcba9876543210")] {
		t.Errorf("%v, %v", used, err)
	}
}

// TestALargerContainerDoesNotMakeASnapshotOutdated: only a host that would make another snapshot today does.
func TestALargerContainerDoesNotMakeASnapshotOutdated(t *testing.T) {
	t.Parallel()
	a := garbageRoot(t, "img/k", "img/r")
	a.caps = vmm.Capabilities{Driver: "qemu", Version: "7.2"}
	img := warmboot.Image{ID: warmboot.NewID(), Digest: "d", KernelPath: filepath.Join(a.Root, "img/k"), RootfsPath: filepath.Join(a.Root, "img/r"), SizeBytes: 10000}
	snap := warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: img.ID}
	d, err := snapshot.NewDraft(a.Root, img.ID, snap.ID, os.Getegid())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{snapshot.MemoryFile, snapshot.StateFile, snapshot.DataFile} {
		if err := os.WriteFile(d.File(name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	art, err := d.Commit(snapshot.Metadata{Fingerprint: snapshot.FingerprintOf(a.caps, img.Digest, a.VCPUs, a.MemoryMiB)}, snapshot.Access{Group: os.Getegid()})
	if err != nil {
		t.Fatal(err)
	}
	try := func(spec warmboot.ContainerSpec) error {
		_, err := a.usableArtifact(controlplane.MachineSpec{Image: img, Spec: spec}, art.Path)
		return err
	}
	if err := try(warmboot.ContainerSpec{}); err != nil {
		t.Fatal(err)
	}
	check := func(what string, err error, size bool) {
		t.Helper()
		if warmboot.CodeOf(err) != warmboot.Incompatible || errors.Is(err, controlplane.ErrMachineSize) != size {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("more memory", try(warmboot.ContainerSpec{MemoryLimitMB: 1024}), true)
	check("more CPUs", try(warmboot.ContainerSpec{CPULimit: 1.5}), true)
	a.MemoryMiB = 768
	check("a host whose machines are larger", try(warmboot.ContainerSpec{}), false)
	a.MemoryMiB, a.caps.Version = 512, "8.0"
	check("another VMM", try(warmboot.ContainerSpec{}), false)
	check("another VMM, and more memory", try(warmboot.ContainerSpec{MemoryLimitMB: 1024}), false)
	if err := a.ScrubSnapshot(t.Context(), snap); err != nil {
		t.Error(err)
	}
}
