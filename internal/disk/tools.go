package disk

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"

	"warmboot"
)

// mkfs makes draft an empty ext4 file system of size bytes.
//
// Discarding (a hole, in a sparse file) proves to mkfs that the inode tables are zero, so they need neither be written
// now nor by a kernel thread in the guest after the first mount, where it would fill the disk and cost time. The
// journal is small because every block of it ends up in the file.
func mkfs(ctx context.Context, draft string, size int64) error {
	if err := os.Truncate(draft, size); err != nil {
		return failure("make data disk", err)
	}
	args := []string{"-q", "-F", "-m", "0", "-L", "warmboot-data", "-E", "discard,lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0"}
	if size >= 1<<30 {
		args = append(args, "-J", "size=32")
	}
	return run(ctx, "make data disk", "e2fsprogs", "mkfs.ext4", append(args, draft)...)
}

// makeOverlay makes draft an empty qcow2 overlay of the raw disk base. The backing format is stated: it must never be
// guessed from bytes that a guest has written.
func makeOverlay(ctx context.Context, base, draft string) error {
	return run(ctx, "clone data disk", "qemu-utils", "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, draft)
}

// run runs a program that comes with a Debian package.
func run(ctx context.Context, op, pkg, program string, args ...string) error {
	return runAs(ctx, func(*exec.Cmd) {}, op, pkg, program, args...)
}

// runAs is run by somebody else.
func runAs(ctx context.Context, as func(*exec.Cmd), op, pkg, program string, args ...string) error {
	path, err := lookPath(program)
	if err != nil {
		return warmboot.Errorf(warmboot.Unavailable, op, "%s was not found; install it with `apt-get install %s`", program, pkg)
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "LC_ALL=C") // so that the text below can be recognized
	as(cmd)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%s was stopped: %w", program, ctx.Err())
		}
		text := strings.TrimSpace(out.String())
		if strings.Contains(text, "No space left on device") || strings.Contains(text, "Disk quota exceeded") {
			return warmboot.Errorf(warmboot.Exhausted, op, "the disk is full (%s said %q); free space on the storage root, for instance by deleting stopped containers and unused snapshots, and try again", program, text)
		}
		return warmboot.Errorf(warmboot.Internal, op, "%s failed: %w: %s", program, err, text)
	}
	return nil
}

// lookPath finds a program in PATH, or where Debian has those of the administrator: a user's PATH leaves that out.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if path, sbinErr := exec.LookPath(dir + program); sbinErr == nil {
			return path, nil
		}
	}
	return "", err
}
