package access

import (
	"bytes"
	"database/sql"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"warmboot"
	"warmboot/internal/expect"
	"warmboot/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a Keeper on a real store.
type rig struct {
	*testing.T
	k     *Keeper
	store *store.Store
	db    string // its file
	log   *syncBuffer
}

func newRig(t *testing.T, shape func(*Config)) *rig {
	t.Helper()
	t.Parallel()
	r := &rig{T: t, db: filepath.Join(t.TempDir(), "warmboot.db"), log: &syncBuffer{}}
	r.open()
	t.Cleanup(func() { _ = r.store.Close() })
	r.k = r.keeper(shape)
	return r
}

func (r *rig) open() {
	r.Helper()
	var err error
	r.store, err = store.Open(r.Context(), store.Config{URL: r.db, Log: slog.New(slog.DiscardHandler)})
	r.must(err)
}

// keeper is one more Keeper, as another manager has it.
func (r *rig) keeper(shape func(*Config)) *Keeper {
	r.Helper()
	c := Config{Store: r.store, Log: slog.New(slog.NewTextHandler(r.log, nil))}
	if shape != nil {
		shape(&c)
	}
	k := New(c)
	r.Cleanup(k.Close)
	return k
}

func (r *rig) must(err error) {
	r.Helper()
	expect.NoError(r, err)
}

func (r *rig) wantCode(err error, code warmboot.Code, words ...string) {
	r.Helper()
	expect.Code(r, err, code, words...)
}

// sql changes the database behind the store's back.
func (r *rig) sql(statement string) {
	r.Helper()
	db, err := sql.Open("sqlite", "file:"+r.db+"?_pragma=busy_timeout(5000)")
	r.must(err)
	defer func() { _ = db.Close() }()
	_, err = db.ExecContext(r.Context(), statement)
	r.must(err)
}

// syncBuffer is a buffer for a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
