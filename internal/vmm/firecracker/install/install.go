// Package install gets Firecracker: one release, pinned by its digest, from where its makers publish it, onto this machine. Nothing of
// Firecracker is part of this project.
//
// A release is in a directory of its own that appears under its name when it is whole. The download that leads to it survives this
// process: the next one goes on where it ended, and what comes out is read as a whole before anything is done with it.
package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	"warmboot"
	"warmboot/internal/durable"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm/firecracker"
)

// Version is the release that is installed: the newest that our suites have run with and that has no known fault. The first two releases of 1.16
// lose the guest's channel after a restore or a pause (https://github.com/firecracker-microvm/firecracker/issues/5969 and /6074).
const Version = "v1.15.1"

// Dir is where releases are installed. It is root's, like the programs beside it, and no part of the storage root: that is data, which may be
// deleted, lie on a disk that allows no programs, and be another one for each server of a machine.
const Dir = "/usr/local/lib/warmboot/firecracker"

// The archive that is published, and its digest as its makers publish it beside it (…tgz.sha256.txt). TestThePublishedDigest asks them. Without a
// network there are others who have taken it from there: https://github.com/bencherdev/bencher, plus/bencher_runner/build.rs, and see ADR 23.
const (
	archiveURL    = "https://github.com/firecracker-microvm/firecracker/releases/download/" + Version + "/firecracker-" + Version + "-x86_64.tgz"
	archiveSHA256 = "d4a32ab2322d887ca1bc4a4e7afa9cc35393e6362dfc2b3becb389d362e4275a"
)

// What is far more than a release has.
const (
	archiveLimit = 64 << 20  // bytes
	memberLimit  = 64 << 20  // bytes
	totalLimit   = 512 << 20 // bytes, unpacked
)

// program is one of the two that are taken out of the archive.
type program struct{ name, member string }

var programs = []program{
	{"firecracker", "release-" + Version + "-x86_64/firecracker-" + Version + "-x86_64"},
	{"jailer", "release-" + Version + "-x86_64/jailer-" + Version + "-x86_64"},
}

// Binaries are where Firecracker may be installed below dir, the best first: this release, and then those that an earlier warmboot has
// installed, the newest first. Its jailer is beside each.
func Binaries(dir string) []string {
	path := func(version string) string { return filepath.Join(dir, version, programs[0].name) }
	all := []string{path(Version)}
	entries, _ := os.ReadDir(dir) // nothing is installed where there is none
	var others []firecracker.Release
	names := map[firecracker.Release]string{}
	for _, e := range entries {
		if r, err := firecracker.ParseRelease(e.Name()); err == nil && e.Name() != Version {
			others, names[r] = append(others, r), e.Name()
		}
	}
	slices.SortFunc(others, func(a, b firecracker.Release) int { return b.Compare(a) })
	for _, r := range others {
		all = append(all, path(names[r]))
	}
	return all
}

// Config is what Install needs. Every field may be zero.
type Config struct {
	Dir string // Dir
	// URL and SHA256 are the archive's.
	URL, SHA256 string
	Client      *http.Client
	// Progress is told how many bytes of how many are there, the second 0 if that is not known. It is called often.
	Progress func(done, total int64)
	// Stall is how long a server may send nothing: 30 s.
	Stall time.Duration
	// Retry is how long to wait before a download that broke off goes on: 1 s.
	Retry time.Duration
}

const op = "install Firecracker"

// Install puts the release below Dir and returns Firecracker's path. already tells that it was there, whole. Installations wait for one
// another. Without a way to the archive it is an Unavailable error that says how to do it by hand; an archive that is not the one that was
// published is Corrupt, and leaves nothing.
func Install(ctx context.Context, c Config) (binary string, already bool, err error) {
	c = c.withDefaults()
	if runtime.GOARCH != "amd64" {
		return "", false, warmboot.Errorf(warmboot.Unavailable, op, "warmboot drives Firecracker on x86-64 only, and this is %s", runtime.GOARCH)
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", false, failure(err)
	}
	unlock, err := lock(ctx, filepath.Join(c.Dir, ".lock"))
	if err != nil {
		return "", false, err
	}
	defer unlock()
	dir := filepath.Join(c.Dir, Version)
	binary = filepath.Join(dir, programs[0].name)
	if whole(dir) {
		return binary, true, nil
	}
	archive := filepath.Join(c.Dir, ".firecracker-"+Version+".tgz.part")
	if err := c.download(ctx, archive); err != nil {
		return "", false, err
	}
	if err := unpack(ctx, archive, dir); err != nil {
		return "", false, err
	}
	return binary, false, failure(os.Remove(archive))
}

func (c Config) withDefaults() Config {
	if c.Dir == "" {
		c.Dir = Dir
	}
	if c.URL == "" {
		c.URL, c.SHA256 = archiveURL, archiveSHA256
	}
	if c.Client == nil {
		c.Client = http.DefaultClient
	}
	if c.Progress == nil {
		c.Progress = func(int64, int64) {}
	}
	if c.Stall == 0 {
		c.Stall = 30 * time.Second
	}
	if c.Retry == 0 {
		c.Retry = time.Second
	}
	return c
}

// ByHand is how a machine without a network gets it.
func ByHand() string {
	return fmt.Sprintf("by hand: get %s elsewhere, check that its SHA-256 is %s, unpack it here, and name the binary: FIRECRACKER=…/%s, JAILER=…/%s", archiveURL, archiveSHA256,
		filepath.Base(programs[0].member), filepath.Base(programs[1].member))
}

// sumsFile in a release's directory has the digests of its programs as they were when it was installed, in sha256sum's format.
const sumsFile = "SHA256SUMS"

// whole reports whether a release is installed as Install left it.
func whole(dir string) bool {
	want, err := os.ReadFile(filepath.Join(dir, sumsFile))
	if err != nil {
		return false
	}
	have, err := sums(dir)
	return err == nil && bytes.Equal(have, want)
}

func sums(dir string) ([]byte, error) {
	var text bytes.Buffer
	for _, p := range programs {
		sum, err := digest(filepath.Join(dir, p.name))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&text, "%s  %s\n", sum, p.name)
	}
	return text.Bytes(), nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), err
}

// unpack makes dir out of an archive that has been checked. Something at dir that is not whole is replaced.
func unpack(ctx context.Context, archive, dir string) (err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, failure(undo.Unwind())) }()
	draft := filepath.Join(filepath.Dir(dir), ".draft")
	if err := errors.Join(os.RemoveAll(draft), os.Mkdir(draft, 0o755)); err != nil {
		return failure(err)
	}
	undo.Push("make draft", func() error { return os.RemoveAll(draft) })
	if err := extract(ctx, archive, draft); err != nil {
		return err
	}
	text, err := sums(draft)
	if err != nil {
		return failure(err)
	}
	if err := writeFile(filepath.Join(draft, sumsFile), 0o644, bytes.NewReader(text)); err != nil {
		return failure(err)
	}
	// Whoever runs one of the old programs keeps it until it ends.
	if err := errors.Join(durable.Flush(draft), os.RemoveAll(dir), os.Rename(draft, dir), durable.Flush(filepath.Dir(dir))); err != nil {
		return failure(err)
	}
	undo.Move()
	return nil
}

// writeFile makes a file that is on the disk when it returns.
func writeFile(path string, mode os.FileMode, from io.Reader) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()) // whatever the umask is
}

// lock waits for the others.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, failure(err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close() }, nil
		case !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR):
			f.Close()
			return nil, failure(err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			f.Close()
			return nil, warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "another installation goes on: %w", ctx.Err())
		}
	}
}

// failure says what the operating system said, and what to do where that is known. It is nil for nil.
func failure(err error) error {
	var ours *warmboot.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return err
	case durable.Full(err):
		return &warmboot.Error{Code: warmboot.Exhausted, Op: op, Msg: "the disk is full; free some 100 MiB where it is to be, and try again", Err: err}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		return &warmboot.Error{Code: warmboot.Denied, Op: op, Msg: "run it as root, as with sudo", Err: err}
	}
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}
