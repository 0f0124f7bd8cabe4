package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"warmboot"
)

// draftPrefix marks a directory that is still being written.
const draftPrefix = ".draft-"

// manifest is image.json.
type manifest struct {
	Format    int                      `json:"format"`
	Recipe    string                   `json:"recipe"`
	Base      string                   `json:"base"`  // digest of the base's recipe
	Guest     string                   `json:"guest"` // SHA-256 of warmboot-guest
	Suite     string                   `json:"suite"`
	Mirror    string                   `json:"mirror,omitempty"`
	CreatedAt time.Time                `json:"created_at"`
	Files     map[string]manifestEntry `json:"files"`
}

type manifestEntry struct {
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

func (m manifest) write(path string) error {
	b, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// openCached returns the image in dir if it has the recipe and its files have their sizes. The bytes themselves are
// checked by Inspect, when the image is registered.
func openCached(dir, recipe string) (warmboot.Image, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if err != nil {
		if _, gone := os.Stat(dir); gone == nil && errors.Is(err, fs.ErrNotExist) {
			return warmboot.Image{}, errors.New(manifestFile + " is missing")
		}
		return warmboot.Image{}, err
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return warmboot.Image{}, fmt.Errorf("%s is damaged: %w", manifestFile, err)
	}
	if m.Recipe != recipe {
		return warmboot.Image{}, fmt.Errorf("it has another recipe, %s", m.Recipe)
	}
	img := warmboot.Image{
		KernelPath: filepath.Join(dir, kernelFile), InitrdPath: filepath.Join(dir, initrdFile), RootfsPath: filepath.Join(dir, rootfsFile),
		Digest: imageDigest(m.Files[kernelFile].SHA256, m.Files[initrdFile].SHA256, m.Files[rootfsFile].SHA256),
		Recipe: recipe, CreatedAt: m.CreatedAt,
	}
	for _, name := range []string{kernelFile, initrdFile, rootfsFile} {
		st, err := os.Lstat(filepath.Join(dir, name))
		if err != nil {
			return warmboot.Image{}, fmt.Errorf("%s is missing", name)
		}
		if want := m.Files[name].Size; !st.Mode().IsRegular() || st.Size() != want {
			return warmboot.Image{}, fmt.Errorf("%s has %d bytes, not %d", name, st.Size(), want)
		}
		img.SizeBytes += st.Size()
	}
	return img, nil
}

// imageDigest identifies an image's content: SHA-256 over the hexadecimal digests of its files, one a line; an image
// without initrd has an empty line.
func imageDigest(kernel, initrd, rootfs string) string {
	return digestOf([]byte(kernel + "\n" + initrd + "\n" + rootfs + "\n"))
}

// lock takes the lock of a directory's builds, for this process and all others. It goes away with the process.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, ioError(err)
	}
	// Nothing tells when a file lock becomes free, other than a call that no context can end.
	retry := time.NewTicker(100 * time.Millisecond)
	defer retry.Stop()
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != syscall.EWOULDBLOCK && err != syscall.EINTR {
			f.Close()
			return nil, ioError(&os.PathError{Op: "lock", Path: path, Err: err})
		}
		select {
		case <-retry.C:
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		}
	}
}

// seal makes everything in dir read-only for all, readable for all, and durable.
func seal(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := os.FileMode(0o444)
		if d.IsDir() {
			mode = 0o755
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
		return flush(path)
	})
	return err
}

// flush writes a file or directory to its disk.
func flush(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}
