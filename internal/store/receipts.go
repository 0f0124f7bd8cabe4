package store

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"time"

	"warmboot"
)

const selectReceipt = `SELECT key_digest, request_digest, entity_id, secret, created_at FROM receipts WHERE key_digest = $1`

func scanReceipt(row scanner) (*warmboot.Receipt, error) {
	r := &warmboot.Receipt{}
	return r, row.Scan(&r.Key, &r.Request, &r.EntityID, &r.Secret, timeInto{&r.CreatedAt})
}

// Receipt implements warmboot.ReceiptStore.
func (s *Store) Receipt(ctx context.Context, key string) (*warmboot.Receipt, error) {
	const op = "find receipt"
	r, err := scanReceipt(s.read.QueryRowContext(ctx, selectReceipt, key))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, warmboot.Errorf(warmboot.NotFound, op, "no request with this key is known")
	}
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	return r, nil
}

// KeepReceipt implements warmboot.ReceiptStore.
func (s *Store) KeepReceipt(ctx context.Context, r *warmboot.Receipt, entity warmboot.ID) error {
	return s.create(warmboot.WithReceipt(ctx, r), "keep receipt", entity, func(*sql.Tx) error { return nil })
}

// PruneReceipts implements warmboot.ReceiptStore.
func (s *Store) PruneReceipts(ctx context.Context, before time.Time) (removed int64, err error) {
	err = s.tx(ctx, "prune receipts", func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `DELETE FROM receipts WHERE created_at < $1`, stamp(before))
		if err != nil {
			return err
		}
		removed, err = done.RowsAffected()
		return err
	})
	return removed, err
}

// create is a transaction in which f creates an entity, and which keeps the receipt that the context carries. Where another transaction keeps one
// of the same key meanwhile, the database makes this one wait for it and fail, and the next attempt finds it; or f finds the name taken by
// what that one has made.
func (s *Store) create(ctx context.Context, op string, entity warmboot.ID, f func(*sql.Tx) error) error {
	r := warmboot.ReceiptOf(ctx)
	if r == nil {
		return s.tx(ctx, op, f)
	}
	err := s.tx(ctx, op, func(tx *sql.Tx) error {
		if err := unrepeated(ctx, tx, op, r); err != nil {
			return err
		}
		if err := f(tx); warmboot.CodeOf(err) == warmboot.Conflict {
			return cmp.Or(unrepeated(ctx, tx, op, r), err)
		} else if err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO receipts (key_digest, request_digest, entity_id, secret, created_at) VALUES ($1, $2, $3, $4, $5)`,
			r.Key, r.Request, string(entity), r.Secret, stamp(r.CreatedAt))
		return err
	})
	if err == nil {
		r.EntityID = entity
	}
	return err
}

// unrepeated reports a Conflict caused by a Repeated if there is a receipt of the same key.
func unrepeated(ctx context.Context, tx *sql.Tx, op string, r *warmboot.Receipt) error {
	earlier, err := scanReceipt(tx.QueryRowContext(ctx, selectReceipt, r.Key))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return warmboot.Errorf(warmboot.Conflict, op, "%w", &warmboot.Repeated{Receipt: earlier})
}
