package store

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"slices"
	"time"

	"warmboot"
)

const (
	tokenColumns = `id, name, role, digest, created_at, created_by, expires_at, last_used_at`
	selectToken  = `SELECT ` + tokenColumns + ` FROM api_tokens`
)

func scanToken(row scanner) (*warmboot.Token, error) {
	t := &warmboot.Token{}
	return t, row.Scan(&t.ID, &t.Name, &t.Role, &t.Digest, timeInto{&t.CreatedAt}, &t.CreatedBy, optTimeInto{&t.ExpiresAt}, optTimeInto{&t.LastUsedAt})
}

// CreateToken implements warmboot.TokenStore.
func (s *Store) CreateToken(ctx context.Context, t *warmboot.Token) error {
	const op = "create token"
	return s.create(ctx, op, t.ID, func(tx *sql.Tx) error {
		var taken string
		err := tx.QueryRowContext(ctx, `SELECT name FROM api_tokens WHERE name = $1`, t.Name).Scan(&taken)
		if err == nil {
			return warmboot.Errorf(warmboot.Conflict, op, "there is a token %s already; choose another name, or revoke that one with `warmboot token rm %s`", t.Name, t.Name)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO api_tokens (`+tokenColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
			string(t.ID), t.Name, string(t.Role), t.Digest, stamp(t.CreatedAt), t.CreatedBy, stampOrNull(t.ExpiresAt), stampOrNull(t.LastUsedAt))
		return err
	})
}

// FindToken implements warmboot.TokenStore.
func (s *Store) FindToken(ctx context.Context, ref string) (*warmboot.Token, error) {
	if id, err := warmboot.ParseID(ref); err == nil {
		return s.token(ctx, `id`, string(id), ref)
	}
	return s.token(ctx, `name`, plain(ref), ref)
}

// TokenByDigest implements warmboot.TokenStore. The database finds a digest, not a secret, so what its timing could tell is about the
// digest; from that no secret can be made.
func (s *Store) TokenByDigest(ctx context.Context, digest string) (*warmboot.Token, error) {
	return s.token(ctx, `digest`, digest, "with this secret")
}

func (s *Store) token(ctx context.Context, column, value, what string) (*warmboot.Token, error) {
	const op = "find token"
	t, err := scanToken(s.read.QueryRowContext(ctx, selectToken+` WHERE `+column+` = $1`, value))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noToken(op, what)
	}
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	return t, nil
}

func noToken(op, what string) error {
	return warmboot.Errorf(warmboot.NotFound, op, "there is no token %.80s; `warmboot token ls` lists them", what)
}

// Tokens implements warmboot.TokenStore.
func (s *Store) Tokens(ctx context.Context, p warmboot.Page) ([]*warmboot.Token, error) {
	return page(ctx, s, "list tokens", scanToken, selectToken, conditions{}, p)
}

// DeleteToken implements warmboot.TokenStore.
func (s *Store) DeleteToken(ctx context.Context, id warmboot.ID) error {
	const op = "revoke token"
	return s.tx(ctx, op, func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `DELETE FROM api_tokens WHERE id = $1`, string(id))
		if err != nil {
			return err
		}
		n, err := done.RowsAffected()
		if err == nil && n == 0 {
			return noToken(op, string(id))
		}
		return err
	})
}

// TouchTokens implements warmboot.TokenStore. Rows are taken in order, so that two managers do not wait for each other in a circle.
func (s *Store) TouchTokens(ctx context.Context, used map[warmboot.ID]time.Time) error {
	return s.tx(ctx, "record use of tokens", func(tx *sql.Tx) error {
		for _, id := range slices.Sorted(maps.Keys(used)) {
			at := stamp(used[id])
			if _, err := tx.ExecContext(ctx, `UPDATE api_tokens SET last_used_at = $1 WHERE id = $2 AND (last_used_at IS NULL OR last_used_at < $1)`, at, string(id)); err != nil {
				return err
			}
		}
		return nil
	})
}
