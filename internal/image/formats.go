package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"

	"warmboot/internal/kernel"
)

// truncated is the error of a file that ends before its content does.
func truncated(size, want int64) error {
	return fmt.Errorf("it is truncated: it has %d bytes, its header promises %d; copy it again", size, want)
}

// checkKernel accepts a whole bzImage or ELF kernel for x86-64.
func checkKernel(_ context.Context, f io.ReaderAt, size int64) error {
	if b, ok := kernel.ParseBzImage(f); ok {
		if size < b.Size {
			return truncated(size, b.Size)
		}
		return nil
	}
	magic := make([]byte, 4)
	if _, err := f.ReadAt(magic, 0); err != nil || string(magic) != "\x7fELF" {
		return errors.New("it is not a kernel: neither a bzImage nor an ELF file; use vmlinuz or vmlinux")
	}
	end, err := kernel.ELFEnd(io.NewSectionReader(f, 0, size))
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("it is truncated: the tables of its ELF header lie beyond its end; copy it again")
	case err != nil:
		return fmt.Errorf("it is not a kernel: %w", err)
	case size < end:
		return truncated(size, end)
	}
	return nil
}

// checkInitrd accepts what the kernel does: a cpio archive, or the beginning of a compressed one.
func checkInitrd(ctx context.Context, f io.ReaderAt, size int64) error {
	head := make([]byte, 8)
	if n, err := f.ReadAt(head, 0); err != nil && err != io.EOF || n < 6 {
		return errors.New("it is too short for an initrd; copy it again")
	}
	if isNewc(head) {
		return checkNewc(ctx, f, size)
	}
	if kernel.Compression(head) == "" {
		return errors.New("it is not an initrd: neither a cpio archive nor compressed in a way that a kernel knows")
	}
	return nil
}

func isNewc(b []byte) bool {
	return len(b) >= 6 && (string(b[:6]) == "070701" || string(b[:6]) == "070702")
}

// checkNewc walks the archive up to its last entry. More may follow it: microcode comes before a compressed archive.
func checkNewc(ctx context.Context, f io.ReaderAt, size int64) error {
	const headerSize, maxEntries = 110, 1 << 20
	header := make([]byte, headerSize)
	var at int64
	for range maxEntries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if at+headerSize > size {
			return truncated(size, at+headerSize)
		}
		if _, err := f.ReadAt(header, at); err != nil {
			return err
		}
		if !isNewc(header) {
			return fmt.Errorf("it is damaged: there is no cpio entry at byte %d; copy it again", at)
		}
		data, err1 := strconv.ParseUint(string(header[54:62]), 16, 32)
		name, err2 := strconv.ParseUint(string(header[94:102]), 16, 32)
		if err1 != nil || err2 != nil || name == 0 || name > 4096 {
			return fmt.Errorf("it is damaged: the cpio entry at byte %d makes no sense; copy it again", at)
		}
		text := make([]byte, name)
		if at+headerSize+int64(name) > size {
			return truncated(size, at+headerSize+int64(name))
		}
		if _, err := f.ReadAt(text, at+headerSize); err != nil {
			return err
		}
		if string(text) == "TRAILER!!!\x00" {
			return nil
		}
		at = align4(align4(at+headerSize+int64(name)) + int64(data))
	}
	return fmt.Errorf("it has more than %d files", maxEntries)
}

func align4(n int64) int64 { return (n + 3) &^ 3 }

// checkExt4 accepts a file system of the ext family that needs no repair and is all there.
func checkExt4(_ context.Context, f io.ReaderAt, size int64) error {
	const at, length = 1024, 0x154
	sb := make([]byte, length)
	_, err := f.ReadAt(sb, at)
	if err != nil || binary.LittleEndian.Uint16(sb[0x38:]) != 0xef53 {
		return errors.New("it is not an ext4 file system; make one with mkfs.ext4 on the file itself, without a partition table")
	}
	blocks := int64(binary.LittleEndian.Uint32(sb[0x4:]))
	logSize, incompat := binary.LittleEndian.Uint32(sb[0x18:]), binary.LittleEndian.Uint32(sb[0x60:])
	const needsRecovery, wide = 0x4, 0x80
	if incompat&wide != 0 {
		blocks |= int64(binary.LittleEndian.Uint32(sb[0x150:])) << 32
	}
	if logSize > 6 || blocks <= 0 || blocks > 1<<40 {
		return errors.New("its ext4 superblock makes no sense; check it with e2fsck -fn")
	}
	if want := blocks << (10 + logSize); size < want {
		return truncated(size, want)
	}
	if incompat&needsRecovery != 0 {
		return errors.New("its ext4 journal was not written back, so it cannot be mounted read-only; run e2fsck -fy on it")
	}
	return nil
}
