package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"

	"warmboot/internal/kernel/kerneltest"
)

func TestExtractsTheKernelOutOfABzImage(t *testing.T) {
	t.Parallel()
	kernel := kerneltest.ELF(100_000)
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
			whole := kerneltest.BzImage(pack())
			if err := os.WriteFile(from, whole, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := Extract(t.Context(), from, to); err != nil {
				t.Fatal(err)
			}
			if got, _ := os.ReadFile(to); !bytes.Equal(got, kernel) {
				t.Errorf("got %d bytes, want the %d of the kernel alone", len(got), len(kernel))
			}
			if err := os.WriteFile(from, whole[:len(whole)/2], 0o644); err != nil {
				t.Fatal(err)
			}
			if err := Extract(t.Context(), from, to+"2"); !errors.Is(err, ErrUnusable) {
				t.Errorf("half a file: %v; want that it is unusable", err)
			}
		})
	}
}
