package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// digestBlock is the unit in which digest tells zeros from content, in bytes.
const digestBlock = 64 << 10

// DigestOf is the SHA-256 of a metadata.json, in hexadecimal.
func DigestOf(metadata []byte) string {
	sum := sha256.Sum256(metadata)
	return hex.EncodeToString(sum[:])
}

// digest reads a file and computes its size and digest. Memory files and disks are mostly holes (8 GiB of a disk, of which a few MB
// were ever written), and a plain SHA-256 would have to hash all those zeros. So it is SHA-256 over the blocks of 64 KiB
// that are not all zero, in order, each after its number as 8 bytes, big-endian; then the file's size in the same form. Two
// files have the same digest if, and only if, they have the same bytes, however sparse each is.
func digest(path string) (File, error) {
	return digestAt(path, func(int) error { return nil })
}

// digestAt is digest; it calls pace with the number of bytes after each piece that it has read.
func digestAt(path string, pace func(n int) error) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	size := info.Size()
	h := sha256.New()
	number := func(n int64) { h.Write(binary.BigEndian.AppendUint64(nil, uint64(n))) }
	block, zeros := make([]byte, digestBlock), make([]byte, digestBlock)
	for at := int64(0); at < size; {
		data, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // holes up to the end
		}
		if err != nil {
			data = at // a file system that cannot tell its holes
		}
		at = data - data%digestBlock
		n, err := f.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return File{}, err
		}
		if err := pace(n); err != nil {
			return File{}, err
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			number(at / digestBlock)
			h.Write(block[:n])
		}
		at += digestBlock
	}
	number(size)
	return File{Size: size, Digest: hex.EncodeToString(h.Sum(nil))}, nil
}
