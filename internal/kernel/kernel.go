// Package kernel reads Linux kernels for x86-64 in the forms in which they are kept: the bzImage that distributions ship, which
// unpacks itself, and the ELF file inside it, which VMMs start.
package kernel

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/klauspost/compress/zstd"
)

// Offsets in the setup header of a bzImage, from the boot protocol in the kernel's documentation.
const (
	setupSectsAt    = 0x1f1 // byte: size of the real-mode part in sectors, less one
	sysSizeAt       = 0x1f4 // uint32: size of the protected-mode part in units of 16 bytes
	headerMagicAt   = 0x202 // "HdrS"
	protocolAt      = 0x206 // uint16: protocol version
	payloadOffsetAt = 0x248 // uint32: of the compressed kernel, from the protected-mode part on; protocol 2.08
	payloadLengthAt = 0x24c // uint32
	headerEnd       = 0x250
)

// Limit bounds an unpacked kernel, in bytes: a hundred times what one has.
const Limit = 1 << 30

// ErrUnusable is the cause of an error that lies in the kernel, not in reading or writing its file.
var ErrUnusable = errors.New("the kernel cannot be used")

// BzImage is what the header of a compressed kernel tells.
type BzImage struct {
	Size          int64 // that the file must have at least
	payloadAt     int64 // in the file
	payloadLength int64
}

// ParseBzImage reads the header. ok is false for anything that is not a bzImage.
func ParseBzImage(r io.ReaderAt) (b BzImage, ok bool) {
	h := make([]byte, headerEnd)
	if _, err := r.ReadAt(h, 0); err != nil || string(h[headerMagicAt:headerMagicAt+4]) != "HdrS" {
		return b, false
	}
	setup := int64(h[setupSectsAt])
	if setup == 0 {
		setup = 4 // what the protocol says 0 means
	}
	code := (setup + 1) * 512
	b.Size = code + int64(binary.LittleEndian.Uint32(h[sysSizeAt:]))*16
	if binary.LittleEndian.Uint16(h[protocolAt:]) >= 0x208 {
		b.payloadAt = code + int64(binary.LittleEndian.Uint32(h[payloadOffsetAt:]))
		b.payloadLength = int64(binary.LittleEndian.Uint32(h[payloadLengthAt:]))
	}
	return b, true
}

// Extract unpacks the ELF kernel inside the bzImage at from into a new file at to, for everyone to read. An emulated machine needs seconds
// to do that at every boot, the host a fraction of one, once; and Firecracker before 1.17 takes nothing else.
func Extract(ctx context.Context, from, to string) error {
	whole, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	unusable := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w", ErrUnusable, fmt.Errorf(format, args...))
	}
	b, ok := ParseBzImage(bytes.NewReader(whole))
	if !ok || b.payloadLength < 8 || b.payloadAt+b.payloadLength > int64(len(whole)) {
		return unusable("%s is no whole bzImage", from)
	}
	kernel, err := unpack(ctx, whole[b.payloadAt:b.payloadAt+b.payloadLength])
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return unusable("what is packed in %s cannot be read: %w", from, err)
	}
	// Relocations for a kernel that moves itself follow the ELF file; nobody reads them here.
	end, err := ELFEnd(bytes.NewReader(kernel))
	if err != nil {
		return unusable("what is packed in %s: %w", from, err)
	}
	return os.WriteFile(to, kernel[:min(end, int64(len(kernel)))], 0o444)
}

// unpack decompresses a kernel's payload. But for gzip, the kernel's build appends the unpacked size as four bytes, which the decoders would
// take for garbage.
func unpack(ctx context.Context, payload []byte) ([]byte, error) {
	body := payload[:len(payload)-4]
	switch Compression(payload) {
	case "zstd":
		d, err := zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderMaxWindow(1<<28), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		defer d.Close()
		return readAtMost(d, Limit)
	case "gzip":
		d, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, err
		}
		d.Multistream(false)
		return readAtMost(d, Limit)
	case "xz":
		cmd := exec.CommandContext(ctx, "xz", "-dc")
		cmd.Stdin = bytes.NewReader(body)
		return cmd.Output()
	}
	return nil, errors.New("it is packed neither with zstd nor gzip nor xz")
}

func readAtMost(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errors.New("it is larger than any kernel")
	}
	return b, err
}

// Compression names the compression of data that begins with head; "" when it is none that is known.
func Compression(head []byte) string {
	for _, c := range []struct{ magic, name string }{
		{"\x28\xb5\x2f\xfd", "zstd"}, {"\x1f\x8b", "gzip"}, {"\xfd7zXZ\x00", "xz"}, {"\x04\x22\x4d\x18", "lz4"}, {"\x02\x21\x4c\x18", "lz4"},
		{"BZh", "bzip2"}, {"\x89LZO", "lzo"}, {"\x5d\x00\x00", "lzma"},
	} {
		if bytes.HasPrefix(head, []byte(c.magic)) {
			return c.name
		}
	}
	return ""
}

// ELFEnd checks that r is an ELF kernel for x86-64 and returns the size that its file must have at least.
func ELFEnd(r io.ReaderAt) (int64, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		return 0, err
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return 0, errors.New("an ELF file, but not a program for x86-64")
	}
	var end uint64
	loads := 0
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return 0, errors.New("a program for an operating system, not a kernel")
		}
		if p.Type == elf.PT_LOAD {
			loads++
		}
		if p.Off+p.Filesz < p.Off {
			return 0, errors.New("a program header points outside of any file")
		}
		end = max(end, p.Off+p.Filesz)
	}
	if loads == 0 {
		return 0, errors.New("nothing in it is to be loaded")
	}
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOBITS && s.Type != elf.SHT_NULL && s.Offset+s.FileSize >= s.Offset {
			end = max(end, s.Offset+s.FileSize)
		}
	}
	// The section headers themselves lie behind the sections; debug/elf has read them but does not tell where they were.
	var h elf.Header64
	if err := binary.Read(io.NewSectionReader(r, 0, 64), binary.LittleEndian, &h); err != nil {
		return 0, err
	}
	end = max(end, h.Shoff+uint64(h.Shnum)*uint64(h.Shentsize), h.Phoff+uint64(h.Phnum)*uint64(h.Phentsize))
	if end > Limit {
		return 0, errors.New("its headers claim more than a kernel can have")
	}
	return int64(end), nil
}
