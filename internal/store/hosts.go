package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"warmboot"
)

const (
	hostColumns = `id, name, address, state, cordoned, beat, last_seen_at, created_at, inventory`
	selectHost  = `SELECT ` + hostColumns + ` FROM hosts`
)

func scanHost(row scanner) (*warmboot.Host, error) {
	h := &warmboot.Host{}
	return h, row.Scan(&h.ID, &h.Name, &h.Address, &h.State, &h.Cordoned, &h.Beat, optTimeInto{&h.LastSeenAt}, timeInto{&h.CreatedAt}, jsonInto{&h.Inventory})
}

// CreateHost implements warmboot.HostStore.
func (s *Store) CreateHost(ctx context.Context, h *warmboot.Host) error {
	const op = "add host"
	return s.tx(ctx, op, func(tx *sql.Tx) error {
		other, err := scanHost(tx.QueryRowContext(ctx, selectHost+` WHERE name = $1`, h.Name))
		if err == nil {
			return warmboot.Errorf(warmboot.Conflict, op, "there is a host %s already (%s); give this one another name, or remove that one with `warmboot host rm %s`", h.Name, other.ID.Short(), h.Name)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO hosts (`+hostColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			string(h.ID), h.Name, h.Address, string(h.State), h.Cordoned, h.Beat, stampOrNull(h.LastSeenAt), stamp(h.CreatedAt), asJSON(h.Inventory))
		return err
	})
}

// Host implements warmboot.HostStore.
func (s *Store) Host(ctx context.Context, id warmboot.ID) (*warmboot.Host, error) {
	return s.host(ctx, s.read, `id`, string(id), "")
}

// FindHost implements warmboot.HostStore.
func (s *Store) FindHost(ctx context.Context, ref string) (*warmboot.Host, error) {
	if id, err := warmboot.ParseID(ref); err == nil {
		return s.Host(ctx, id)
	}
	return s.host(ctx, s.read, `name`, ref, "")
}

func (s *Store) host(ctx context.Context, q querier, column, value, lock string) (*warmboot.Host, error) {
	const op = "find host"
	h, err := scanHost(q.QueryRowContext(ctx, selectHost+` WHERE `+column+` = $1`+lock, value))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, warmboot.Errorf(warmboot.NotFound, op, "there is no host %.80s; `warmboot host ls` lists them", value)
	}
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	return h, nil
}

// Hosts implements warmboot.HostStore.
func (s *Store) Hosts(ctx context.Context, after string, limit int) ([]*warmboot.Host, error) {
	var c conditions
	c.add(`name > ?`, after)
	all, err := list(ctx, s.read, scanHost, selectHost+c.where()+` ORDER BY name`+c.limit(limit), c.args...)
	return all, s.fail(ctx, "list hosts", err)
}

// UpdateHost implements warmboot.HostStore.
func (s *Store) UpdateHost(ctx context.Context, id warmboot.ID, change func(*warmboot.Host) error) (*warmboot.Host, error) {
	var h *warmboot.Host
	err := s.tx(ctx, "update host", func(tx *sql.Tx) (err error) {
		if h, err = s.host(ctx, tx, `id`, string(id), s.dialect.forUpdate); err != nil {
			return err
		}
		if err := change(h); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE hosts SET name = $1, address = $2, state = $3, cordoned = $4, inventory = $5 WHERE id = $6`,
			h.Name, h.Address, string(h.State), h.Cordoned, asJSON(h.Inventory), string(id))
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// BeatHosts implements warmboot.HostStore. Managers beat for different hosts, but a host that has just turned to another manager
// may be in two lists: rows are locked in one order.
func (s *Store) BeatHosts(ctx context.Context, ids []warmboot.ID, at time.Time) error {
	for some := range slices.Chunk(slices.Sorted(slices.Values(ids)), maxPlaces) {
		err := s.one(ctx, "count hosts' signs of life", func(ctx context.Context, db executor) error {
			args := []any{stamp(at)}
			_, err := db.ExecContext(ctx, `UPDATE hosts SET beat = beat + 1, last_seen_at = $1 WHERE id IN (`+places(&args, some)+`)`, args...)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// DeleteHost implements warmboot.HostStore. Snapshots that are deleted are forgotten with their host: nobody will ever reach their
// files again.
func (s *Store) DeleteHost(ctx context.Context, id warmboot.ID, conditions ...func(*warmboot.Host) error) error {
	const op = "remove host"
	return s.tx(ctx, op, func(tx *sql.Tx) error {
		h, err := s.host(ctx, tx, `id`, string(id), s.dialect.forUpdate)
		if err != nil {
			return err
		}
		if err := holds(h, conditions); err != nil {
			return err
		}
		var containers, snapshots int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM containers WHERE host_id = $1`, string(id)).Scan(&containers); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM runtime_snapshots WHERE host_id = $1 AND state <> 'deleted'`, string(id)).Scan(&snapshots); err != nil {
			return err
		}
		if containers+snapshots > 0 {
			return warmboot.Errorf(warmboot.Conflict, op, "host %s still has %d containers and %d snapshots; delete them first", h.Name, containers, snapshots)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM runtime_snapshots WHERE host_id = $1`, string(id)); err != nil {
			return err
		}
		if err := purgeImages(ctx, tx); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `DELETE FROM hosts WHERE id = $1`, string(id))
		return err
	})
}

// placeable sees that a container which is to be brought up goes to a host that takes it: managers choose by what they knew a moment ago.
// UpdateHost waits for the transactions that have asked, so whoever lists a host's containers after cordoning it sees them all.
func (s *Store) placeable(ctx context.Context, tx *sql.Tx, op string, c *warmboot.Container) error {
	if c.HostID == "" || c.State != warmboot.ContainerCreating {
		return nil
	}
	h, err := s.host(ctx, tx, `id`, string(c.HostID), s.dialect.forKeyShare)
	switch {
	case warmboot.CodeOf(err) == warmboot.NotFound:
		return warmboot.Errorf(warmboot.Unavailable, op, "the host has been removed (%w)", warmboot.ErrHostClosed)
	case err != nil:
		return err
	case h.Cordoned:
		return warmboot.Errorf(warmboot.Unavailable, op, "host %s is cordoned (%w)", h.Name, warmboot.ErrHostClosed)
	case h.State != warmboot.HostUp:
		return warmboot.Errorf(warmboot.Unavailable, op, "host %s is down (%w)", h.Name, warmboot.ErrHostClosed)
	}
	return nil
}
