package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"warmboot"
)

// The files of an image.
const (
	kernelFile   = "vmlinux"
	initrdFile   = "initrd.img"
	rootfsFile   = "rootfs.ext4"
	manifestFile = "image.json"
)

// guestPath is where the guest agent is on the root disk.
const guestPath = "/usr/sbin/warmboot-guest"

// assemble writes the files of an image, made of a base and the guest agent, into draft.
func (b *build) assemble(ctx context.Context, base, draft string) error {
	// The base's kernel is as immutable as the image's: one copy is enough.
	kernel := filepath.Join(draft, kernelFile)
	if err := os.Link(filepath.Join(base, baseKernel), kernel); err != nil {
		if err := copyFile(kernel, filepath.Join(base, baseKernel)); err != nil {
			return ioError(err)
		}
	}
	if err := writeInitrd(filepath.Join(draft, initrdFile), b.guest, filepath.Join(base, baseModules)); err != nil {
		return ioError(err)
	}
	rootfs := filepath.Join(draft, rootfsFile)
	if err := copyFile(rootfs, filepath.Join(base, baseRootfs)); err != nil {
		return ioError(err)
	}
	if err := addGuest(ctx, rootfs, b.guest); err != nil {
		return err
	}
	m := manifest{
		Format: formatVersion, Recipe: b.recipe, Base: b.baseDigest, Guest: digestOf(b.guest), Suite: b.Suite, Mirror: b.Mirror,
		CreatedAt: time.Now().UTC(), Files: map[string]manifestEntry{},
	}
	for _, name := range []string{kernelFile, initrdFile, rootfsFile} {
		sum, size, err := digestFile(ctx, filepath.Join(draft, name))
		if err != nil {
			return ioError(err)
		}
		m.Files[name] = manifestEntry{Size: size, SHA256: sum}
	}
	return ioError(m.write(filepath.Join(draft, manifestFile)))
}

// addGuest puts the guest agent onto the root disk and cuts the disk to size, without mounting it.
func addGuest(ctx context.Context, rootfs string, guest []byte) (err error) {
	// A name that needs no quoting in debugfs's language.
	dir, err := os.MkdirTemp(filepath.Dir(rootfs), "guest-")
	if err != nil {
		return ioError(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, "agent"), guest, 0o755); err != nil {
		return ioError(err)
	}
	script := strings.Join([]string{
		"write agent " + guestPath,
		"set_inode_field " + guestPath + " mode 0100755",
		"set_inode_field " + guestPath + " uid 0",
		"set_inode_field " + guestPath + " gid 0",
	}, "\n") + "\n"
	said, err := runTool(ctx, dir, strings.NewReader(script), "debugfs", "-w", "-f", "-", rootfs)
	if err != nil {
		return err
	}
	if _, err := runTool(ctx, dir, nil, "resize2fs", "-M", rootfs); err != nil {
		return err
	}
	// debugfs succeeds whatever happens; so ask for what it has written.
	back, err := runTool(ctx, dir, nil, "debugfs", "-R", "cat "+guestPath, rootfs)
	if err != nil {
		return err
	}
	if !bytes.Equal(back, guest) {
		if err := needSpace(dir, 1<<20); err != nil {
			return err
		}
		return warmboot.Errorf(warmboot.Internal, op, "the guest agent could not be written onto the root disk (debugfs said: %.300q); remove the base-* directory beside the images and build again", said)
	}
	return nil
}

// runTool runs a program of e2fsprogs in dir and returns its output. stderr is part of an error, and of the output of a
// program with input.
func runTool(ctx context.Context, dir string, in io.Reader, name string, args ...string) ([]byte, error) {
	path, err := lookTool(name)
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "%s is not installed; run: apt-get install e2fsprogs", name)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = dir, in, &out, &errs
	if in != nil {
		cmd.Stderr = &out
	}
	cmd.Env = append(os.Environ(), "LC_ALL=C", "E2FSPROGS_FAKE_TIME="+sourceDate, "DEBUGFS_PAGER=__none__")
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := needSpace(dir, 1<<20); err != nil {
			return nil, err
		}
		return nil, warmboot.Errorf(warmboot.Internal, op, "%s failed: %w (%.300s)", name, err, strings.TrimSpace(errs.String()+out.String()))
	}
	return out.Bytes(), nil
}

// copyFile copies a file's content, sharing the blocks where the file system can.
func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// digestFile returns a file's SHA-256 in hexadecimal, and its size.
func digestFile(ctx context.Context, path string) (string, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	return digestReader(ctx, f)
}

func digestReader(ctx context.Context, r io.Reader) (string, int64, error) {
	h := sha256.New()
	n, err := io.CopyBuffer(h, readerFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return r.Read(p)
	}), make([]byte, 1<<20))
	return hex.EncodeToString(h.Sum(nil)), n, err
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
