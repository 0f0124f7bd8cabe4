package install

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"

	"warmboot"
)

// extract takes the programs out of an archive, and nothing else. Though the archive is known by its digest, nothing in it is
// believed: names are compared, never used, and sizes are limited.
func extract(ctx context.Context, archive, dir string) error {
	corrupt := func(format string, args ...any) error {
		return warmboot.Errorf(warmboot.Corrupt, op, "the archive is not what a release is: "+format, args...)
	}
	f, err := os.Open(archive)
	if err != nil {
		return failure(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		return corrupt("%w", err)
	}
	unpacked := &limited{r: packed, left: totalLimit, ctx: ctx}
	r := tar.NewReader(unpacked)
	missing := slices.Clone(programs)
	for len(missing) > 0 {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			return corrupt("it has no %s", missing[0].member)
		case ctx.Err() != nil:
			return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%w", ctx.Err())
		case err != nil:
			return corrupt("%w", err)
		}
		at := slices.IndexFunc(missing, func(p program) bool { return p.member == h.Name })
		if at < 0 {
			continue
		}
		switch {
		case h.Typeflag != tar.TypeReg:
			return corrupt("%s in it is no regular file", h.Name)
		case h.Size == 0 || h.Size > memberLimit:
			return corrupt("%s in it has %d bytes", h.Name, h.Size)
		}
		if err := writeFile(filepath.Join(dir, missing[at].name), 0o755, r); err != nil {
			switch {
			case ctx.Err() != nil:
				return warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%w", ctx.Err())
			case unpacked.failed != nil, errors.Is(err, io.ErrUnexpectedEOF):
				return corrupt("%w", err)
			}
			return failure(err)
		}
		missing = slices.Delete(missing, at, at+1)
	}
	return nil
}

var errTooLarge = errors.New("it unpacks to more than a release has")

// limited reads up to so many bytes, until its context ends.
type limited struct {
	r    io.Reader
	left int64
	ctx  context.Context

	failed error
}

func (l *limited) Read(p []byte) (int, error) {
	switch {
	case l.ctx.Err() != nil:
		return 0, l.ctx.Err()
	case l.left <= 0:
		l.failed = errTooLarge
		return 0, errTooLarge
	}
	n, err := l.r.Read(p[:min(int64(len(p)), l.left)])
	l.left -= int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		l.failed = err
	}
	return n, err
}
