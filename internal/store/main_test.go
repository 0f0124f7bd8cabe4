package store_test

import (
	"fmt"
	"os"
	"testing"

	"warmboot"
	"warmboot/internal/store/pgtest"
)

// server is the PostgreSQL server that this package's tests share, each with a database of its own. It is nil where PostgreSQL
// is not installed.
var server *pgtest.Server

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if server, err = pgtest.Start(); err != nil && (warmboot.CodeOf(err) != warmboot.Unavailable || required()) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if server == nil {
		return code
	}
	if err := server.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// required tells that the tests must have PostgreSQL, as in `make test`.
func required() bool { return os.Getenv("WARMBOOT_TEST_POSTGRES") != "" }

// database returns the address of an empty database on the shared server.
func database(t testing.TB) string {
	t.Helper()
	needPostgres(t)
	return server.Database(t)
}

func needPostgres(t testing.TB) {
	t.Helper()
	if server == nil {
		t.Skip("SKIPPED: PostgreSQL is not installed; scripts/install-deps does that")
	}
}
