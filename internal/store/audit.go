package store

import (
	"context"
	"database/sql"
	"time"

	"warmboot"
)

const auditColumns = `at, actor, actor_id, role, operation, entity_type, entity_id, entity_name, source, request_id, outcome, finished_at`

func scanAudit(row scanner) (*warmboot.AuditEntry, error) {
	e := &warmboot.AuditEntry{}
	return e, row.Scan(&e.ID, timeInto{&e.At}, &e.Actor, textInto[warmboot.ID]{&e.ActorID}, &e.Role, &e.Operation, &e.EntityType, &e.EntityID, &e.EntityName,
		&e.Source, &e.RequestID, &e.Outcome, optTimeInto{&e.FinishedAt})
}

// BeginAudit implements warmboot.AuditStore.
func (s *Store) BeginAudit(ctx context.Context, e *warmboot.AuditEntry) error {
	return s.one(ctx, "write audit log", func(ctx context.Context, db executor) error {
		return db.QueryRowContext(ctx, `INSERT INTO audit_log (`+auditColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) RETURNING id`,
			stamp(e.At), e.Actor, orNull(e.ActorID), string(e.Role), e.Operation, e.EntityType, e.EntityID, plain(e.EntityName), e.Source, e.RequestID, e.Outcome, stampOrNull(e.FinishedAt)).Scan(&e.ID)
	})
}

// FinishAudit implements warmboot.AuditStore.
func (s *Store) FinishAudit(ctx context.Context, e *warmboot.AuditEntry) error {
	const op = "write audit log"
	return s.one(ctx, op, func(ctx context.Context, db executor) error {
		done, err := db.ExecContext(ctx, `UPDATE audit_log SET entity_id = $1, entity_name = $2, outcome = $3, finished_at = $4 WHERE id = $5`,
			e.EntityID, plain(e.EntityName), e.Outcome, stampOrNull(e.FinishedAt), e.ID)
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		if err == nil && n == 0 {
			return warmboot.Errorf(warmboot.NotFound, op, "entry %d is gone", e.ID)
		}
		return err
	})
}

// AuditEntries implements warmboot.AuditStore.
func (s *Store) AuditEntries(ctx context.Context, before int64, limit int) ([]*warmboot.AuditEntry, error) {
	all, err := list(ctx, s.read, scanAudit, `SELECT id, `+auditColumns+` FROM audit_log WHERE CAST($1 AS BIGINT) = 0 OR id < CAST($1 AS BIGINT) ORDER BY id DESC LIMIT $2`, before, limit)
	return all, s.fail(ctx, "read audit log", err)
}

// PruneAudit implements warmboot.AuditStore.
func (s *Store) PruneAudit(ctx context.Context, before time.Time) (removed int64, err error) {
	err = s.tx(ctx, "prune audit log", func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `DELETE FROM audit_log WHERE at < $1`, stamp(before))
		if err != nil {
			return err
		}
		removed, err = done.RowsAffected()
		return err
	})
	return removed, err
}
