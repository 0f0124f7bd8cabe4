package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"warmboot"
)

const (
	snapshotColumns = `id, runtime_image_id, snapshot_path, state, fc_version, created_at, success_count, failure_count, failure_streak, last_used_at, metadata`
	selectSnapshot  = `SELECT ` + snapshotColumns + ` FROM runtime_snapshots`
)

func scanSnapshot(row scanner) (*warmboot.RuntimeSnapshot, error) {
	s := &warmboot.RuntimeSnapshot{}
	return s, row.Scan(&s.ID, textInto[warmboot.ID]{&s.RuntimeImageID}, &s.SnapshotPath, &s.State, &s.FCVersion, timeInto{&s.CreatedAt},
		&s.SuccessCount, &s.FailureCount, &s.FailureStreak, optTimeInto{&s.LastUsedAt}, jsonInto{&s.Metadata})
}

// CreateSnapshot implements warmboot.SnapshotStore.
func (s *Store) CreateSnapshot(ctx context.Context, snap *warmboot.RuntimeSnapshot) error {
	const op = "create snapshot"
	return s.tx(ctx, op, func(tx *sql.Tx) error {
		if _, err := s.image(ctx, tx, `id`, string(snap.RuntimeImageID), s.dialect.forShare); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO runtime_snapshots (`+snapshotColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`,
			string(snap.ID), string(snap.RuntimeImageID), snap.SnapshotPath, string(snap.State), snap.FCVersion, stamp(snap.CreatedAt),
			snap.SuccessCount, snap.FailureCount, snap.FailureStreak, stampOrNull(snap.LastUsedAt), asJSON(snap.Metadata))
		return err
	})
}

// Snapshot implements warmboot.SnapshotStore.
func (s *Store) Snapshot(ctx context.Context, id warmboot.ID) (*warmboot.RuntimeSnapshot, error) {
	return s.snapshot(ctx, s.read, id, "")
}

func (s *Store) snapshot(ctx context.Context, q querier, id warmboot.ID, lock string) (*warmboot.RuntimeSnapshot, error) {
	const op = "find snapshot"
	snap, err := scanSnapshot(q.QueryRowContext(ctx, selectSnapshot+` WHERE id = $1`+lock, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, warmboot.Errorf(warmboot.NotFound, op, "there is no runtime snapshot %s; `warmboot snapshot ls` lists them", id)
	}
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	return snap, nil
}

// Snapshots implements warmboot.SnapshotStore.
func (s *Store) Snapshots(ctx context.Context) ([]*warmboot.RuntimeSnapshot, error) {
	all, err := list(ctx, s.read, scanSnapshot, selectSnapshot+` ORDER BY created_at DESC, id DESC`)
	return all, s.fail(ctx, "list snapshots", err)
}

// FinishSnapshot implements warmboot.SnapshotStore.
func (s *Store) FinishSnapshot(ctx context.Context, snap *warmboot.RuntimeSnapshot) error {
	const op = "finish snapshot"
	_, err := s.changeSnapshot(ctx, op, snap.ID, func(tx *sql.Tx, now *warmboot.RuntimeSnapshot) error {
		if now.State != warmboot.SnapshotCreating {
			return warmboot.Errorf(warmboot.Conflict, op, "snapshot %s is %s, no longer being built", snap.ID, now.State)
		}
		now.State, now.SnapshotPath, now.FCVersion, now.Metadata = warmboot.SnapshotReady, snap.SnapshotPath, snap.FCVersion, snap.Metadata
		// Two builds of one image that end at once take turns, so that the second sees that the first is ready.
		if err := lockImage(ctx, tx, now.RuntimeImageID, s.dialect.forUpdate); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE runtime_snapshots SET state = 'deleted' WHERE runtime_image_id = $1 AND id <> $2 AND state IN ('ready', 'unhealthy')`,
			string(now.RuntimeImageID), string(now.ID))
		return err
	})
	return err
}

// FailSnapshot implements warmboot.SnapshotStore.
func (s *Store) FailSnapshot(ctx context.Context, id warmboot.ID, reason string) error {
	_, err := s.changeSnapshot(ctx, "fail snapshot", id, func(_ *sql.Tx, snap *warmboot.RuntimeSnapshot) error {
		if snap.State != warmboot.SnapshotDeleted {
			snap.State, snap.Metadata.Error = warmboot.SnapshotUnhealthy, plain(reason)
		}
		return nil
	})
	return err
}

// DeleteSnapshot implements warmboot.SnapshotStore.
func (s *Store) DeleteSnapshot(ctx context.Context, id warmboot.ID) error {
	_, err := s.changeSnapshot(ctx, "delete snapshot", id, func(_ *sql.Tx, snap *warmboot.RuntimeSnapshot) error {
		snap.State = warmboot.SnapshotDeleted
		return nil
	})
	return err
}

// RecordRestore implements warmboot.SnapshotStore. A snapshot deleted meanwhile is still counted, and stays deleted.
func (s *Store) RecordRestore(ctx context.Context, id warmboot.ID, at time.Time, failure string) (*warmboot.RuntimeSnapshot, error) {
	return s.changeSnapshot(ctx, "count restore", id, func(_ *sql.Tx, snap *warmboot.RuntimeSnapshot) error {
		used := at.UTC().Truncate(time.Microsecond)
		snap.LastUsedAt = &used
		if failure == "" {
			snap.SuccessCount++
			snap.FailureStreak = 0
			return nil
		}
		snap.FailureCount++
		snap.FailureStreak++
		if snap.FailureStreak >= warmboot.UnhealthyAfter && snap.State == warmboot.SnapshotReady {
			snap.State, snap.Metadata.Error = warmboot.SnapshotUnhealthy, plain(failure)
		}
		return nil
	})
}

// changeSnapshot reads a snapshot, lets change alter it, and stores it, in one transaction.
func (s *Store) changeSnapshot(ctx context.Context, op string, id warmboot.ID, change func(*sql.Tx, *warmboot.RuntimeSnapshot) error) (*warmboot.RuntimeSnapshot, error) {
	var snap *warmboot.RuntimeSnapshot
	err := s.tx(ctx, op, func(tx *sql.Tx) (err error) {
		if snap, err = s.snapshot(ctx, tx, id, s.dialect.forUpdate); err != nil {
			return err
		}
		if err := change(tx, snap); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE runtime_snapshots SET snapshot_path = $1, state = $2, fc_version = $3, success_count = $4, failure_count = $5, failure_streak = $6, last_used_at = $7, metadata = $8 WHERE id = $9`,
			snap.SnapshotPath, string(snap.State), snap.FCVersion, snap.SuccessCount, snap.FailureCount, snap.FailureStreak,
			stampOrNull(snap.LastUsedAt), asJSON(snap.Metadata), string(id))
		return err
	})
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// ForgetSnapshot implements warmboot.SnapshotStore. One that is not deleted is a Conflict.
func (s *Store) ForgetSnapshot(ctx context.Context, id warmboot.ID) error {
	const op = "forget snapshot"
	return s.tx(ctx, op, func(tx *sql.Tx) error {
		snap, err := s.snapshot(ctx, tx, id, s.dialect.forUpdate)
		if err != nil {
			return err
		}
		if snap.State != warmboot.SnapshotDeleted {
			return warmboot.Errorf(warmboot.Conflict, op, "snapshot %s is %s; delete it first", id, snap.State)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM runtime_snapshots WHERE id = $1`, string(id)); err != nil {
			return err
		}
		return purgeImages(ctx, tx)
	})
}
