package image

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"warmboot"
)

// bzImageOf wraps a packed kernel as the kernel's build does. Its bytes end where the header says.
func bzImageOf(payload []byte) []byte {
	const setup, before = 3, 0x40 // sectors of real-mode code; bytes of protected-mode code before the payload
	code := (setup + 1) * 512
	size := code + (before+len(payload)+15)/16*16
	b := make([]byte, size)
	b[setupSectsAt] = setup
	copy(b[headerMagicAt:], "HdrS")
	binary.LittleEndian.PutUint16(b[protocolAt:], 0x20f)
	binary.LittleEndian.PutUint32(b[sysSizeAt:], uint32(size-code)/16)
	binary.LittleEndian.PutUint32(b[payloadOffsetAt:], before)
	binary.LittleEndian.PutUint32(b[payloadLengthAt:], uint32(len(payload)))
	copy(b[code+before:], payload)
	return b
}

// elfProgram is a whole ELF file that has what a kernel has, as far as its headers tell.
func elfProgram(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(staticProgram(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestExtractsTheKernelOutOfABzImage(t *testing.T) {
	t.Parallel()
	kernel := elfProgram(t)
	unpacked := append(bytes.Clone(kernel), "relocations, which are no part of the ELF file"...)
	sized := func(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, uint32(len(unpacked))) }
	packers := map[string]func() []byte{
		"zstd": func() []byte {
			w, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
			if err != nil {
				t.Fatal(err)
			}
			return sized(w.EncodeAll(unpacked, nil))
		},
		"gzip": func() []byte {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			if _, err := w.Write(unpacked); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			return b.Bytes()
		},
		"xz": func() []byte {
			cmd := exec.CommandContext(t.Context(), "xz", "-1", "-c", "--check=crc32")
			cmd.Stdin = bytes.NewReader(unpacked)
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("xz (package xz-utils) is needed: %v", err)
			}
			return sized(out)
		},
	}
	for name, pack := range packers {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			from, to := filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "vmlinux")
			whole := bzImageOf(pack())
			if err := os.WriteFile(from, whole, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := extractKernel(t.Context(), from, to); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(to); !bytes.Equal(got, kernel) {
				t.Errorf("got %d bytes, want the %d of the kernel alone", len(got), len(kernel))
			}
			if err := os.WriteFile(from, whole[:len(whole)/2], 0o644); err != nil {
				t.Fatal(err)
			}
			if err := extractKernel(t.Context(), from, to+"2"); warmboot.CodeOf(err) != warmboot.Corrupt {
				t.Errorf("half a file: %v; want Corrupt", err)
			}
		})
	}
}
