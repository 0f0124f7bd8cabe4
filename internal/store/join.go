package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"warmboot"
)

func scanAuthority(row scanner) (*warmboot.Authority, error) {
	a := &warmboot.Authority{}
	return a, row.Scan(&a.Certificate, &a.Key, timeInto{&a.CreatedAt})
}

const selectAuthority = `SELECT certificate, private_key, created_at FROM authority`

// Authority implements warmboot.JoinStore.
func (s *Store) Authority(ctx context.Context, create func() (*warmboot.Authority, error)) (*warmboot.Authority, error) {
	const op = "find certificate authority"
	a, err := scanAuthority(s.read.QueryRowContext(ctx, selectAuthority))
	if !errors.Is(err, sql.ErrNoRows) {
		return a, s.fail(ctx, op, err)
	}
	made, err := create()
	if err != nil {
		return nil, err
	}
	err = s.tx(ctx, op, func(tx *sql.Tx) (err error) {
		if _, err := tx.ExecContext(ctx, `INSERT INTO authority (id, certificate, private_key, created_at) VALUES (1, $1, $2, $3) ON CONFLICT (id) DO NOTHING`,
			made.Certificate, made.Key, stamp(made.CreatedAt)); err != nil {
			return err
		}
		a, err = scanAuthority(tx.QueryRowContext(ctx, selectAuthority))
		return err
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

// CreateJoinToken implements warmboot.JoinStore.
func (s *Store) CreateJoinToken(ctx context.Context, t *warmboot.JoinToken) error {
	return s.tx(ctx, "create join token", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO join_tokens (id, digest, host_id, created_by, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)`,
			string(t.ID), t.Digest, orNull(t.HostID), plain(t.CreatedBy), stamp(t.CreatedAt), stamp(t.ExpiresAt))
		return err
	})
}

// TakeJoinToken implements warmboot.JoinStore.
func (s *Store) TakeJoinToken(ctx context.Context, digest string, at time.Time) (*warmboot.JoinToken, error) {
	const op = "use join token"
	t := &warmboot.JoinToken{}
	err := s.tx(ctx, op, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM join_tokens WHERE expires_at <= $1`, stamp(at)); err != nil {
			return err
		}
		err := tx.QueryRowContext(ctx, `DELETE FROM join_tokens WHERE digest = $1 RETURNING id, digest, host_id, created_by, created_at, expires_at`, digest).
			Scan(&t.ID, &t.Digest, textInto[warmboot.ID]{&t.HostID}, &t.CreatedBy, timeInto{&t.CreatedAt}, timeInto{&t.ExpiresAt})
		if errors.Is(err, sql.ErrNoRows) {
			return warmboot.Errorf(warmboot.Unauthenticated, op, "this join token is not known: it was used, has expired, or is another cluster's; make a new one with `warmboot host token`")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}
