package snapshot

import (
	"os"
	"sync"
	"syscall"

	"warmboot"
)

// Verifier finds damage to artifacts before a machine is restored from one. Digesting a memory file takes most of a
// second, a warm boot a third of one; so a file is digested once and after that only looked at: as long as its inode, size and times of
// modification and change are the same, nobody has written to it. It is safe for concurrent use.
//
// What this cannot see is a disk that silently gives back other bytes than were written; scrubbing reads everything again.
type Verifier struct {
	mu    sync.Mutex
	known map[string]*checked
}

type checked struct {
	mu    sync.Mutex // held while the file is being digested, so that many restores at once read it once
	stamp stamp
	file  File
}

// stamp changes whenever a file's content can have changed.
type stamp struct {
	dev, ino     uint64
	size         int64
	mtime, ctime syscall.Timespec
}

// NewVerifier returns a Verifier that has seen nothing yet.
func NewVerifier() *Verifier { return &Verifier{known: map[string]*checked{}} }

// Verify checks every file of the artifact against its metadata. A difference is a Corrupt error that names the file.
func (v *Verifier) Verify(a *Artifact) error {
	for _, name := range []string{StateFile, DataFile, MemoryFile} {
		if err := v.verify(a.File(name), a.Metadata.Files[name]); err != nil {
			return err
		}
	}
	return nil
}

// Forget drops what is known of an artifact that is gone.
func (v *Verifier) Forget(a *Artifact) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, name := range []string{StateFile, DataFile, MemoryFile} {
		delete(v.known, a.File(name))
	}
}

func (v *Verifier) verify(path string, want File) error {
	const op = "verify snapshot"
	now, err := stampOf(path)
	if err != nil {
		return &warmboot.Error{Code: warmboot.Corrupt, Op: op, Msg: "a file of the snapshot is missing or unreadable", Err: err}
	}
	if now.size != want.Size {
		return warmboot.Errorf(warmboot.Corrupt, op, "%s has %d bytes, %d were written: it was truncated or replaced", path, now.size, want.Size)
	}
	v.mu.Lock()
	c := v.known[path]
	if c == nil {
		c = &checked{}
		v.known[path] = c
	}
	v.mu.Unlock()

	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stamp == now && c.file == want {
		return nil
	}
	got, err := digest(path)
	if err != nil {
		return &warmboot.Error{Code: warmboot.Corrupt, Op: op, Err: err}
	}
	if got != want {
		return warmboot.Errorf(warmboot.Corrupt, op, "%s is not what was written: its digest is %s, it must be %s", path, got.Digest, want.Digest)
	}
	c.stamp, c.file = now, want
	return nil
}

func stampOf(path string) (stamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return stamp{dev: st.Dev, ino: st.Ino, size: st.Size, mtime: st.Mtim, ctime: st.Ctim}, nil
}
