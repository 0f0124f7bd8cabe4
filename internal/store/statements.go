package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"

	"modernc.org/sqlite"
)

// maxStatements is how many statements a connection keeps: more than we and the job queue have, but a list in one makes it another for each length.
const maxStatements = 400

// openStatements opens an SQLite database whose connections parse each statement once. Parsing takes SQLite longer than most of our statements.
func openStatements(dsn string) (*sql.DB, error) {
	c, err := sqlite.NewConnector(dsn)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(connector{c}), nil
}

type connector struct{ driver.Connector }

func (c connector) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &sqliteConn{rawConn: conn.(rawConn), idle: map[string]statement{}}, nil
}

// rawConn is what every connection of the driver is.
type rawConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type statement interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// sqliteConn keeps the statements of a connection. Like every driver.Conn it is used by one goroutine at a time.
type sqliteConn struct {
	rawConn
	idle map[string]statement // those that nobody uses, by their text
}

// take returns a statement that nobody else uses until it is put back.
func (c *sqliteConn) take(ctx context.Context, query string) (statement, error) {
	if s, ok := c.idle[query]; ok {
		delete(c.idle, query)
		return s, nil
	}
	s, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return s.(statement), nil
}

// put keeps a statement for the next time, unless it has failed.
func (c *sqliteConn) put(query string, s statement, err error) error {
	if _, twice := c.idle[query]; err != nil || twice || len(c.idle) >= maxStatements {
		return s.Close()
	}
	c.idle[query] = s
	return nil
}

// ExecContext implements driver.ExecerContext.
func (c *sqliteConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	s, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	r, err := s.ExecContext(ctx, args)
	return r, errors.Join(err, c.put(query, s, err))
}

// QueryContext implements driver.QueryerContext.
func (c *sqliteConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	s, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	r, err := s.QueryContext(ctx, args)
	if err != nil {
		return nil, errors.Join(err, c.put(query, s, err))
	}
	return &sqliteRows{Rows: r, done: func(err error) error { return c.put(query, s, err) }}, nil
}

// Close implements driver.Conn.
func (c *sqliteConn) Close() error {
	var err error
	for _, s := range c.idle {
		err = errors.Join(err, s.Close())
	}
	return errors.Join(err, c.rawConn.Close())
}

// Unwrap is what the driver asks of a wrapper.
func (c *sqliteConn) Unwrap() driver.Conn { return c.rawConn }

// sqliteRows gives its statement back when it is closed.
type sqliteRows struct {
	driver.Rows
	failed error
	done   func(error) error // nil once it was called
}

// Next implements driver.Rows.
func (r *sqliteRows) Next(dest []driver.Value) error {
	err := r.Rows.Next(dest)
	if err != nil && err != io.EOF { //nolint:errorlint // drivers return io.EOF itself, as database/sql wants it
		r.failed = err
	}
	return err
}

// Close implements driver.Rows.
func (r *sqliteRows) Close() error {
	err := r.Rows.Close()
	if r.done != nil {
		done := r.done
		r.done = nil
		err = errors.Join(err, done(errors.Join(r.failed, err)))
	}
	return err
}
