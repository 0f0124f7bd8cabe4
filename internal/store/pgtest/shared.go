package pgtest

import (
	"fmt"
	"os"
	"testing"

	"warmboot"
)

// Shared is the server that all tests of a package share, each with a database of its own. The zero value is ready for Start.
type Shared struct{ server *Server }

// Required tells that the tests must have PostgreSQL, as in `make test`.
func Required() bool { return os.Getenv("WARMBOOT_TEST_POSTGRES") != "" }

// Start starts the server, in TestMain. Without PostgreSQL on this machine the tests that need it are skipped, unless it is Required: then
// the process ends.
func (s *Shared) Start() {
	var err error
	if s.server, err = Start("max_connections=400"); err != nil && (warmboot.CodeOf(err) != warmboot.Unavailable || Required()) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// End ends the server and the process, with the code that the tests gave.
func (s *Shared) End(code int) {
	if s.server != nil {
		if err := s.server.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// Database returns the address of an empty database on the server, or skips the test.
func (s *Shared) Database(t testing.TB) string {
	t.Helper()
	s.Need(t)
	return s.server.Database(t)
}

// URL is the address of a database that may not exist, "" where there is no PostgreSQL.
func (s *Shared) URL(database string) string {
	if s.server == nil {
		return ""
	}
	return s.server.URL(database)
}

// Need skips the test where there is no PostgreSQL.
func (s *Shared) Need(t testing.TB) {
	t.Helper()
	if s.server == nil {
		t.Skip("SKIPPED: PostgreSQL is not installed; scripts/install-deps does that")
	}
}

// Link is a way to a database that can be cut, as a network can.
func (s *Shared) Link(t testing.TB, url string) *Link {
	t.Helper()
	s.Need(t)
	return newLink(t, s.server, url)
}

// Dump is Server.Dump.
func (s *Shared) Dump(t testing.TB, url string) []byte {
	t.Helper()
	s.Need(t)
	return s.server.Dump(t, url)
}

// Restore is Server.Restore.
func (s *Shared) Restore(t testing.TB, dump []byte) string {
	t.Helper()
	s.Need(t)
	return s.server.Restore(t, dump)
}
