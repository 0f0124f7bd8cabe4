package store

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
	"golang.org/x/sys/unix"

	"warmboot"
)

// postgresDialect works at PostgreSQL's usual level, READ COMMITTED: each statement sees what was committed before it, so
// whoever decides by what it read locks that first. Serializable transactions would need no locks, but would fail each other
// much more often than they truly conflict.
var postgresDialect = dialect{
	open:          openPostgres,
	goose:         goose.DialectPostgres,
	migrations:    "migrations/postgres",
	migrationLock: postgresMigrationLock,
	bytewise:      `"C"`,
	forUpdate:     " FOR UPDATE",
	forShare:      " FOR SHARE",
	forKeyShare:   " FOR KEY SHARE",
	lockPorts:     lockPostgresPorts,
	lockSnapshots: lockPostgresSnapshots,
	listen:        listenPostgres,
	again:         postgresAgain,
	classify:      classifyPostgres,
}

const (
	maxPostgresConns = 16               // of one manager; a server has 100 unless told otherwise
	deadAfter        = 15 * time.Second // a server that acknowledges nothing for so long is gone
)

// postgresConfig is how to connect.
func postgresConfig(url string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil { // its text leaves the password out
		return nil, warmboot.Errorf(warmboot.Invalid, opOpen, "the database's address cannot be understood: %w; it should look like postgres://user:password@host:5432/name", err)
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 5 * time.Second
	}
	c.DialFunc = dialer().DialContext
	for name, value := range map[string]string{
		"application_name":                    "warmboot",
		"lock_timeout":                        "10s",
		"idle_in_transaction_session_timeout": "30s", // a manager that was cut off does not keep its locks
	} {
		if _, set := c.RuntimeParams[name]; !set {
			c.RuntimeParams[name] = value
		}
	}
	return c, nil
}

func openPostgres(url string) (write, read *sql.DB, err error) {
	c, err := postgresConfig(url)
	if err != nil {
		return nil, nil, err
	}
	db := stdlib.OpenDB(*c)
	db.SetMaxOpenConns(maxPostgresConns)
	db.SetMaxIdleConns(maxPostgresConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return db, db, nil
}

// dialer makes connections that end when the server does not answer any more, instead of after the quarter of an hour that
// the kernel gives it. Keep-alives only see to idle connections, the user timeout to those with something on its way.
func dialer() *net.Dialer {
	return &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: deadAfter / 3, Interval: deadAfter / 3, Count: 2},
		Control: func(network, _ string, conn syscall.RawConn) (err error) {
			if network == "unix" {
				return nil
			}
			return errors.Join(conn.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
			}), err)
		},
	}
}

// listenPostgres has a connection of its own: one of a pool would be given to others.
func listenPostgres(ctx context.Context, url string, connected func(), message func(string)) error {
	c, err := postgresConfig(url)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return err
	}
	defer func() {
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(cctx)
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+feedChannel); err != nil {
		return err
	}
	connected()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		message(n.Payload)
	}
}

func postgresMigrationLock() (goose.ProviderOption, error) {
	l, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 300)) // asks once a second, for five minutes
	if err != nil {
		return nil, err
	}
	return goose.WithSessionLocker(l), nil
}

// lockSpace is "wboo". It sets our advisory locks apart from those of others in the same database. In it a host port has its own number.
const (
	lockSpace        = 0x77626f6f
	lockNewSnapshots = -1
)

func lockPostgresSnapshots(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1, $2)`, lockSpace, lockNewSnapshots)
	return err
}

// lockPostgresPorts takes a lock for each port number. Everybody takes them in the same order, and so nobody waits in a circle.
func lockPostgresPorts(ctx context.Context, tx *sql.Tx, ports []warmboot.PortMapping) error {
	sorted := slices.SortedFunc(slices.Values(ports), func(a, b warmboot.PortMapping) int { return cmp.Compare(a.HostPort, b.HostPort) })
	for _, p := range sorted {
		if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1, $2)`, lockSpace, int(p.HostPort)); err != nil {
			return err
		}
	}
	return nil
}

// SQLSTATEs, https://www.postgresql.org/docs/current/errcodes-appendix.html
const (
	pgForeignKey    = "23503"
	pgUnique        = "23505"
	pgSerialization = "40001"
	pgDeadlock      = "40P01"
	pgLockTimeout   = "55P03"
	pgNoDatabase    = "3D000"
	pgReadOnly      = "25006"
	pgNoPrivilege   = "42501"
	pgDiskFull      = "53100"
)

// postgresAgain includes a row that another transaction stored between our look for it and our insert: the next look finds it,
// and tells the caller which it is.
func postgresAgain(err error) bool {
	var e *pgconn.PgError
	return errors.As(err, &e) && (e.Code == pgSerialization || e.Code == pgDeadlock || e.Code == pgUnique)
}

const goneAdvice = "the database does not answer; warmboot goes on by itself when it is back, so try again then, or check that PostgreSQL runs and DATABASE_URL is right"

func classifyPostgres(err error) (warmboot.Code, string) {
	if errors.Is(err, sql.ErrConnDone) || err.Error() == "sql: database is closed" {
		return warmboot.Unavailable, "the database is closed: warmboot is ending"
	}
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return classifySQLState(e.Code)
	}
	var connect *pgconn.ConnectError
	var network net.Error
	if errors.As(err, &connect) || errors.As(err, &network) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) || pgconn.SafeToRetry(err) || err.Error() == "conn closed" {
		return warmboot.Unavailable, goneAdvice
	}
	return warmboot.Internal, ""
}

func classifySQLState(state string) (warmboot.Code, string) {
	switch state {
	case pgUnique:
		return warmboot.Conflict, "there is one like it already"
	case pgForeignKey:
		return warmboot.Conflict, "something that it refers to does not exist, or still refers to it"
	case pgSerialization, pgDeadlock, pgLockTimeout:
		return warmboot.Unavailable, "the database is busy; try again"
	case pgNoDatabase:
		return warmboot.Unavailable, "the server has no such database; make it with createdb, or correct DATABASE_URL"
	case pgReadOnly:
		return warmboot.Unavailable, "the database is read-only, as a standby is; point DATABASE_URL to the primary"
	case pgNoPrivilege:
		return warmboot.Unavailable, "the database's user may not do that; make it the owner of the database"
	case pgDiskFull:
		return warmboot.Exhausted, "the disk of the database is full; free space and try again"
	}
	switch state[:min(2, len(state))] { // the class
	case "08", "57": // the connection; an operator's intervention, or the server on its way up or down
		return warmboot.Unavailable, goneAdvice
	case "28":
		return warmboot.Unavailable, "the database refuses our user or password; correct DATABASE_URL"
	case "53":
		return warmboot.Unavailable, "the database has no connections or no memory left; try again, or raise its limits"
	case "22":
		return warmboot.Invalid, "that cannot be stored: an id that is none, or text with bytes that are not UTF-8"
	case "XX":
		return warmboot.Corrupt, "the database is damaged; look at PostgreSQL's log and restore it from a backup"
	}
	return warmboot.Internal, ""
}
