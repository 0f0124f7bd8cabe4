package agent

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"warmboot"
	"warmboot/internal/controlplane"
)

// servedFile is a peer that has one file.
type servedFile struct {
	content []byte
	layout  [][2]int64
	left    atomic.Int64 // chunks that it gives before it goes away
	asked   atomic.Int64
}

func (s *servedFile) Layout(ctx context.Context, _ controlplane.Peer, _ string) (int64, [][2]int64, error) {
	return int64(len(s.content)), s.layout, ctx.Err()
}

func (s *servedFile) Chunk(ctx context.Context, _ controlplane.Peer, _ string, n int64) ([]byte, int64, error) {
	s.asked.Add(1)
	if s.left.Add(-1) < 0 {
		return nil, 0, warmboot.Errorf(warmboot.Unavailable, "fetch file", "the peer is away")
	}
	return s.content[n*chunkSize : min((n+1)*chunkSize, int64(len(s.content)))], int64(len(s.content)), nil
}

func TestFetchGoesOnWhereItEnded(t *testing.T) {
	t.Parallel()
	s := &servedFile{content: make([]byte, 20*chunkSize+7), layout: [][2]int64{{0, 2}, {5, 10}, {20, 21}}}
	for _, at := range []int{3, chunkSize + 1, 5 * chunkSize, 10*chunkSize - 1, len(s.content) - 1} {
		s.content[at] = 'x'
	}
	dir := t.TempDir()
	dest := filepath.Join(dir, "disk")
	a := &Agent{Config: Config{Peers: s}}
	fetch := func() error {
		return a.fetchFile(t.Context(), make([]controlplane.Peer, 2), "disk", dest, 0o644, -1, a.openProgress(filepath.Join(dir, "progress")))
	}
	s.left.Store(3)
	if err := fetch(); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Fatalf("from a peer that went away: %v", err)
	}
	s.left.Store(1000)
	s.asked.Store(0)
	if err := fetch(); err != nil {
		t.Fatal(err)
	}
	if n := s.asked.Load(); n != 8-3 {
		t.Errorf("it asked for %d chunks, 5 were missing", n)
	}
	got, err := os.ReadFile(dest)
	if err != nil || !bytes.Equal(got, s.content) {
		t.Errorf("it is not the same: %d bytes, %v", len(got), err)
	}
	info, err := os.Stat(dest)
	if err != nil {
		t.Fatal(err)
	}
	if on := info.Sys().(*syscall.Stat_t).Blocks * 512; info.Mode().Perm() != 0o644 || on > 8*chunkSize {
		t.Errorf("mode %v, %d bytes on disk", info.Mode(), on)
	}
	if err := a.fetchFile(t.Context(), make([]controlplane.Peer, 1), "disk", dest, 0o640, 5, a.openProgress(filepath.Join(dir, "other"))); warmboot.CodeOf(err) != warmboot.Corrupt {
		t.Errorf("of another size than it must have: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.fetchFile(ctx, make([]controlplane.Peer, 1), "disk", filepath.Join(dir, "never"), 0o640, -1, a.openProgress(filepath.Join(dir, "none"))); !errors.Is(err, context.Canceled) {
		t.Errorf("after its end: %v", err)
	}
}
