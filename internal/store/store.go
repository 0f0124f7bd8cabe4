// Package store keeps images, snapshots and containers in an SQL database. There is one set of SQL texts; dialect.go
// says what differs between databases: SQLite (sqlite.go), where one manager has everything to itself, and PostgreSQL
// (postgres.go), which several share.
//
// SQLite keeps times as text in UTC with microseconds, which sorts as it should, and structured values as JSON text;
// PostgreSQL has types for both.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"log/slog"
	"strings"

	"github.com/pressly/goose/v3"

	"warmboot"
	"warmboot/internal/telemetry/span"
)

//go:embed migrations
var migrations embed.FS

// Config says where the database is.
type Config struct {
	// URL is postgres://…, or the path of an SQLite file (with or without "sqlite:"), which is made with its directory if
	// it is missing, for our user alone.
	URL string
	Log *slog.Logger
}

// Store is a warmboot.Store. It is safe for concurrent use, and so are several of them on one database.
type Store struct {
	dialect dialect
	url     string
	log     *slog.Logger
	// write and read are one pool where the database lets writers and readers alone.
	write, read *sql.DB
}

var _ warmboot.Store = (*Store)(nil)

const opOpen = "open database"

// Open opens the database, making it or bringing its schema up to date as needed.
func Open(ctx context.Context, c Config) (*Store, error) {
	s := &Store{dialect: sqliteDialect, url: c.URL, log: c.Log}
	path := strings.TrimPrefix(c.URL, "sqlite:")
	switch scheme, _, _ := strings.Cut(c.URL, "://"); {
	case scheme == "postgres" || scheme == "postgresql":
		s.dialect = postgresDialect
	case scheme != c.URL && !strings.Contains(scheme, "/"):
		return nil, warmboot.Errorf(warmboot.Invalid, opOpen, "there is no database of the kind %q; use postgres://user@host/name, or the path of an SQLite file", scheme)
	case path == "":
		return nil, warmboot.Errorf(warmboot.Invalid, opOpen, "no database is named; use postgres://user@host/name, or the path of an SQLite file")
	}
	var err error
	if s.write, s.read, err = s.dialect.open(path); err != nil {
		return nil, s.fail(ctx, opOpen, err)
	}
	if err := s.migrate(ctx, c.Log); err != nil {
		return nil, errors.Join(s.fail(ctx, opOpen, err), s.Close())
	}
	return s, nil
}

func (s *Store) migrate(ctx context.Context, log *slog.Logger) error {
	dir, err := fs.Sub(migrations, s.dialect.migrations)
	if err != nil {
		return err
	}
	var options []goose.ProviderOption
	if s.dialect.migrationLock != nil {
		lock, err := s.dialect.migrationLock()
		if err != nil {
			return err
		}
		options = append(options, lock)
	}
	p, err := goose.NewProvider(s.dialect.goose, s.write, dir, options...)
	if err != nil {
		return err
	}
	done, err := p.Up(ctx)
	if err != nil {
		return err
	}
	for _, m := range done {
		log.Info("The database schema was brought up to date", "migration", m.Source.Path, "took", m.Duration)
	}
	return nil
}

// SQL is the database for others that keep things in it, and whether it is PostgreSQL. Writing is allowed; on SQLite all writers share
// its one connection.
func (s *Store) SQL() (db *sql.DB, postgres bool) { return s.write, s.dialect.listen != nil }

// Close closes the database.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// attempts bounds how often a transaction is run that others keep from going through.
const attempts = 10

// tx runs f in one transaction, which is undone if f fails or panics. f runs again where the database undid the transaction
// in favour of another one.
func (s *Store) tx(ctx context.Context, op string, f func(*sql.Tx) error) error {
	return s.again(ctx, op, func(ctx context.Context) error { return s.once(ctx, f) })
}

// one runs f, which is a single statement. That is a transaction of its own, and needs two trips to the database less than tx.
func (s *Store) one(ctx context.Context, op string, f func(context.Context, executor) error) error {
	return s.again(ctx, op, func(ctx context.Context) error { return f(ctx, s.write) })
}

// again runs f until it goes through, or fails for another reason than that the database let others go first.
func (s *Store) again(ctx context.Context, op string, f func(context.Context) error) (err error) {
	ctx, sp := span.Start(ctx, "store: "+op)
	defer func() { sp.End(err) }()
	for range attempts {
		if err = f(ctx); err == nil || ctx.Err() != nil || !s.dialect.again(err) {
			break
		}
	}
	return s.fail(ctx, op, err)
}

func (s *Store) once(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// querier is a database or a transaction on it.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// executor is what changes a database.
type executor interface {
	querier
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// scanner is a row.
type scanner interface{ Scan(dest ...any) error }

// list reads all rows of a query.
func list[T any](ctx context.Context, q querier, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// fail turns what the database says into our error. What is one of ours already stays as it is.
func (s *Store) fail(ctx context.Context, op string, err error) error {
	var ours *warmboot.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ours):
		return err
	case ctx.Err() != nil: // SQLite says "interrupted", which tells nobody why
		return &warmboot.Error{Code: warmboot.CodeOf(ctx.Err()), Op: op, Err: ctx.Err()}
	}
	code, advice := s.dialect.classify(err)
	return &warmboot.Error{Code: code, Op: op, Msg: advice, Err: err}
}
