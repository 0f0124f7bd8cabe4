// Package snapshot is a runtime snapshot on disk: which files it has, how they come to be there whole or not at all, what
// they must match before they may be restored, and how damage to them is found.
//
// An artifact is the directory ROOT/runtime-snapshots/IMAGE-ID/SNAPSHOT-ID. It is written under another name beside its
// place, flushed, and renamed; a crash at any point leaves the whole artifact or none. Its files never change afterwards:
// running machines map the memory file and lay their disks over the data disk.
package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"warmboot"
	"warmboot/internal/durable"
)

// The files of an artifact.
const (
	MemoryFile   = "snapshot.mem"   // guest memory, exactly as large as the guest's
	StateFile    = "snapshot.state" // device state
	RootFile     = "rootfs.ext4"    // link to the runtime image's root disk
	DataFile     = "data.ext4"      // the writable disk at the instant of the pause
	MetadataFile = "metadata.json"
)

// FetchFile is in a draft that is being fetched from another host: how far that has come. Such a draft outlives a crash.
const FetchFile = "fetch.json"

// DataFiles are the files of an artifact that metadata.json lists.
func DataFiles() []string { return []string{MemoryFile, StateFile, DataFile} }

// FormatVersion is that of artifacts: of metadata.json, and of whose the files are and with which modes. A reader refuses any other, and hosts of another
// are of another platform.
const FormatVersion = 2

// MetadataLimit is far above what metadata.json can need, in bytes; a larger file is not ours.
const MetadataLimit = 64 << 10

// draftPrefix marks a directory that is still being written.
const draftPrefix = ".draft-"

// Metadata is metadata.json.
type Metadata struct {
	Format          int             `json:"format"`
	ID              warmboot.ID     `json:"id"`
	RuntimeImageID  warmboot.ID     `json:"runtime_image_id"`
	CreatedAt       time.Time       `json:"created_at"`
	Fingerprint     Fingerprint     `json:"fingerprint"`
	Boot            Boot            `json:"boot"`
	Files           map[string]File `json:"files"`
	DockerVersion   string          `json:"docker_version"`
	ColdBootSeconds float64         `json:"cold_boot_seconds"` // VMM start to Docker answering
	PauseSeconds    float64         `json:"pause_seconds"`     // pause to resumable artifact
}

// Boot is how the frozen machine was booted; its VMM wants the same again.
type Boot struct {
	Kernel     string   `json:"kernel"`
	Initrd     string   `json:"initrd,omitempty"`
	KernelArgs []string `json:"kernel_args,omitempty"`
}

// File is what one file of the artifact must be.
type File struct {
	Size   int64  `json:"size"`   // bytes
	Digest string `json:"digest"` // of the content, hexadecimal; see digest
}

// Dir is the place of an artifact below the storage root.
func Dir(root string, image, id warmboot.ID) string {
	return filepath.Join(root, "runtime-snapshots", string(image), string(id))
}

// Draft is an artifact that is being written.
type Draft struct {
	Path string // where the files go for now
	dir  string // where they will be
}

// NewDraft makes the directory for a new artifact. Only group may pass through it to the files.
func NewDraft(root string, image, id warmboot.ID, group int) (*Draft, error) {
	dir := Dir(root, image, id)
	parent := filepath.Dir(dir)
	d := &Draft{Path: filepath.Join(parent, draftPrefix+string(id)), dir: dir}
	// A draft of the same id can only be what a crash left: ids are never used twice.
	if err := os.RemoveAll(d.Path); err != nil {
		return nil, ioError("clear snapshot draft", err)
	}
	return d, d.make(group)
}

// ResumeDraft is NewDraft, but goes on with what an earlier fetch of the same artifact has left.
func ResumeDraft(root string, image, id warmboot.ID, group int) (*Draft, error) {
	dir := Dir(root, image, id)
	d := &Draft{Path: filepath.Join(filepath.Dir(dir), draftPrefix+string(id)), dir: dir}
	if _, err := os.Stat(d.File(FetchFile)); err == nil {
		return d, nil
	}
	return NewDraft(root, image, id, group)
}

// make makes the draft's directory.
func (d *Draft) make(group int) error {
	parent := filepath.Dir(d.dir)
	for _, p := range []string{filepath.Dir(parent), parent} {
		if err := os.MkdirAll(p, 0o711); err != nil {
			return ioError("make snapshot directory", err)
		}
	}
	if err := os.Mkdir(d.Path, 0o710); err != nil {
		return ioError("make snapshot directory", err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(d.Path, 0, group); err != nil {
			return errors.Join(ioError("make snapshot directory", err), d.Discard())
		}
	}
	return nil
}

// File is the path of one of the draft's files.
func (d *Draft) File(name string) string { return filepath.Join(d.Path, name) }

// Discard removes a draft that was not committed. After Commit it does nothing.
func (d *Draft) Discard() error { return os.RemoveAll(d.Path) }

// Access is what VMMs, which run as other users than we do, may do with an artifact's files.
type Access struct {
	Group int // may come to them by their paths; who is given them otherwise, as jails are, may read them whoever it is
	// WritableMemory also lets the group write to the memory file, for VMMs that cannot map a file privately unless
	// they could write to it (see docs/adr/0004-memory-file-access.md). A write would be found by Verifier.
	WritableMemory bool
}

// Commit completes m with the digests of the files, makes them read-only and durable, and moves the artifact to its
// place. The machine that wrote the files must be gone.
func (d *Draft) Commit(m Metadata, access Access) (*Artifact, error) {
	const op = "write snapshot"
	m.Format = FormatVersion
	var err error
	if m.Files, err = d.seal(access); err != nil {
		return nil, ioError(op, err)
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, ioError(op, err)
	}
	return d.publish(m, append(text, '\n'))
}

// CommitFetched is Commit for an artifact that another host has made: metadata is its metadata.json, to the letter. Files that are not what
// it says are a Corrupt error.
func (d *Draft) CommitFetched(metadata []byte, access Access) (*Artifact, error) {
	const op = "write fetched snapshot"
	m, err := ParseMetadata(metadata)
	if err != nil {
		return nil, err
	}
	files, err := d.seal(access)
	if err != nil {
		return nil, ioError(op, err)
	}
	for name, f := range files {
		if f != m.Files[name] {
			return nil, warmboot.Errorf(warmboot.Corrupt, op, "%s is not what was written: its digest is %s, it must be %s", name, f.Digest, m.Files[name].Digest)
		}
	}
	if err := os.Remove(d.File(FetchFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, ioError(op, err)
	}
	return d.publish(m, metadata)
}

// seal gives the files their final owners and modes and digests them.
func (d *Draft) seal(access Access) (map[string]File, error) {
	files := map[string]File{}
	for _, name := range DataFiles() {
		mode := os.FileMode(0o444)
		if name == MemoryFile && access.WritableMemory {
			mode = 0o664
		}
		f, err := seal(d.File(name), access.Group, mode)
		if err != nil {
			return nil, err
		}
		files[name] = f
	}
	return files, nil
}

// publish writes the metadata, makes everything durable, and moves the artifact to its place.
func (d *Draft) publish(m Metadata, text []byte) (*Artifact, error) {
	const op = "write snapshot"
	if err := os.WriteFile(d.File(MetadataFile), text, 0o444); err != nil {
		return nil, ioError(op, err)
	}
	// Whatever else lies in the draft (the clone template of the data disk) must be as durable as the rest.
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return nil, ioError(op, err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			if err := durable.Flush(d.File(e.Name())); err != nil {
				return nil, ioError(op, err)
			}
		}
	}
	if err := durable.Flush(d.Path); err != nil {
		return nil, ioError(op, err)
	}
	if err := os.Rename(d.Path, d.dir); err != nil {
		return nil, ioError(op, err)
	}
	if err := durable.Flush(filepath.Dir(d.dir)); err != nil {
		return nil, ioError(op, err)
	}
	return &Artifact{Path: d.dir, Metadata: m}, nil
}

// seal gives a file its final owner and mode and digests it.
func seal(path string, group int, mode os.FileMode) (File, error) {
	if os.Geteuid() == 0 {
		if err := os.Chown(path, 0, group); err != nil {
			return File{}, err
		}
	}
	if err := os.Chmod(path, mode); err != nil {
		return File{}, err
	}
	return digest(path)
}

// Artifact is a snapshot that is whole on disk.
type Artifact struct {
	Path     string
	Metadata Metadata
}

// Open reads an artifact's metadata. It does not look at the other files; Verifier does. A directory that is not there is
// NotFound, metadata that cannot be understood Corrupt.
func Open(path string) (*Artifact, error) {
	const op = "open snapshot"
	f, err := os.Open(filepath.Join(path, MetadataFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, warmboot.Errorf(warmboot.NotFound, op, "there is no snapshot at %s", path)
	}
	if err != nil {
		return nil, ioError(op, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, MetadataLimit+1))
	if err != nil {
		return nil, ioError(op, err)
	}
	if len(text) > MetadataLimit {
		return nil, warmboot.Errorf(warmboot.Corrupt, op, "%s is larger than %d bytes", f.Name(), MetadataLimit)
	}
	m, err := ParseMetadata(text)
	if err != nil {
		return nil, warmboot.Errorf(warmboot.CodeOf(err), op, "%s: %w", path, err)
	}
	return &Artifact{Path: path, Metadata: m}, nil
}

// ParseMetadata reads metadata.json. What cannot be understood is Corrupt, another format Incompatible.
func ParseMetadata(text []byte) (Metadata, error) {
	const op = "read " + MetadataFile
	var m Metadata
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return m, warmboot.Errorf(warmboot.Corrupt, op, "it cannot be read: %w", err)
	}
	if m.Format != FormatVersion {
		return m, warmboot.Errorf(warmboot.Incompatible, op, "it has format %d, this warmboot reads %d", m.Format, FormatVersion)
	}
	for _, name := range DataFiles() {
		if _, ok := m.Files[name]; !ok {
			return m, warmboot.Errorf(warmboot.Corrupt, op, "it does not list %s", name)
		}
	}
	return m, nil
}

// File is the path of one of the artifact's files.
func (a *Artifact) File(name string) string { return filepath.Join(a.Path, name) }

// DiskBytes is the space that the artifact occupies on disk, links to the runtime image not counted.
func (a *Artifact) DiskBytes() (int64, error) {
	var n int64
	entries, err := os.ReadDir(a.Path)
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			return 0, err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode().IsRegular() && e.Name() != RootFile {
			n += st.Blocks * 512
		}
	}
	return n, nil
}

// RemoveDrafts removes what builds that a crash ended have left below the storage root, except those that are in use.
func RemoveDrafts(root string, inUse func(path string) bool) error {
	drafts, err := filepath.Glob(filepath.Join(root, "runtime-snapshots", "*", draftPrefix+"*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range drafts {
		if !inUse(d) {
			errs = append(errs, os.RemoveAll(d))
		}
	}
	return errors.Join(errs...)
}

// DraftOf tells whether the name of a directory is that of an artifact that is being written or removed, and gives the artifact's own.
func DraftOf(name string) (string, bool) { return strings.CutPrefix(name, draftPrefix) }

// Remove deletes an artifact. It first leaves its place, so that a crash in the middle leaves no half artifact there.
func Remove(path string) error {
	gone := filepath.Join(filepath.Dir(path), draftPrefix+strings.TrimPrefix(filepath.Base(path), draftPrefix))
	if err := os.Rename(path, gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return ioError("remove snapshot", err)
	}
	if err := os.RemoveAll(gone); err != nil {
		return ioError("remove snapshot", err)
	}
	return nil
}

// ioError says what the operating system said, and what to do where that is known.
func ioError(op string, err error) error {
	switch {
	case durable.Full(err):
		return &warmboot.Error{Code: warmboot.Exhausted, Op: op, Msg: "the disk is full; free space under the storage root and try again", Err: err}
	case err == nil:
		return nil
	}
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: fmt.Errorf("%w", err)}
}
