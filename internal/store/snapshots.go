package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"warmboot"
)

const (
	snapshotColumns = `id, runtime_image_id, host_id, platform, lease_owner, lease_generation, snapshot_path, state, fc_version, created_at, success_count, failure_count, failure_streak, attempt, last_used_at, metadata`
	selectSnapshot  = `SELECT ` + snapshotColumns + `, ` + leaseHeld + ` FROM runtime_snapshots`
)

func scanSnapshot(row scanner) (*warmboot.RuntimeSnapshot, error) {
	s := &warmboot.RuntimeSnapshot{}
	return s, row.Scan(&s.ID, textInto[warmboot.ID]{&s.RuntimeImageID}, textInto[warmboot.ID]{&s.HostID}, &s.Platform, textInto[warmboot.ID]{&s.Lease.Owner}, &s.Lease.Generation,
		&s.SnapshotPath, &s.State, &s.FCVersion, timeInto{&s.CreatedAt}, &s.SuccessCount, &s.FailureCount, &s.FailureStreak, &s.Attempt, optTimeInto{&s.LastUsedAt}, jsonInto{&s.Metadata}, &s.Lease.Held)
}

// CreateSnapshot implements warmboot.SnapshotStore.
func (s *Store) CreateSnapshot(ctx context.Context, snap *warmboot.RuntimeSnapshot, conditions ...func([]*warmboot.RuntimeSnapshot) error) error {
	const op = "create snapshot"
	return s.create(ctx, op, snap.ID, func(tx *sql.Tx) error {
		if _, err := s.image(ctx, tx, `id`, string(snap.RuntimeImageID), s.dialect.forShare); err != nil {
			return err
		}
		var building warmboot.ID
		err := tx.QueryRowContext(ctx, `SELECT id FROM runtime_snapshots WHERE runtime_image_id = $1 AND platform = $2 AND state = 'creating'`, string(snap.RuntimeImageID), snap.Platform).Scan(&building)
		if err == nil && snap.State == warmboot.SnapshotCreating {
			return warmboot.Errorf(warmboot.Conflict, op, "snapshot %s of this image is being built already", building)
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err := s.allow(ctx, tx, conditions); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO runtime_snapshots (`+snapshotColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
			string(snap.ID), string(snap.RuntimeImageID), orNull(snap.HostID), snap.Platform, orNull(snap.Lease.Owner), snap.Lease.Generation,
			snap.SnapshotPath, string(snap.State), snap.FCVersion, stamp(snap.CreatedAt),
			snap.SuccessCount, snap.FailureCount, snap.FailureStreak, snap.Attempt, stampOrNull(snap.LastUsedAt), asJSON(snap.Metadata))
		return err
	})
}

// allow asks the conditions for one more snapshot. From then on to the end of the transaction nobody stores another.
func (s *Store) allow(ctx context.Context, tx *sql.Tx, conditions []func([]*warmboot.RuntimeSnapshot) error) error {
	if len(conditions) == 0 {
		return nil
	}
	if err := s.dialect.lockSnapshots(ctx, tx); err != nil {
		return err
	}
	all, err := list(ctx, tx, scanSnapshot, selectSnapshot)
	if err != nil {
		return err
	}
	for _, holds := range conditions {
		if err := holds(all); err != nil {
			return err
		}
	}
	return nil
}

// Snapshot implements warmboot.SnapshotStore.
func (s *Store) Snapshot(ctx context.Context, id warmboot.ID) (*warmboot.RuntimeSnapshot, error) {
	return s.snapshot(ctx, s.read, id, "")
}

func (s *Store) snapshot(ctx context.Context, q querier, id warmboot.ID, lock string) (*warmboot.RuntimeSnapshot, error) {
	const op = "find snapshot"
	snap, err := scanSnapshot(q.QueryRowContext(ctx, selectSnapshot+` WHERE id = $1`+lock, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noSnapshot(op, id)
	}
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	return snap, nil
}

func noSnapshot(op string, id warmboot.ID) error {
	return warmboot.Errorf(warmboot.NotFound, op, "there is no runtime snapshot %s; `warmboot snapshot ls` lists them", id)
}

// Snapshots implements warmboot.SnapshotStore.
func (s *Store) Snapshots(ctx context.Context, f warmboot.SnapshotFilter) ([]*warmboot.RuntimeSnapshot, error) {
	var c conditions
	oneOf(&c, `state`, f.States)
	equal(&c, `runtime_image_id`, f.RuntimeImageID)
	equal(&c, `host_id`, f.HostID)
	return page(ctx, s, "list snapshots", scanSnapshot, selectSnapshot, c, f.Page)
}

// UpdateSnapshot implements warmboot.SnapshotStore.
func (s *Store) UpdateSnapshot(ctx context.Context, id warmboot.ID, change func(*warmboot.RuntimeSnapshot) error) (*warmboot.RuntimeSnapshot, error) {
	const op = "update snapshot"
	return s.changeSnapshot(ctx, op, id, func(_ *sql.Tx, snap *warmboot.RuntimeSnapshot) error {
		before := snap.State
		if err := change(snap); err != nil {
			return err
		}
		if snap.State != before && !before.CanBecome(snap.State) {
			return warmboot.Errorf(warmboot.Conflict, op, "snapshot %s is %s and cannot become %s", id, before, snap.State)
		}
		return nil
	})
}

// FinishSnapshot implements warmboot.SnapshotStore.
func (s *Store) FinishSnapshot(ctx context.Context, snap *warmboot.RuntimeSnapshot, outdated []string) ([]warmboot.ID, error) {
	const op = "finish snapshot"
	var replaced []warmboot.ID
	_, err := s.changeSnapshot(ctx, op, snap.ID, func(tx *sql.Tx, now *warmboot.RuntimeSnapshot) error {
		if now.State != warmboot.SnapshotCreating {
			return warmboot.Errorf(warmboot.Conflict, op, "snapshot %s is %s, no longer being built", snap.ID, now.State)
		}
		if !now.Lease.Is(snap.Lease) {
			return warmboot.Errorf(warmboot.Conflict, op, "another manager has taken over the build of snapshot %s", snap.ID)
		}
		now.State, now.SnapshotPath, now.FCVersion, now.Metadata, now.Lease = warmboot.SnapshotReady, snap.SnapshotPath, snap.FCVersion, snap.Metadata, now.Lease.Release()
		// Two builds of one image that end at once take turns, so that the second sees that the first is ready.
		if err := lockImage(ctx, tx, now.RuntimeImageID, s.dialect.forUpdate); err != nil {
			return err
		}
		args := []any{string(now.RuntimeImageID), string(now.ID)}
		others := ` WHERE runtime_image_id = $1 AND id <> $2 AND state IN ('ready', 'unhealthy') AND platform IN (` + places(&args, append(outdated, now.Platform)) + `)`
		var err error
		if replaced, err = list(ctx, tx, func(row scanner) (id warmboot.ID, err error) { return id, row.Scan(&id) }, `SELECT id FROM runtime_snapshots`+others, args...); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE runtime_snapshots SET state = 'deleted'`+others, args...)
		return err
	})
	return replaced, err
}

// FailSnapshot implements warmboot.SnapshotStore.
func (s *Store) FailSnapshot(ctx context.Context, id warmboot.ID, reason string) error {
	_, err := s.changeSnapshot(ctx, "fail snapshot", id, func(_ *sql.Tx, snap *warmboot.RuntimeSnapshot) error {
		if snap.State != warmboot.SnapshotDeleted {
			snap.State, snap.Metadata.Error, snap.Lease = warmboot.SnapshotUnhealthy, plain(reason), snap.Lease.Release()
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

// RecordSuccesses implements warmboot.SnapshotStore.
func (s *Store) RecordSuccesses(ctx context.Context, id warmboot.ID, at time.Time, n int) error {
	const op = "count restores"
	return s.one(ctx, op, func(ctx context.Context, db executor) error {
		res, err := db.ExecContext(ctx, `UPDATE runtime_snapshots SET success_count = success_count + $1, failure_streak = 0, last_used_at = $2 WHERE id = $3`, n, stamp(at), string(id))
		if err != nil {
			return err
		}
		if found, err := res.RowsAffected(); err != nil || found == 0 {
			return errors.Join(err, noSnapshot(op, id))
		}
		return nil
	})
}

// RecordFailure implements warmboot.SnapshotStore. A snapshot deleted meanwhile is still counted, and stays deleted.
func (s *Store) RecordFailure(ctx context.Context, id warmboot.ID, at time.Time, reason string) (*warmboot.RuntimeSnapshot, error) {
	return s.changeSnapshot(ctx, "count restore", id, func(_ *sql.Tx, snap *warmboot.RuntimeSnapshot) error {
		used := at.UTC().Truncate(time.Microsecond)
		snap.LastUsedAt = &used
		snap.FailureCount++
		snap.FailureStreak++
		if snap.FailureStreak >= warmboot.UnhealthyAfter && snap.State == warmboot.SnapshotReady {
			snap.State, snap.Metadata.Error = warmboot.SnapshotUnhealthy, plain(reason)
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
		_, err = tx.ExecContext(ctx, `UPDATE runtime_snapshots SET host_id = $1, platform = $2, lease_owner = $3, lease_generation = $4, snapshot_path = $5, state = $6, fc_version = $7, success_count = $8, failure_count = $9, failure_streak = $10, attempt = $11, last_used_at = $12, metadata = $13 WHERE id = $14`,
			orNull(snap.HostID), snap.Platform, orNull(snap.Lease.Owner), snap.Lease.Generation, snap.SnapshotPath, string(snap.State), snap.FCVersion,
			snap.SuccessCount, snap.FailureCount, snap.FailureStreak, snap.Attempt, stampOrNull(snap.LastUsedAt), asJSON(snap.Metadata), string(id))
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
