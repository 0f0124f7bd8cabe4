package probe

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"warmboot/internal/vmm"
)

// Nobody is the user that KVM is tried as when we are root: machines are not run as root either.
var Nobody = vmm.Owner{UID: 65534, GID: 65534}

// Booted is what a kernel prints when it has done all its own work and looks for something to run: it starts an init, or
// has none and gives up.
var Booted = regexp.MustCompile(`Run /\S+ as init process|Kernel panic - not syncing: VFS`)

// NewestKernel is the host's own kernel that was installed last, or "".
func NewestKernel() string {
	kernels, _ := filepath.Glob("/boot/vmlinuz*") // fails on a bad pattern only
	var newest string
	var at time.Time
	for _, k := range kernels {
		if info, err := os.Stat(k); err == nil && info.Mode().IsRegular() && info.ModTime().After(at) {
			newest, at = k, info.ModTime()
		}
	}
	return newest
}

// CopyFile makes a copy that any user may read: a distribution's kernel may be readable by root alone.
func CopyFile(to, from string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if closeErr := dst.Close(); err == nil {
		err = closeErr
	}
	return err
}
