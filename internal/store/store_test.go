package store_test

import (
	"context"
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/store"
	"warmboot/internal/store/pgtest"
	"warmboot/internal/store/storetest"
)

func open(t testing.TB, url string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{URL: url, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestSQLiteKeepsTheContract(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) warmboot.Store { return open(t, filepath.Join(t.TempDir(), "warmboot.db")) })
}

func image() *warmboot.Image {
	return &warmboot.Image{ID: warmboot.NewID(), Name: "runtime", CreatedAt: time.Now()}
}

func TestOpenAgainFindsWhatWasStored(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "new", "dir with space?#%", "warmboot.db")
	first := open(t, path)
	img := image()
	if err := first.CreateImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	second := open(t, "sqlite:"+path) // while the first is open, as after a takeover
	if _, err := second.ImageByName(t.Context(), "runtime"); err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreForOurUserAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "db")
	s := open(t, filepath.Join(dir, "warmboot.db"))
	if err := s.CreateImage(t.Context(), image()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 2 {
		t.Fatalf("there are only %v; is the journal in WAL mode?", entries)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	damaged := filepath.Join(t.TempDir(), "warmboot.db")
	if err := os.WriteFile(damaged, slices.Repeat([]byte("no database "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		path string
		code warmboot.Code
	}{
		"a damaged file": {damaged, warmboot.Corrupt},
		"a directory":    {t.TempDir(), warmboot.Unavailable},
	} {
		_, err := store.Open(t.Context(), store.Config{URL: c.path, Log: slog.New(slog.DiscardHandler)})
		if warmboot.CodeOf(err) != c.code {
			t.Errorf("%s: %v, code %q, want %q", name, err, warmboot.CodeOf(err), c.code)
		}
	}
}

func TestClosedAndBusyDatabasesAreUnavailable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "warmboot.db")
	s := open(t, path)
	other, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	tx, err := other.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := s.CreateImage(ctx, image()); warmboot.CodeOf(err) != warmboot.Timeout && warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("while another program writes: %v, code %q", err, warmboot.CodeOf(err))
	}
	if _, err := s.Images(t.Context(), warmboot.Page{}); err != nil {
		t.Errorf("a reader was held up by a writer: %v", err)
	}
	closed := open(t, filepath.Join(t.TempDir(), "closed.db"))
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := closed.Images(t.Context(), warmboot.Page{}); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("after Close: %v, code %q", err, warmboot.CodeOf(err))
	}
}

// BenchmarkCreateContainer is what a create costs in the store: one transaction, flushed to disk.
func BenchmarkCreateContainer(b *testing.B) {
	onBoth(b, func(b *testing.B, s *store.Store) func() error {
		img := image()
		if err := s.CreateImage(b.Context(), img); err != nil {
			b.Fatal(err)
		}
		return func() error {
			id := warmboot.NewID()
			return s.CreateContainer(b.Context(), &warmboot.Container{ID: id, Name: string(id), RuntimeImageID: img.ID, State: warmboot.ContainerCreating, CreatedAt: time.Now()})
		}
	})
}

// BenchmarkAudit is what every change waits for before it begins; as much comes after it.
func BenchmarkAudit(b *testing.B) {
	onBoth(b, func(b *testing.B, s *store.Store) func() error {
		return func() error {
			return s.BeginAudit(b.Context(), &warmboot.AuditEntry{At: time.Now(), Actor: "ci", ActorID: warmboot.NewID(), Operation: "create-container", EntityType: "container", Source: "127.0.0.1"})
		}
	})
}

// BenchmarkTokenByDigest is what a request costs whose token has not been asked for in the last seconds.
func BenchmarkTokenByDigest(b *testing.B) {
	onBoth(b, func(b *testing.B, s *store.Store) func() error {
		if err := s.CreateToken(b.Context(), &warmboot.Token{ID: warmboot.NewID(), Name: "ci", Role: warmboot.RoleViewer, Digest: "d", CreatedAt: time.Now()}); err != nil {
			b.Fatal(err)
		}
		return func() error {
			_, err := s.TokenByDigest(b.Context(), "d")
			return err
		}
	})
}

// onBoth measures on both databases, with their flushes to disk.
func onBoth(b *testing.B, prepare func(*testing.B, *store.Store) func() error) {
	b.Run("SQLite", func(b *testing.B) {
		measure(b, prepare(b, open(b, filepath.Join(b.TempDir(), "warmboot.db"))))
	})
	b.Run("PostgreSQL", func(b *testing.B) {
		postgres.Need(b)
		durable, err := pgtest.Start("fsync=on")
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { _ = durable.Close() })
		measure(b, prepare(b, open(b, durable.Database(b))))
	})
}

func measure(b *testing.B, do func() error) {
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if err := do(); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
