package firecracker

import (
	"bytes"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// Whatever is in a file, it reads the same afterwards; and long stretches of zeros take no space.
func TestPunchZeros(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "memory")
	rapid.Check(t, func(t *rapid.T) {
		pages := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 0, 0, 0, 1, 255}), 0, 40).Draw(t, "pages")
		long := rapid.IntRange(1, 40).Draw(t, "pages in each")
		var content []byte
		for _, b := range pages {
			content = append(content, bytes.Repeat([]byte{b}, long*pageBytes)...)
		}
		content = append(content, bytes.Repeat([]byte{0}, rapid.IntRange(0, pageBytes-1).Draw(t, "rest"))...)
		if len(content) > 0 {
			content[rapid.IntRange(0, len(content)-1).Draw(t, "a byte")] = 7
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := punchZeros(path); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, content) {
			t.Fatalf("it reads otherwise (%v)", err)
		}
	})
	content := append(bytes.Repeat([]byte{1}, 1<<20), make([]byte, 31<<20)...)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := punchZeros(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if used := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Size() != 32<<20 || used > 2<<20 {
		t.Errorf("%d bytes take %d", info.Size(), used)
	}
}
