package disk

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// Reads reports whether the Store's VMM can read a disk as it is.
func (s *Store) Reads(d vmm.Disk) bool { return d.Format != vmm.QCOW2 || s.Driver == "qemu" }

// Flatten makes at path a raw disk, of owner, with the content of an overlay that Clone has made of base for another VMM. The overlay
// must be owner's already, and no machine may use it. It stays as it is. There must be nothing at path yet.
//
// A guest that had broken out of its VMM can have written anything into the overlay, the names of other files included. So what it says
// about where its data comes from is not believed, and it is read with owner's rights only.
func (s *Store) Flatten(ctx context.Context, overlay vmm.Disk, base, path string, owner vmm.Owner) (vmm.Disk, error) {
	const op = "convert data disk"
	info, err := os.Stat(base)
	if err != nil {
		return vmm.Disk{}, failure(op, err)
	}
	if err := checkQCOW2(overlay.Path); err != nil {
		return vmm.Disk{}, err
	}
	var undo rollback.Stack
	defer undo.Unwind()
	dst, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return vmm.Disk{}, failure(op, err)
	}
	defer dst.Close()
	undo.Push("create disk", func() error { return os.Remove(path) })
	if err := dst.Truncate(info.Size()); err != nil {
		return vmm.Disk{}, failure(op, err)
	}
	as := func(*exec.Cmd) {}
	if owner.Confined() {
		if err := dst.Chown(int(owner.UID), int(owner.GID)); err != nil {
			return vmm.Disk{}, failure(op, err)
		}
		as = func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.UID, Gid: owner.GID, Groups: owner.Groups()}}
			cmd.Dir = "/"
		}
	}
	file := func(path string) map[string]any { return map[string]any{"driver": "file", "filename": path} }
	source, err := json.Marshal(map[string]any{
		"driver": "qcow2", "file": file(overlay.Path), "backing": map[string]any{"driver": "raw", "file": file(base)},
	})
	if err != nil {
		return vmm.Disk{}, failure(op, err)
	}
	if err := runAs(ctx, as, op, "qemu-utils", "qemu-img", "convert", "-q", "-n", "--target-is-zero", "-O", "raw", "json:"+string(source), path); err != nil {
		return vmm.Disk{}, err
	}
	// It is the only one once its overlay is gone.
	if err := dst.Sync(); err != nil {
		return vmm.Disk{}, failure(op, err)
	}
	undo.Move()
	return vmm.Disk{Path: path, Format: vmm.Raw}, nil
}

// checkQCOW2 refuses a file that is no qcow2 image, or one whose data is in another file, by name. The numbers are from
// https://www.qemu.org/docs/master/interop/qcow2.html.
func checkQCOW2(path string) error {
	const op, magic, externalData = "read data disk", 0x514649fb, 1 << 2
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return failure(op, err)
	}
	defer f.Close()
	var header [80]byte // up to the incompatible features
	switch _, err := io.ReadFull(f, header[:]); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return warmboot.Errorf(warmboot.Corrupt, op, "%s is too short to be a disk", path)
	case err != nil:
		return failure(op, err)
	}
	be := binary.BigEndian
	if be.Uint32(header[:]) != magic || be.Uint32(header[4:]) != 3 {
		return warmboot.Errorf(warmboot.Corrupt, op, "%s is no qcow2 disk of version 3, as QEMU had made it", path)
	}
	if be.Uint64(header[72:])&externalData != 0 {
		return warmboot.Errorf(warmboot.Corrupt, op, "%s has its data in another file, as no disk that we have made", path)
	}
	return nil
}
