// Package disk makes the data disks of microVMs: empty ones, and clones of a snapshot's disk.
//
// Nothing is made twice that can be copied: an empty file system is a copy of a template that mkfs.ext4 made once per
// size, and a clone under QEMU is a copy of a small qcow2 overlay that qemu-img made once per base. Where the file
// system can share extents between files (Btrfs, XFS), a clone is a reflink instead.
package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"warmboot"
	"warmboot/internal/durable"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// Config is what a Store needs.
type Config struct {
	Dir    string // where templates are kept; made if missing, and only ours
	Driver string // the VMM: "qemu" reads qcow2 overlays, every other one raw disks only
	Group  int    // the group that is to read snapshots (vmm.Owner.Readers): it must be able to pass through to a base, which Open does not check
	Log    *slog.Logger
}

// Store makes disks. It is safe for concurrent use. Its directory is its own: no other process may use it meanwhile.
type Store struct {
	Config
	making keyed
}

// The prefixes of templates in Config.Dir; what begins with a dot is half made.
const (
	emptyPrefix   = "empty-"
	overlayPrefix = "overlay-"
	draftPrefix   = ".draft-"
)

// Open makes the template directory ready, and removes what a crash left half made there.
func Open(ctx context.Context, c Config) (*Store, error) {
	const op = "open disk store"
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if !filepath.IsAbs(c.Dir) {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "template directory %q is not an absolute path", c.Dir)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, failure(op, err)
	}
	s := &Store{Config: c}
	drafts, err := filepath.Glob(filepath.Join(globEscape(c.Dir), draftPrefix+"*"))
	if err != nil {
		return nil, failure(op, err)
	}
	for _, d := range drafts {
		if err := os.Remove(d); err != nil {
			return nil, failure(op, err)
		}
	}
	return s, ctx.Err()
}

// New makes a data disk with an empty ext4 file system of size bytes (a multiple of 1 MiB, at least 16 MiB) at path. The
// file is sparse: it takes a few MiB until the guest writes. There must be nothing at path yet.
func (s *Store) New(ctx context.Context, path string, size int64, owner vmm.Owner) (vmm.Disk, error) {
	const op = "make data disk"
	if size < 16<<20 || size%(1<<20) != 0 {
		return vmm.Disk{}, warmboot.Errorf(warmboot.Invalid, op, "a data disk of %d bytes cannot be made; choose a multiple of 1 MiB, at least 16 MiB", size)
	}
	template, err := s.template(ctx, fmt.Sprintf("%s%d.ext4", emptyPrefix, size), func(ctx context.Context, draft string) error {
		return mkfs(ctx, draft, size)
	})
	if err != nil {
		return vmm.Disk{}, err
	}
	if err := place(op, template, path, owner, sparseCopy); err != nil {
		return vmm.Disk{}, err
	}
	return vmm.Disk{Path: path, Format: vmm.Raw}, nil
}

// Clone makes a copy-on-write clone of base, a raw disk that must not change or move as long as the clone lives, at
// path. It takes the same short time whatever base's size, except where there is neither reflink nor QEMU: there it
// copies base's data. There must be nothing at path yet.
func (s *Store) Clone(ctx context.Context, base, path string, owner vmm.Owner) (vmm.Disk, error) {
	const op = "clone data disk"
	if err := ctx.Err(); err != nil {
		return vmm.Disk{}, warmboot.Errorf(warmboot.CodeOf(err), op, "%w", err)
	}
	err := place(op, base, path, owner, reflink)
	if err == nil {
		return vmm.Disk{Path: path, Format: vmm.Raw}, nil
	}
	if !errors.Is(err, errNoReflink) {
		return vmm.Disk{}, err
	}
	if s.Driver != "qemu" {
		if err := place(op, base, path, owner, sparseCopy); err != nil {
			return vmm.Disk{}, err
		}
		return vmm.Disk{Path: path, Format: vmm.Raw}, nil
	}
	template, err := s.overlay(ctx, base)
	if err != nil {
		return vmm.Disk{}, err
	}
	if err := place(op, template, path, owner, sparseCopy); err != nil {
		return vmm.Disk{}, err
	}
	return vmm.Disk{Path: path, Format: vmm.QCOW2}, nil
}

// Prepare makes ahead of time what the first Clone of base would make.
func (s *Store) Prepare(ctx context.Context, base string) error {
	if s.Driver != "qemu" {
		return nil
	}
	_, err := s.overlay(ctx, base)
	return err
}

// Forget removes what was made for clones of base; base itself may be gone already. Existing clones are not touched.
func (s *Store) Forget(base string) error {
	return s.removeOverlays(base, "")
}

// overlay returns the overlay template of base as it is now.
func (s *Store) overlay(ctx context.Context, base string) (string, error) {
	const op = "clone data disk"
	if !filepath.IsAbs(base) {
		return "", warmboot.Errorf(warmboot.Invalid, op, "%q is not an absolute path; the overlay would not find it", base)
	}
	info, err := os.Stat(base)
	if err != nil {
		return "", failure(op, err)
	}
	st := info.Sys().(*syscall.Stat_t)
	key := overlayKey(base)
	name := fmt.Sprintf("%s%x-%x-%x.qcow2", key, st.Ino, info.Size(), info.ModTime().UnixNano())
	return s.template(ctx, name, func(ctx context.Context, draft string) error {
		// Whatever was at this path before is another base, and of no more use.
		if err := s.removeOverlays(base, name); err != nil {
			return err
		}
		return makeOverlay(ctx, base, draft)
	})
}

func (s *Store) removeOverlays(base, except string) error {
	old, err := filepath.Glob(filepath.Join(globEscape(s.Dir), overlayKey(base)+"*"))
	for _, o := range old {
		if filepath.Base(o) == except {
			continue
		}
		if rmErr := os.Remove(o); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, rmErr)
		}
	}
	if err != nil {
		return failure("remove disk templates", err)
	}
	return nil
}

func overlayKey(base string) string {
	sum := sha256.Sum256([]byte(base))
	return overlayPrefix + hex.EncodeToString(sum[:12]) + "-"
}

// template returns the path of a template, which make writes if it is not there yet; whoever else wants the same one
// waits. It appears under its name only when it is whole.
func (s *Store) template(ctx context.Context, name string, make func(ctx context.Context, draft string) error) (string, error) {
	const op = "make disk template"
	path := filepath.Join(s.Dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := s.making.lock(ctx, name)
	if err != nil {
		return "", warmboot.Errorf(warmboot.CodeOf(err), op, "%w", err)
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	var undo rollback.Stack
	defer undo.Unwind()
	f, err := os.CreateTemp(s.Dir, draftPrefix)
	if err != nil {
		return "", failure(op, err)
	}
	undo.Push("create template", func() error { return os.Remove(f.Name()) })
	undo.Push("open template", f.Close)
	if err := make(ctx, f.Name()); err != nil {
		return "", err
	}
	// After a power cut a template must not be an empty file under its final name.
	if err := f.Sync(); err != nil {
		return "", failure(op, err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return "", failure(op, err)
	}
	undo.Move()
	f.Close()
	s.Log.DebugContext(ctx, "made a disk template", "path", path)
	return path, nil
}

// place fills a new file at path with fill and gives it to owner; on an error there is no file.
func place(op, from, path string, owner vmm.Owner, fill func(dst, src *os.File) error) error {
	var undo rollback.Stack
	defer undo.Unwind()
	src, err := os.Open(from)
	if err != nil {
		return failure(op, err)
	}
	defer src.Close()
	dst, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return failure(op, err)
	}
	undo.Push("create disk", func() error { return os.Remove(path) })
	undo.Push("open disk", dst.Close)
	if err := fill(dst, src); err != nil {
		return failure(op, err)
	}
	if owner != (vmm.Owner{}) && os.Geteuid() == 0 {
		if err := dst.Chown(int(owner.UID), int(owner.GID)); err != nil {
			return failure(op, err)
		}
	}
	if err := dst.Close(); err != nil {
		return failure(op, err)
	}
	undo.Move()
	return nil
}

// failure puts what the operating system said into our words.
func failure(op string, err error) error {
	var ours *warmboot.Error
	switch {
	case errors.As(err, &ours):
		return err
	case durable.Full(err):
		return &warmboot.Error{Code: warmboot.Exhausted, Op: op, Msg: "the disk is full; free space on the storage root, for instance by deleting stopped containers and unused snapshots, and try again", Err: err}
	case errors.Is(err, fs.ErrNotExist):
		return &warmboot.Error{Code: warmboot.NotFound, Op: op, Err: err}
	case errors.Is(err, fs.ErrExist):
		return &warmboot.Error{Code: warmboot.Conflict, Op: op, Msg: "there is a file already, and it is not overwritten", Err: err}
	}
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}

func globEscape(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

// keyed is a set of locks by name. The zero value is ready.
type keyed struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

// lock waits for the lock called name, or for ctx.
func (k *keyed) lock(ctx context.Context, name string) (unlock func(), err error) {
	for {
		k.mu.Lock()
		if k.held == nil {
			k.held = map[string]chan struct{}{}
		}
		released, busy := k.held[name]
		if !busy {
			released = make(chan struct{})
			k.held[name] = released
			k.mu.Unlock()
			return func() {
				k.mu.Lock()
				delete(k.held, name)
				k.mu.Unlock()
				close(released)
			}, nil
		}
		k.mu.Unlock()
		select {
		case <-released:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
