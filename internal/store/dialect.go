package store

import (
	"database/sql"
	"errors"
	"net/url"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"warmboot"
)

// dialect is what differs between databases.
type dialect struct {
	driver     string        // of database/sql
	goose      goose.Dialect // for the table of migrations
	migrations string        // directory
	forUpdate  string        // ends a SELECT whose row will be written in the same transaction
	// classify tells what an error of the driver means, and what to do about it.
	classify func(error) (code warmboot.Code, advice string)
}

var sqliteDialect = dialect{
	driver:     "sqlite",
	goose:      goose.DialectSQLite3,
	migrations: "migrations/sqlite",
	forUpdate:  "", // a transaction that may write has the whole database from its start
	classify:   classifySQLite,
}

// sqliteDSN sets what every connection needs. FULL makes a commit outlive a power cut, at the price of one flush to disk.
func sqliteDSN(path string, write bool) string {
	q := url.Values{"_pragma": {"journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "busy_timeout(5000)"}}
	if write {
		q.Set("_txlock", "immediate")
	} else {
		q.Add("_pragma", "query_only(1)")
	}
	return (&url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: q.Encode()}).String()
}

func classifySQLite(err error) (warmboot.Code, string) {
	if errors.Is(err, sql.ErrConnDone) || err.Error() == "sql: database is closed" {
		return warmboot.Unavailable, "the database is closed: warmboot is ending"
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return warmboot.Internal, ""
	}
	switch e.Code() {
	case lib.SQLITE_CONSTRAINT_UNIQUE, lib.SQLITE_CONSTRAINT_PRIMARYKEY:
		return warmboot.Conflict, "there is one like it already"
	case lib.SQLITE_CONSTRAINT_FOREIGNKEY:
		return warmboot.Conflict, "something that it refers to does not exist, or still refers to it"
	}
	switch e.Code() & 0xff { // the primary code
	case lib.SQLITE_BUSY, lib.SQLITE_LOCKED:
		return warmboot.Unavailable, "the database is busy; try again"
	case lib.SQLITE_CANTOPEN, lib.SQLITE_IOERR, lib.SQLITE_READONLY, lib.SQLITE_PERM:
		return warmboot.Unavailable, "the database file cannot be read or written; check its disk and its permissions"
	case lib.SQLITE_FULL:
		return warmboot.Exhausted, "the disk of the database is full; free space and try again"
	case lib.SQLITE_CORRUPT, lib.SQLITE_NOTADB:
		return warmboot.Corrupt, "the database file is damaged; restore it from a backup"
	}
	return warmboot.Internal, ""
}
