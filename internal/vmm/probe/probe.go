// Package probe holds what drivers share in finding out what really works on a host: the facts of the host that a snapshot is tied
// to, a kernel to try KVM with, and a memory for answers that take seconds to find.
package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
)

// Answer is what a driver found out, and what it depends on.
type Answer struct {
	Stamp string           `json:"stamp"`
	Found vmm.Capabilities `json:"found"`
	Why   string           `json:"why,omitempty"` // why nothing works; Found has nothing then
}

// Binary finds a program in PATH and makes its path absolute. install is what to do if it is not there.
func Binary(op, name, install string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", warmboot.Errorf(warmboot.Unavailable, op, "%s was not found; %s", name, install)
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	return path, nil
}

// Stamp changes whenever what was found out about a VMM may have: with the host's boot, the binary, who may use KVM, and whatever else
// the driver names.
func Stamp(op, binary string, more ...any) (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	info, err := os.Stat(binary)
	if err != nil {
		return "", vmm.FileError(op, err)
	}
	device := "no KVM"
	if kvm, err := os.Stat(process.KVMDevice); err == nil {
		device = fmt.Sprint(kvm.Mode(), kvm.Sys().(*syscall.Stat_t).Gid)
	}
	st := info.Sys().(*syscall.Stat_t)
	return fmt.Sprintf("%s %s %d %d %d %q %q", strings.TrimSpace(string(boot)), binary, st.Ino,
		st.Size, st.Ctim.Nano(), device, fmt.Sprint(more...)), nil // the time of the last change is the one that nobody can set
}

// Recall returns the answer that Keep wrote to file, if it has this stamp.
func Recall(file, stamp string) (a Answer, ok bool) {
	text, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(text, &a) != nil || a.Stamp != stamp {
		return Answer{}, false
	}
	return a, true
}

// Keep writes an answer to file. That it cannot costs time at the next start, and nothing else.
func Keep(ctx context.Context, log *slog.Logger, file string, a Answer) {
	text, err := json.MarshalIndent(a, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err == nil {
		err = os.WriteFile(file+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		log.WarnContext(ctx, "what was found out about a VMM could not be written down", "file", file, "error", err)
	}
}
