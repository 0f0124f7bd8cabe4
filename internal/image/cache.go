package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"warmboot"
	"warmboot/internal/durable"
	"warmboot/internal/rollback"
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

// Lock takes the lock of a directory's builds, for this process and all others. It goes away with the process.
func Lock(ctx context.Context, path string) (unlock func(), err error) {
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

// Publish lets write fill an empty directory beside final, flushes it, and gives it the name final: it is there whole and read-only,
// or not at all. The caller holds the lock of the directory that final is in.
func Publish(final string, write func(draft string) error) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	dir := filepath.Dir(final)
	draft, err := os.MkdirTemp(dir, draftPrefix)
	if err != nil {
		return ioError(err)
	}
	undo.Push("write "+final, func() error { return removeDraft(draft) })
	if err := os.Chmod(draft, 0o711); err != nil { // apt fetches packages as a user of its own, which must get through
		return ioError(err)
	}
	if err := write(draft); err != nil {
		return err
	}
	if err := seal(draft); err != nil {
		return ioError(err)
	}
	// What has the name now was found unusable. Whoever still runs from its files keeps them.
	if err := os.RemoveAll(final); err != nil {
		return ioError(err)
	}
	if err := os.Rename(draft, final); err != nil {
		return ioError(err)
	}
	return ioError(durable.Flush(dir))
}

// RemoveDrafts removes what crashed builds have left in dir. The caller holds the lock of dir, so nobody is writing there.
func RemoveDrafts(dir string) error {
	left, _ := filepath.Glob(filepath.Join(dir, draftPrefix+"*")) // fails on a bad pattern only
	var errs []error
	for _, d := range left {
		errs = append(errs, removeDraft(d))
	}
	return errors.Join(errs...)
}

// removeDraft removes a directory of a build. If mmdebstrap was killed in it without root, it has files of subordinate
// ids, which only a namespace that has these may remove.
func removeDraft(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || os.Geteuid() == 0 {
		return err
	}
	cmd := exec.CommandContext(context.Background(), "unshare", "--map-root-user", "--map-auto", "rm", "-rf", "--", dir) // also for a caller that has gone
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("remove %s: %w: %.300s", dir, err, out)
	}
	return nil
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
		return durable.Flush(path)
	})
	return err
}
