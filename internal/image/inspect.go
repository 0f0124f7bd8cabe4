package image

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"warmboot"
	"warmboot/internal/kernel"
)

// inspectOp names an inspection in errors.
const inspectOp = "inspect runtime image"

// kind is a sort of file that an image has.
type kind struct {
	name     string
	min, max int64 // bytes that are believable
	check    func(ctx context.Context, f io.ReaderAt, size int64) error
}

var (
	kernelKind = kind{"kernel", 64 << 10, kernel.Limit, checkKernel}
	initrdKind = kind{"initrd", 512, 4 << 30, checkInitrd}
	rootfsKind = kind{"root disk", 64 << 10, 1 << 40, checkExt4}
)

// Inspect checks that the files of a runtime image are what they claim to be, whole, and below one of the allowed roots, and returns
// the image with its paths free of symbolic links and with Digest and SizeBytes set. InitrdPath may be empty.
//
// A path outside of the roots is a Denied error, told before anything about the file; everything else that is wrong with
// the files is Invalid. Nothing outside of the roots is ever opened, whatever happens to links meanwhile, and neither is a pipe waited for.
func Inspect(ctx context.Context, img warmboot.Image, allowedRoots []string) (warmboot.Image, error) {
	var sums [3]string
	img.SizeBytes = 0
	for i, f := range []struct {
		kind
		path *string
	}{{kernelKind, &img.KernelPath}, {initrdKind, &img.InitrdPath}, {rootfsKind, &img.RootfsPath}} {
		if *f.path == "" && f.name == initrdKind.name {
			continue
		}
		path, sum, size, err := inspectFile(ctx, f.kind, *f.path, allowedRoots)
		if err != nil {
			return warmboot.Image{}, err
		}
		*f.path, sums[i] = path, sum
		img.SizeBytes += size
	}
	img.Digest = imageDigest(sums[0], sums[1], sums[2])
	return img, nil
}

func inspectFile(ctx context.Context, k kind, path string, roots []string) (resolved, sum string, size int64, err error) {
	invalid := func(format string, args ...any) error {
		e := warmboot.Errorf(warmboot.Invalid, inspectOp, format, args...)
		e.Msg = k.name + " " + path + ": " + e.Msg
		return e
	}
	switch {
	case path == "":
		return "", "", 0, warmboot.Errorf(warmboot.Invalid, inspectOp, "the image has no %s; give its path", k.name)
	case len(path) > 4096 || strings.ContainsRune(path, 0):
		return "", "", 0, warmboot.Errorf(warmboot.Invalid, inspectOp, "the path of the %s is not one that a file can have", k.name)
	case !filepath.IsAbs(path):
		return "", "", 0, invalid("the path must be absolute")
	}
	file, resolved, err := openBelow(roots, filepath.Clean(path))
	switch {
	case errors.Is(err, errOutside):
		return "", "", 0, warmboot.Errorf(warmboot.Denied, inspectOp, "%s %s is outside of the directories for runtime images; move it below one of: %s", k.name, path, strings.Join(roots, ", "))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return "", "", 0, invalid("there is no such file; check the path, or make an image with `warmboot image build`")
	case errors.Is(err, fs.ErrPermission):
		return "", "", 0, invalid("warmboot may not read it; check the permissions of the file and its directories")
	case err != nil:
		return "", "", 0, invalid("it cannot be opened: %w", errors.Unwrap(err))
	}
	defer file.Close()
	st, err := file.Stat()
	switch {
	case err != nil:
		return "", "", 0, invalid("it cannot be examined: %w", err)
	case !st.Mode().IsRegular():
		return "", "", 0, invalid("it is not a regular file; name the file itself, not a directory, pipe, socket or device")
	case st.Mode().Perm()&0o002 != 0:
		return "", "", 0, invalid("every user of this host may change it while machines run from it; run: chmod o-w on it")
	case st.Size() == 0:
		return "", "", 0, invalid("it is empty; copy it again")
	case st.Size() > k.max:
		return "", "", 0, invalid("with %d bytes it is larger than a %s can be", st.Size(), k.name)
	}
	if err := k.check(ctx, file, st.Size()); err != nil {
		if ctx.Err() != nil {
			return "", "", 0, interrupted(ctx)
		}
		return "", "", 0, invalid("%w", err)
	}
	if st.Size() < k.min {
		return "", "", 0, invalid("with %d bytes it is smaller than a %s can be; it is probably truncated, copy it again", st.Size(), k.name)
	}
	sum, n, err := digestReader(ctx, io.NewSectionReader(file, 0, st.Size()))
	switch {
	case ctx.Err() != nil:
		return "", "", 0, interrupted(ctx)
	case err != nil:
		return "", "", 0, invalid("it cannot be read to its end: %w", err)
	case n != st.Size():
		return "", "", 0, invalid("it became smaller while it was read; leave an image's files alone")
	}
	return resolved, sum, n, nil
}

// interrupted is the error of an inspection whose caller went away.
func interrupted(ctx context.Context) error {
	return &warmboot.Error{Code: warmboot.CodeOf(ctx.Err()), Op: inspectOp, Err: context.Cause(ctx)}
}

// errOutside says that a path does not lead to a place below an allowed root.
var errOutside = errors.New("outside of the allowed roots")

// openBelow opens the file that path leads to, if that is below one of the roots, and returns it with its path free of
// symbolic links. A path that does not even look so is not touched at all.
func openBelow(roots []string, path string) (*os.File, string, error) {
	var real []string
	below := false
	for _, root := range roots {
		r, err := filepath.EvalSymlinks(root)
		if err != nil {
			continue // an allowed directory that does not exist holds nothing
		}
		real = append(real, r)
		below = below || isBelow(filepath.Clean(root), path) || isBelow(r, path)
	}
	if !below {
		return nil, "", errOutside
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, "", err
	}
	for _, r := range real {
		if !isBelow(r, resolved) {
			continue
		}
		root, err := os.OpenRoot(r)
		if err != nil {
			return nil, "", err
		}
		defer func() { _ = root.Close() }() // it was only read
		name, err := filepath.Rel(r, resolved)
		if err != nil {
			return nil, "", err
		}
		// The path may have been swapped for a link since: the root does not let it lead out, and O_NONBLOCK not wait for a pipe's writer.
		f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		return f, resolved, err
	}
	return nil, "", errOutside
}

// isBelow reports whether the clean path lies in the tree of the clean directory dir.
func isBelow(dir, path string) bool {
	return path != dir && (dir == "/" || strings.HasPrefix(path, dir+"/"))
}
