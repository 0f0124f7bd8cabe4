// Package store keeps images, snapshots and containers in an SQL database. There is one set of SQL texts; dialect.go
// holds what differs between databases. Only SQLite is spoken so far.
//
// Times are stored as text in UTC with microseconds, which sorts as it should; structured values are stored as JSON.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/pressly/goose/v3"

	"warmboot"
)

//go:embed migrations
var migrations embed.FS

// Config says where the database is.
type Config struct {
	Path string // of the SQLite file; it and its directory are made if they are missing, for our user alone
	Log  *slog.Logger
}

// Store is a warmboot.Store. It is safe for concurrent use.
type Store struct {
	dialect dialect
	// Writers queue for the one connection of write, in our process and in order of arrival, instead of polling for
	// SQLite's lock; readers have connections of their own and never wait for a writer.
	write, read *sql.DB
}

var _ warmboot.Store = (*Store)(nil)

// Open opens the database, making it or bringing its schema up to date as needed.
func Open(ctx context.Context, c Config) (*Store, error) {
	const op = "open database"
	if err := prepareFile(c.Path); err != nil {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "the database %s cannot be used: %w; check the path and who may write there", c.Path, err)
	}
	s := &Store{dialect: sqliteDialect}
	var err error
	if s.write, err = sql.Open(s.dialect.driver, sqliteDSN(c.Path, true)); err != nil {
		return nil, s.fail(ctx, op, err)
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open(s.dialect.driver, sqliteDSN(c.Path, false)); err != nil {
		return nil, errors.Join(s.fail(ctx, op, err), s.write.Close())
	}
	s.read.SetMaxOpenConns(8)
	s.read.SetMaxIdleConns(8)
	if err := s.migrate(ctx, c.Log); err != nil {
		return nil, errors.Join(s.fail(ctx, op, err), s.Close())
	}
	return s, nil
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

func (s *Store) migrate(ctx context.Context, log *slog.Logger) error {
	dir, err := fs.Sub(migrations, s.dialect.migrations)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(s.dialect.goose, s.write, dir)
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

// Close closes the database.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// tx runs f in one transaction, which is undone if f fails or panics.
func (s *Store) tx(ctx context.Context, op string, f func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return s.fail(ctx, op, err)
	}
	defer func() { _ = tx.Rollback() }() // does nothing after Commit
	if err := f(tx); err != nil {
		return s.fail(ctx, op, err)
	}
	return s.fail(ctx, op, tx.Commit())
}

// querier is a database or a transaction on it.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
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
