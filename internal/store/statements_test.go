package store

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"testing"

	"warmboot"
)

// statements are those that a connection keeps.
func statements(t testing.TB, c *sql.Conn) (n int) {
	t.Helper()
	if err := c.Raw(func(driverConn any) error {
		n = len(driverConn.(*sqliteConn).idle)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestStatementsAreKept(t *testing.T) {
	db, err := openStatements(sqliteDSN(filepath.Join(t.TempDir(), "db"), true))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx := t.Context()
	c, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	exec := func(query string, args ...any) error {
		_, err := c.ExecContext(ctx, query, args...)
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(exec(`CREATE TABLE t (n INTEGER PRIMARY KEY)`))
	before := statements(t, c)
	const insert, count = `INSERT INTO t (n) VALUES ($1)`, `SELECT n FROM t ORDER BY n`
	for n := range 3 {
		must(exec(insert, n))
	}
	if got := statements(t, c) - before; got != 1 {
		t.Errorf("of one statement, %d are kept", got)
	}

	// While it is in use it is another's no more.
	outer, err := c.QueryContext(ctx, count)
	must(err)
	for want := 0; outer.Next(); want++ {
		var n, sum int
		must(outer.Scan(&n))
		inner, err := c.QueryContext(ctx, count)
		must(err)
		for inner.Next() {
			var m int
			must(inner.Scan(&m))
			sum += m
		}
		if must(inner.Close()); n != want || sum != 3 {
			t.Errorf("row %d: %d, and the sum is %d", want, n, sum)
		}
	}
	must(outer.Close())
	if got := statements(t, c) - before; got != 2 {
		t.Errorf("of two statements, %d are kept", got)
	}

	// One that has failed is made anew, one of another schema still works, one that is given up half read starts from the beginning.
	if code, _ := classifySQLite(exec(insert, 1)); code != warmboot.Conflict {
		t.Errorf("a second row of the same key: %q", code)
	}
	must(exec(insert, 3))
	must(exec(`ALTER TABLE t ADD COLUMN more TEXT`))
	for range 2 {
		var n int
		must(c.QueryRowContext(ctx, count).Scan(&n))
		if n != 0 {
			t.Errorf("the first row is %d", n)
		}
	}
	// There is an end to it.
	for n := range maxStatements + 10 {
		rows, err := c.QueryContext(ctx, fmt.Sprint(count, " LIMIT ", n))
		must(err)
		must(rows.Close())
	}
	if got := statements(t, c); got != maxStatements {
		t.Errorf("%d statements are kept, at most %d are to be", got, maxStatements)
	}
}
