package durable

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func TestReplace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, c := range []struct {
		content string
		mode    fs.FileMode
	}{{"first", 0o600}, {"second, which is longer", 0o646}, {"", 0o600}} {
		if err := Replace(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(path)
		if err != nil || string(text) != c.content {
			t.Errorf("it holds %q, %v; want %q", text, err, c.content)
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != c.mode {
			t.Errorf("its mode is %v, %v; want %v", info.Mode(), err, c.mode)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("there are %v, %v", names, err)
	}
}

// Whoever reads meanwhile sees one content or another, and never a part of one.
func TestReplaceIsWhole(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "file")
	contents := []string{strings.Repeat("a", 1<<16), strings.Repeat("b", 1<<17)}
	var writers sync.WaitGroup
	for _, content := range contents {
		if err := Replace(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		writers.Go(func() {
			for range 20 {
				if err := Replace(path, []byte(content), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for {
		text, err := os.ReadFile(path)
		if err != nil || string(text) != contents[0] && string(text) != contents[1] {
			t.Errorf("read %d bytes, %v", len(text), err)
		}
		select {
		case <-done:
			return
		default:
		}
	}
}

// Where there is no room for the new file the old one stays, and nothing else.
func TestReplaceOnAFullDisk(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: mounts a small file system; needs root")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("SKIPPED: mounts a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "file")
	if err := Replace(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := Replace(path, make([]byte, 1<<20), 0o600)
	if !Full(err) {
		t.Errorf("got %v, want that the disk is full", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "old" {
		t.Errorf("it holds %q, %v", text, err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("there are %v, %v", names, err)
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{syscall.ENOSPC: true, syscall.EDQUOT: true, syscall.EIO: false} {
		if got := Full(fmt.Errorf("write: %w", &os.PathError{Op: "write", Path: "x", Err: err})); got != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}
