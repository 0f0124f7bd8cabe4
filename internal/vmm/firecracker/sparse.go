package firecracker

import (
	"bytes"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The units of punchZeros, in bytes. A page is what a file system can leave out; shorter stretches than a run are not worth their place in its
// records.
const (
	pageBytes  = 4096
	minRun     = 16 * pageBytes
	chunkBytes = 1 << 20
)

// punchZeros makes holes of what is all zeros in a memory file. Firecracker writes every page of the guest's memory, and many have never been
// used: as holes they take no space, need not be digested or scrubbed, and read the same. A file system without holes keeps the zeros.
func punchZeros(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	zeros := make([]byte, pageBytes)
	chunk := make([]byte, chunkBytes)
	run := int64(-1) // where the current run of zeros began
	end := func(at int64) error {
		from := run
		run = -1
		if from < 0 || at-from < minRun {
			return nil
		}
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, at-from)
	}
	var at int64
	for {
		n, err := io.ReadFull(f, chunk)
		for i := 0; i < n; i += pageBytes {
			page := chunk[i:min(n, i+pageBytes)]
			if bytes.Equal(page, zeros[:len(page)]) {
				if run < 0 {
					run = at + int64(i)
				}
				continue
			}
			if err := end(at + int64(i)); err != nil {
				return ignoreUnsupported(err)
			}
		}
		at += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return ignoreUnsupported(end(at))
		case err != nil:
			return err
		}
	}
}

func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
