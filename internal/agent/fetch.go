package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/durable"
	"warmboot/internal/image"
	"warmboot/internal/snapshot"
)

// Peers reaches files of other hosts.
type Peers interface {
	// Chunk fetches the n-th chunk of a peer's file, nil for one of zeros, and tells how large the file is.
	Chunk(ctx context.Context, peer controlplane.Peer, path string, n int64) (data []byte, size int64, err error)
	// Layout tells how large a peer's file is and which of its chunks, each from and up to, are more than holes.
	Layout(ctx context.Context, peer controlplane.Peer, path string) (size int64, data [][2]int64, err error)
}

const (
	// chunkSize is that of agentrpc.ChunkSize, in bytes.
	chunkSize = 4 << 20
	// fetchAtOnce is how many chunks are on their way at once.
	fetchAtOnce = 4
	// fetchTries is how often a chunk is asked for, each time from the next peer, before the fetch gives up.
	fetchTries = 5
	// fetchPause is how long a fetch waits before it asks again, times the number of tries.
	fetchPause = 200 * time.Millisecond
	// fetchLimit is how long a fetch may take altogether. Whoever asked for it may have given up long before.
	fetchLimit = 30 * time.Minute
)

// The parts of a runtime image, as other hosts ask for them.
const (
	kernelPart = "kernel"
	initrdPart = "initrd"
	rootfsPart = "rootfs"
)

// OpenArtifact opens a file that other hosts of the cluster may have: snapshots/IMAGE/SNAPSHOT/FILE or images/DIGEST/PART.
func (a *Agent) OpenArtifact(path string) (*os.File, error) {
	const op = "give file to another host"
	file := ""
	switch parts := strings.Split(path, "/"); {
	case len(parts) == 4 && parts[0] == "snapshots":
		img, imgErr := warmboot.ParseID(parts[1])
		snap, snapErr := warmboot.ParseID(parts[2])
		if imgErr == nil && snapErr == nil && slices.Contains(append(snapshot.DataFiles(), snapshot.MetadataFile), parts[3]) {
			file = filepath.Join(snapshot.Dir(a.Root, img, snap), parts[3])
		}
	case len(parts) == 3 && parts[0] == "images":
		if here, known := a.images.at(warmboot.Image{Digest: parts[1]}); known {
			file = map[string]string{kernelPart: here.KernelPath, initrdPart: here.InitrdPath, rootfsPart: here.RootfsPath}[parts[2]]
		}
	}
	if file == "" {
		return nil, warmboot.Errorf(warmboot.NotFound, op, "this host does not have %.200q", path)
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, warmboot.Errorf(warmboot.NotFound, op, "this host does not have %.200q", path)
	}
	return f, ioError(op, err)
}

// fetches are those that run, so that many containers that need one snapshot fetch it once. The zero value is ready.
type fetches struct {
	mu      sync.Mutex
	running map[string]*fetch
}

type fetch struct {
	done chan struct{}
	err  error
}

// once runs f, or waits for the same that runs already. It goes on when ctx ends: the next who needs it finds it done.
func (a *Agent) once(ctx context.Context, what string, f func(context.Context) error) error {
	a.fetches.mu.Lock()
	running := a.fetches.running[what]
	if running == nil {
		running = &fetch{done: make(chan struct{})}
		if a.fetches.running == nil {
			a.fetches.running = map[string]*fetch{}
		}
		a.fetches.running[what] = running
		go func() {
			fctx, cancel := context.WithTimeout(a.ctx, fetchLimit)
			defer cancel()
			running.err = f(fctx)
			a.fetches.mu.Lock()
			delete(a.fetches.running, what)
			a.fetches.mu.Unlock()
			close(running.done)
		}()
	}
	a.fetches.mu.Unlock()
	select {
	case <-running.done:
		return running.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// FetchSnapshot implements controlplane.Host.
func (a *Agent) FetchSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, peers []controlplane.Peer) error {
	return a.once(ctx, "snapshot "+string(snap.ID), func(ctx context.Context) error { return a.fetchSnapshot(ctx, snap, img, peers) })
}

func (a *Agent) fetchSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, peers []controlplane.Peer) error {
	const op = "fetch snapshot"
	if _, err := snapshot.Open(snapshot.Dir(a.Root, snap.RuntimeImageID, snap.ID)); err == nil {
		return nil
	}
	if err := a.FetchImage(ctx, img, peers); err != nil {
		return err
	}
	img, err := a.images.local(ctx, img)
	if err != nil {
		return err
	}
	ctx, end, err := a.beginBuild(ctx, snap.ID)
	if err != nil {
		return err
	}
	defer end() // until then its files are no garbage
	if err := a.roomForSnapshot(); err != nil {
		return err
	}
	start := time.Now()
	path := "snapshots/" + string(snap.RuntimeImageID) + "/" + string(snap.ID) + "/"
	text, err := a.fetchSmall(ctx, peers, path+snapshot.MetadataFile, snapshot.MetadataLimit)
	if err != nil {
		return err
	}
	m, err := snapshot.ParseMetadata(text)
	if err != nil {
		return err
	}
	if m.ID != snap.ID || snap.Metadata.Digest != "" && snapshot.DigestOf(text) != snap.Metadata.Digest {
		return warmboot.Errorf(warmboot.Corrupt, op, "what the other host has is not snapshot %s as it was made", snap.ID.Short())
	}
	if diff := m.Fingerprint.Mismatch(snapshot.FingerprintOf(a.caps, img.Digest, a.VCPUs, a.MemoryMiB)); diff != "" {
		return warmboot.Errorf(warmboot.Incompatible, op, "%s", diff)
	}
	draft, err := snapshot.ResumeDraft(a.Root, snap.RuntimeImageID, snap.ID, a.group())
	if err != nil {
		return err
	}
	got := a.openProgress(draft.File(snapshot.FetchFile))
	for name, f := range m.Files {
		if err := a.fetchFile(ctx, peers, path+name, draft.File(name), 0o640, f.Size, got); err != nil {
			return err // the draft stays, to be gone on with
		}
	}
	if err := a.finishFetch(ctx, draft, text, img); err != nil {
		return errors.Join(err, draft.Discard()) // what is wrong with it will not get better
	}
	a.Log.Info(fmt.Sprintf("Snapshot %s was fetched from another host in %.2fs", snap.ID.Short(), time.Since(start).Seconds()), "snapshot_id", snap.ID)
	return nil
}

// finishFetch makes an artifact of a draft whose files are all there.
func (a *Agent) finishFetch(ctx context.Context, draft *snapshot.Draft, metadata []byte, img warmboot.Image) error {
	if err := os.Symlink(img.RootfsPath, draft.File(snapshot.RootFile)); err != nil && !errors.Is(err, fs.ErrExist) {
		return ioError("fetch snapshot", err)
	}
	art, err := draft.CommitFetched(metadata, a.snapshotAccess())
	if err != nil {
		return err
	}
	if err := a.disks.Prepare(ctx, art.File(snapshot.DataFile)); err != nil {
		return errors.Join(err, a.removeArtifact(art.Path))
	}
	return nil
}

// fetchImage gets a runtime image's files from another host.
func (a *Agent) fetchImage(ctx context.Context, img warmboot.Image, peers []controlplane.Peer) error {
	if len(peers) == 0 || a.Peers == nil {
		if err := checkFiles(img); err != nil {
			return err
		}
		return warmboot.Errorf(warmboot.Corrupt, "fetch runtime image", "the files of runtime image %s are not what they were when it was registered; build or register the image again", img.Name)
	}
	return a.once(ctx, "image "+img.Digest, func(ctx context.Context) error { return a.fetchImageFiles(ctx, img, peers) })
}

func (a *Agent) fetchImageFiles(ctx context.Context, img warmboot.Image, peers []controlplane.Peer) error {
	const op = "fetch runtime image"
	if len(img.Digest) < 16 {
		return warmboot.Errorf(warmboot.Invalid, op, "runtime image %s has no digest", img.Name)
	}
	start := time.Now()
	dir := filepath.Join(a.Root, "images", "fetched-"+img.Digest[:16])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return ioError(op, err)
	}
	here := img
	here.KernelPath, here.RootfsPath = filepath.Join(dir, kernelPart), filepath.Join(dir, rootfsPart)
	files := map[string]string{kernelPart: here.KernelPath, rootfsPart: here.RootfsPath}
	if img.InitrdPath != "" {
		here.InitrdPath = filepath.Join(dir, initrdPart)
		files[initrdPart] = here.InitrdPath
	}
	got := a.openProgress(filepath.Join(dir, snapshot.FetchFile))
	for part, file := range files {
		if err := a.fetchFile(ctx, peers, "images/"+img.Digest+"/"+part, file, 0o644, -1, got); err != nil { // each VMM reads it as a user of its own
			return err
		}
	}
	found, err := image.Inspect(ctx, here, a.ImageRoots)
	if err == nil && found.Digest != img.Digest {
		err = warmboot.Errorf(warmboot.Corrupt, op, "what other hosts have is not runtime image %s as it was registered", img.Name)
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	if err := os.Remove(got.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ioError(op, err)
	}
	a.Log.Info(fmt.Sprintf("Runtime image %s was fetched from another host in %.2fs", img.Name, time.Since(start).Seconds()), "digest", img.Digest)
	return a.images.add(found)
}

// fetchSmall gets a file that fits into memory.
func (a *Agent) fetchSmall(ctx context.Context, peers []controlplane.Peer, path string, limit int64) ([]byte, error) {
	data, size, err := a.fetchChunk(ctx, peers, path, 0)
	if err == nil && (size > limit || int64(len(data)) != size) {
		err = warmboot.Errorf(warmboot.Corrupt, "fetch file", "%s has %d bytes, at most %d are believable", path, size, limit)
	}
	return data, err
}

// fetchFile gets a file, or what is missing of it. size is what it must have, -1 if that is not known.
func (a *Agent) fetchFile(ctx context.Context, peers []controlplane.Peer, path, dest string, mode os.FileMode, size int64, got *fetchProgress) error {
	const op = "fetch file"
	f, err := os.OpenFile(dest, os.O_RDWR|os.O_CREATE, mode)
	if err != nil {
		return ioError(op, err)
	}
	defer f.Close()
	if err := f.Chmod(mode); err != nil { // whatever the umask is
		return ioError(op, err)
	}
	name := filepath.Base(dest)
	var layout [][2]int64
	var there int64
	err = a.askPeers(ctx, peers, path, 0, func(peer controlplane.Peer) (err error) {
		there, layout, err = a.Peers.Layout(ctx, peer, path)
		return err
	})
	switch {
	case err != nil:
		return err
	case size < 0 && there > maxFetched:
		return warmboot.Errorf(warmboot.Corrupt, op, "%s has %d bytes, which is not believable", path, there)
	case size < 0:
		size = there
	case size != there:
		return warmboot.Errorf(warmboot.Corrupt, op, "%s has %d bytes on another host, it must have %d", path, there, size)
	}
	if err := f.Truncate(size); err != nil { // what is never written is zeros
		return ioError(op, err)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(fetchAtOnce)
	for _, chunks := range layout {
		for n := chunks[0]; n < chunks[1]; n++ {
			if got.has(name, n) {
				continue
			}
			group.Go(func() error {
				data, now, err := a.fetchChunk(gctx, peers, path, n)
				if err != nil {
					return err
				}
				if now != size {
					return warmboot.Errorf(warmboot.Corrupt, op, "%s has %d bytes on another host, it must have %d", path, now, size)
				}
				if len(data) > 0 {
					if _, err := f.WriteAt(data, n*chunkSize); err != nil {
						return ioError(op, err)
					}
				}
				return ioError(op, got.add(name, n, f.Sync))
			})
		}
	}
	if err := group.Wait(); err != nil {
		return errors.Join(err, ioError(op, got.save(f.Sync)))
	}
	return ioError(op, got.save(f.Sync))
}

// maxFetched is how large a file of a runtime image may be, in bytes.
const maxFetched = 64 << 30

func (a *Agent) fetchChunk(ctx context.Context, peers []controlplane.Peer, path string, n int64) (data []byte, size int64, err error) {
	err = a.askPeers(ctx, peers, path, n, func(peer controlplane.Peer) (err error) {
		data, size, err = a.Peers.Chunk(ctx, peer, path, n)
		return err
	})
	return data, size, err
}

// askPeers asks one peer after the other, beginning with the n-th, until one gives what is wanted of its file.
func (a *Agent) askPeers(ctx context.Context, peers []controlplane.Peer, path string, n int64, ask func(controlplane.Peer) error) (err error) {
	if len(peers) == 0 || a.Peers == nil {
		return warmboot.Errorf(warmboot.NotFound, "fetch file", "no other host that can be reached has %s; start one that does (`warmboot host ls`), or have the snapshot built again", path)
	}
	for try := range fetchTries {
		if err = ask(peers[(int(n)+try)%len(peers)]); err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(fetchPause * time.Duration(try+1)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

// fetchProgress is how far a fetch has come, on disk: which chunks of which file are there.
type fetchProgress struct {
	path  string
	mu    sync.Mutex
	there map[string][]bool
	fresh int // chunks since it was saved
}

// openProgress reads how far an earlier fetch has come. What cannot be read counts as nothing.
func (a *Agent) openProgress(path string) *fetchProgress {
	p := &fetchProgress{path: path, there: map[string][]bool{}}
	if text, err := os.ReadFile(path); err == nil {
		if json.Unmarshal(text, &p.there) != nil {
			p.there = map[string][]bool{}
		}
	}
	return p
}

func (p *fetchProgress) has(name string, n int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return n < int64(len(p.there[name])) && p.there[name][n]
}

// saveEvery is after how many chunks the progress is written down: 256 MiB.
const saveEvery = 64

// add notes a chunk that has been written. flush makes it durable before it is written down.
func (p *fetchProgress) add(name string, n int64, flush func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for int64(len(p.there[name])) <= n {
		p.there[name] = append(p.there[name], false)
	}
	p.there[name][n] = true
	if p.fresh++; p.fresh < saveEvery {
		return nil
	}
	return p.saveLocked(flush)
}

func (p *fetchProgress) save(flush func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.saveLocked(flush)
}

func (p *fetchProgress) saveLocked(flush func() error) error {
	p.fresh = 0
	if err := flush(); err != nil {
		return err
	}
	text, err := json.Marshal(p.there)
	if err != nil {
		return err
	}
	return durable.Replace(p.path, text, 0o600)
}
