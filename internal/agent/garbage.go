package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/snapshot"
)

// Garbage lists what lies below the storage root and could be of no use: every container and artifact, every runtime image and base
// below ROOT/images, and what no running build owns of what builds make.
func (a *Agent) Garbage(ctx context.Context) ([]controlplane.Garbage, error) {
	const op = "look for garbage"
	var all []controlplane.Garbage
	add := func(g controlplane.Garbage, err error) error {
		if err != nil || g.Path == "" {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		info, err := os.Lstat(g.Path)
		if err != nil {
			return gone(err)
		}
		g.Modified = info.ModTime()
		g.Bytes, err = diskUsage(g.Path)
		all = append(all, g)
		return err
	}
	for _, part := range []struct {
		pattern string
		what    func(path string) controlplane.Garbage
	}{
		{"containers/*", containerGarbage},
		{"runtime-snapshots/*/*", a.snapshotGarbage},
		{"runtime-snapshots/*/.*", a.snapshotGarbage},
		{"builds/*", a.buildGarbage},
		{"images/*", imageGarbage},
		{"images/.draft-*", imageGarbage},
	} {
		paths, err := filepath.Glob(filepath.Join(a.Root, part.pattern))
		if err != nil {
			return nil, ioError(op, err)
		}
		seen := map[string]bool{}
		for _, g := range all {
			seen[g.Path] = true
		}
		for _, path := range paths {
			if seen[path] { // Glob's * matches a leading dot
				continue
			}
			if err := add(part.what(path), nil); err != nil {
				return nil, ioError(op, err)
			}
		}
	}
	return all, nil
}

func containerGarbage(path string) controlplane.Garbage {
	id, err := warmboot.ParseID(filepath.Base(path))
	if err != nil {
		return controlplane.Garbage{} // none of ours
	}
	return controlplane.Garbage{Kind: controlplane.GarbageContainer, Path: path, ID: id}
}

// snapshotGarbage is an artifact, or a draft that no build is writing.
func (a *Agent) snapshotGarbage(path string) controlplane.Garbage {
	name, draft := snapshot.DraftOf(filepath.Base(path))
	id, err := warmboot.ParseID(name)
	image, imageErr := warmboot.ParseID(filepath.Base(filepath.Dir(path)))
	if err != nil || imageErr != nil || a.building(id) {
		return controlplane.Garbage{}
	}
	if draft {
		return controlplane.Garbage{Kind: controlplane.GarbageTemporary, Path: path}
	}
	return controlplane.Garbage{Kind: controlplane.GarbageSnapshot, Path: path, ID: id, ImageID: image}
}

func (a *Agent) buildGarbage(path string) controlplane.Garbage {
	id, err := warmboot.ParseID(filepath.Base(path))
	if err != nil || a.building(id) {
		return controlplane.Garbage{}
	}
	return controlplane.Garbage{Kind: controlplane.GarbageTemporary, Path: path}
}

func imageGarbage(path string) controlplane.Garbage {
	if info, err := os.Lstat(path); err != nil || !info.IsDir() {
		return controlplane.Garbage{} // the lock
	}
	return controlplane.Garbage{Kind: controlplane.GarbageImage, Path: path}
}

// ImageFiles returns the directories below ROOT/images that the given runtime images, and the bases they were made from, lie in.
func (a *Agent) ImageFiles(_ context.Context, images []*warmboot.Image) (map[string]bool, error) {
	used := map[string]bool{}
	root := filepath.Join(a.Root, "images")
	for _, there := range images {
		img, _ := a.images.at(*there)
		for _, file := range []string{img.KernelPath, img.InitrdPath, img.RootfsPath} {
			rel, err := filepath.Rel(root, file)
			if file == "" || err != nil || strings.HasPrefix(rel, "..") {
				continue
			}
			dir := filepath.Join(root, strings.SplitN(rel, string(filepath.Separator), 2)[0])
			used[dir] = true
			text, err := os.ReadFile(filepath.Join(dir, "image.json"))
			var manifest struct {
				Base string `json:"base"`
			}
			if err == nil && json.Unmarshal(text, &manifest) == nil && len(manifest.Base) >= 16 {
				used[filepath.Join(root, "base-"+manifest.Base[:16])] = true
			}
		}
	}
	return used, nil
}

// Discard removes a temporary or a runtime image that Garbage has listed.
func (a *Agent) Discard(_ context.Context, g controlplane.Garbage) error {
	const op = "discard garbage"
	a.mu.Lock() // no build begins meanwhile
	defer a.mu.Unlock()
	rel, err := filepath.Rel(a.Root, g.Path)
	parts := strings.Split(rel, string(filepath.Separator))
	name, draft := snapshot.DraftOf(filepath.Base(g.Path))
	allowed := false
	switch {
	case err != nil:
	case g.Kind == controlplane.GarbageImage:
		allowed = len(parts) == 2 && parts[0] == "images"
	case g.Kind == controlplane.GarbageTemporary:
		allowed = len(parts) == 2 && parts[0] == "builds" || len(parts) == 3 && parts[0] == "runtime-snapshots" && draft
	}
	if !allowed || parts[len(parts)-1] == ".." {
		return warmboot.Errorf(warmboot.Invalid, op, "%s is nothing that garbage collection may remove", g.Path)
	}
	if a.builds[warmboot.ID(name)] != nil {
		return warmboot.Errorf(warmboot.Conflict, op, "%s belongs to a build that runs", g.Path)
	}
	return ioError(op, os.RemoveAll(g.Path))
}

// building tells whether a build of the snapshot runs.
func (a *Agent) building(id warmboot.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.builds[id] != nil
}

// building is a build, or a fetch, of a snapshot that runs.
type building struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// beginBuild keeps garbage collection off a build's files until end. A build of the same snapshot that runs already is ended first: whoever
// had asked for it was taken over.
func (a *Agent) beginBuild(ctx context.Context, id warmboot.ID) (bctx context.Context, end func(), err error) {
	for {
		a.mu.Lock()
		other := a.builds[id]
		if other == nil {
			break
		}
		a.mu.Unlock()
		other.cancel()
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	defer a.mu.Unlock()
	bctx, cancel := context.WithCancel(ctx)
	mine := &building{cancel: cancel, done: make(chan struct{})}
	a.builds[id] = mine
	return bctx, func() {
		cancel()
		a.mu.Lock()
		delete(a.builds, id)
		a.mu.Unlock()
		close(mine.done)
	}, nil
}

// ScrubSnapshot reads a snapshot's files again, slowly, and compares their digests. Damage is a Corrupt error.
func (a *Agent) ScrubSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) error {
	art, err := snapshot.Open(snapshot.Dir(a.Root, snap.RuntimeImageID, snap.ID))
	if err != nil {
		return err
	}
	return art.Scrub(ctx, scrubRate)
}

// scrubRate is how fast a snapshot is scrubbed, in bytes a second: half a minute for a gigabyte, a fraction of what a disk gives.
const scrubRate = 32 << 20

// diskUsage is the space that a file or directory occupies. What vanishes meanwhile is not counted.
func diskUsage(root string) (int64, error) {
	var n int64
	err := filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return gone(err)
		}
		info, err := d.Info()
		if err != nil {
			return gone(err)
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			n += st.Blocks * 512
		}
		return nil
	})
	return n, err
}

// gone takes away the error of what is not there any more.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
