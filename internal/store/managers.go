package store

import (
	"context"
	"database/sql"

	"warmboot"
)

func scanManager(row scanner) (*warmboot.Manager, error) {
	m := &warmboot.Manager{}
	return m, row.Scan(&m.ID, &m.Name, &m.Beat, timeInto{&m.StartedAt})
}

// JoinManagers implements warmboot.ManagerStore.
func (s *Store) JoinManagers(ctx context.Context, m *warmboot.Manager) error {
	return s.tx(ctx, "join managers", func(tx *sql.Tx) error {
		earlier, args := `DELETE FROM managers WHERE name = $1`, []any{m.Name}
		if s.dialect.listen == nil {
			earlier, args = `DELETE FROM managers`, nil
		}
		if _, err := tx.ExecContext(ctx, earlier, args...); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO managers (id, name, beat, started_at) VALUES ($1, $2, $3, $4)`, string(m.ID), m.Name, m.Beat, stamp(m.StartedAt))
		return err
	})
}

// BeatManager implements warmboot.ManagerStore.
func (s *Store) BeatManager(ctx context.Context, id warmboot.ID) ([]*warmboot.Manager, error) {
	const op = "count manager's sign of life"
	var all []*warmboot.Manager
	err := s.tx(ctx, op, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE managers SET beat = beat + 1 WHERE id = $1`, string(id))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 {
			return warmboot.Errorf(warmboot.NotFound, op, "this manager was given up for dead, or another one of its name has started")
		}
		all, err = list(ctx, tx, scanManager, `SELECT id, name, beat, started_at FROM managers ORDER BY name`)
		return err
	})
	return all, err
}

// RemoveManager implements warmboot.ManagerStore.
func (s *Store) RemoveManager(ctx context.Context, id warmboot.ID, beat int64) error {
	return s.tx(ctx, "remove manager", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM managers WHERE id = $1 AND beat = $2`, string(id), beat)
		return err
	})
}

// LeaveManagers implements warmboot.ManagerStore.
func (s *Store) LeaveManagers(ctx context.Context, id warmboot.ID) error {
	return s.tx(ctx, "leave managers", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM managers WHERE id = $1`, string(id))
		return err
	})
}
