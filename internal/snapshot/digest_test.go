package snapshot

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestDigestDoesNotDependOnHoles(t *testing.T) {
	t.Parallel()
	const size = 5*digestBlock + 100
	content := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(content[digestBlock+5 : digestBlock+10])
	r.Read(content[size-50:])

	dense := filepath.Join(t.TempDir(), "dense")
	if err := os.WriteFile(dense, content, 0o600); err != nil {
		t.Fatal(err)
	}
	sparse := filepath.Join(t.TempDir(), "sparse")
	f, err := os.Create(sparse)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range [][2]int{{digestBlock + 5, digestBlock + 10}, {size - 50, size}} {
		if _, err := f.WriteAt(content[part[0]:part[1]], int64(part[0])); err != nil {
			t.Fatal(err)
		}
	}
	want := digestOf(t, dense)
	if got := digestOf(t, sparse); got != want {
		t.Errorf("sparse: %+v, dense: %+v", got, want)
	}

	seen := map[File]string{want: "the original"}
	change := func(name string, alter func(f *os.File) error) {
		f, err := os.OpenFile(sparse, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := alter(f); err != nil {
			t.Fatal(err)
		}
		got := digestOf(t, sparse)
		if other, ok := seen[got]; ok {
			t.Errorf("%s has the digest of %s", name, other)
		}
		seen[got] = name
	}
	change("one bit in a hole", func(f *os.File) error { _, err := f.WriteAt([]byte{1}, 3*digestBlock); return err })
	change("the bit one block later", func(f *os.File) error {
		_, err := f.WriteAt([]byte{0}, 3*digestBlock)
		if err == nil {
			_, err = f.WriteAt([]byte{1}, 4*digestBlock)
		}
		return err
	})
	change("one byte less", func(f *os.File) error { return f.Truncate(size - 1) })
	change("zeros at the end", func(f *os.File) error { return f.Truncate(size + digestBlock) })
	change("nothing", func(f *os.File) error { return f.Truncate(0) })
}

func digestOf(t *testing.T, path string) File {
	t.Helper()
	f, err := digest(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func BenchmarkDigest512MiBHalfEmpty(b *testing.B) {
	path := filepath.Join(b.TempDir(), "memory")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	rand.NewChaCha8([32]byte{2}).Read(block)
	for i := range int64(256) {
		if _, err := f.WriteAt(block, i*2<<20); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := digest(path); err != nil {
			b.Fatal(err)
		}
	}
}
