package store

import (
	"context"
	"database/sql"
	"errors"
	"net/url"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	lib "modernc.org/sqlite/lib"

	"warmboot"
)

// sqliteDialect needs no locks: a transaction that may write has the whole database from its start.
var sqliteDialect = dialect{
	open:          openSQLite,
	goose:         goose.DialectSQLite3,
	migrations:    "migrations/sqlite",
	migrationLock: nil,
	bytewise:      "BINARY",
	lockPorts:     func(context.Context, *sql.Tx, []warmboot.PortMapping) error { return nil },
	lockSnapshots: func(context.Context, *sql.Tx) error { return nil },
	again:         func(error) bool { return false },
	classify:      classifySQLite,
}

// openSQLite gives writers one connection, for which they queue in our process and in order of arrival instead of polling
// for SQLite's lock; readers have connections of their own and never wait for a writer.
func openSQLite(path string) (write, read *sql.DB, err error) {
	if err := prepareFile(path); err != nil {
		return nil, nil, warmboot.Errorf(warmboot.Unavailable, opOpen, "the database %s cannot be used: %w; check the path and who may write there", path, err)
	}
	if write, err = openStatements(sqliteDSN(path, true)); err != nil {
		return nil, nil, err
	}
	write.SetMaxOpenConns(1)
	if read, err = openStatements(sqliteDSN(path, false)); err != nil {
		return nil, nil, errors.Join(err, write.Close())
	}
	read.SetMaxOpenConns(8)
	read.SetMaxIdleConns(8)
	return write, read, nil
}

// prepareFile makes the database's file before SQLite does, which would make it readable for everybody. SQLite gives its
// other files the same mode.
func prepareFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
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
