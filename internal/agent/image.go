package agent

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/durable"
	"warmboot/internal/image"
)

// imageIndex is ROOT/images/index.json: where this host has the files of the runtime images that it knows, by their digest. The same
// image lies in different places on different hosts.
type imageIndex struct {
	path  string
	mu    sync.Mutex
	known map[string]imageFiles
}

type imageFiles struct {
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd,omitempty"`
	Rootfs string `json:"rootfs"`
}

func openImageIndex(dir string) (*imageIndex, error) {
	const op = "read index of runtime images"
	x := &imageIndex{path: filepath.Join(dir, "index.json"), known: map[string]imageFiles{}}
	text, err := os.ReadFile(x.path)
	if errors.Is(err, fs.ErrNotExist) {
		return x, ioError(op, os.MkdirAll(dir, 0o755))
	}
	if err != nil {
		return nil, ioError(op, err)
	}
	if err := json.Unmarshal(text, &x.known); err != nil {
		x.known = map[string]imageFiles{} // it is made anew, image by image
	}
	return x, nil
}

// add notes where an image's files are. They have been read and their digest is the image's.
func (x *imageIndex) add(img warmboot.Image) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.known[img.Digest] = imageFiles{img.KernelPath, img.InitrdPath, img.RootfsPath}
	text, err := json.MarshalIndent(x.known, "", "  ")
	if err == nil {
		err = durable.Replace(x.path, append(text, '\n'), 0o600)
	}
	return ioError("write index of runtime images", err)
}

// digests are those of the images whose files are here.
func (x *imageIndex) digests() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	var all []string
	for digest, files := range x.known {
		there := true
		for _, path := range []string{files.Kernel, files.Initrd, files.Rootfs} {
			if path != "" {
				_, err := os.Stat(path)
				there = there && err == nil
			}
		}
		if there {
			all = append(all, digest)
		}
	}
	slices.Sort(all)
	return all
}

// at is the image with the paths that its files have on this host, as far as that is known.
func (x *imageIndex) at(img warmboot.Image) (warmboot.Image, bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	files, ok := x.known[img.Digest]
	if ok {
		img.KernelPath, img.InitrdPath, img.RootfsPath = files.Kernel, files.Initrd, files.Rootfs
	}
	return img, ok
}

// local is the image with the paths that its files have on this host. They are still there, and as large as they were; their content was
// checked when the image was registered or fetched.
func (x *imageIndex) local(_ context.Context, img warmboot.Image) (warmboot.Image, error) {
	here, known := x.at(img)
	if !known {
		return img, warmboot.Errorf(warmboot.NotFound, "use runtime image", "this host does not have the files of runtime image %s", img.Name)
	}
	return here, checkFiles(here)
}

// checkFiles makes sure that a runtime image's files are there, as large as they were.
func checkFiles(img warmboot.Image) error {
	var size int64
	for _, path := range []string{img.KernelPath, img.InitrdPath, img.RootfsPath} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return &warmboot.Error{Code: warmboot.Corrupt, Op: "use runtime image", Msg: "a file of runtime image " + img.Name + " cannot be read; build or register the image again", Err: err}
		}
		size += info.Size()
	}
	if size != img.SizeBytes {
		return warmboot.Errorf(warmboot.Corrupt, "use runtime image", "the files of runtime image %s have %d bytes, they had %d when it was registered; build or register the image again", img.Name, size, img.SizeBytes)
	}
	return nil
}

// InspectImage checks a runtime image's files and returns it with its digest and size.
func (a *Agent) InspectImage(ctx context.Context, img warmboot.Image) (warmboot.Image, error) {
	img, err := image.Inspect(ctx, img, a.ImageRoots)
	if err != nil {
		return img, err
	}
	return img, a.images.add(img)
}

// FetchImage makes sure that this host has a runtime image's files: where it knows them to be, where the image was registered with
// them (on this host, or on one that is laid out alike), or from a peer.
func (a *Agent) FetchImage(ctx context.Context, img warmboot.Image, peers []controlplane.Peer) error {
	if here, known := a.images.at(img); known && checkFiles(here) == nil {
		return nil
	}
	if checkFiles(img) == nil {
		found, err := image.Inspect(ctx, img, a.ImageRoots)
		if err == nil && found.Digest == img.Digest {
			return a.images.add(found)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return a.fetchImage(ctx, img, peers)
}
