package store

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"strings"

	"warmboot"
)

const (
	containerColumns = `id, name, image, runtime_image_id, spec, state, boot_method, boot_reason, vm_id, snapshot_id, phases, exit_code, error, created_at, started_at, finished_at`
	selectContainer  = `SELECT ` + containerColumns + ` FROM containers`
)

func scanContainer(row scanner) (*warmboot.Container, error) {
	c := &warmboot.Container{}
	return c, row.Scan(&c.ID, &c.Name, &c.Image, &c.RuntimeImageID, jsonInto{&c.Spec}, &c.State, textInto[warmboot.BootMethod]{&c.BootMethod}, &c.BootReason, &c.VMID,
		textInto[warmboot.ID]{&c.SnapshotID}, jsonInto{&c.Phases}, &c.ExitCode, &c.Error, timeInto{&c.CreatedAt}, optTimeInto{&c.StartedAt}, optTimeInto{&c.FinishedAt})
}

// CreateContainer implements warmboot.ContainerStore.
func (s *Store) CreateContainer(ctx context.Context, c *warmboot.Container) error {
	const op = "create container"
	return s.tx(ctx, op, func(tx *sql.Tx) error {
		if _, err := s.image(ctx, tx, `id`, string(c.RuntimeImageID), s.dialect.forShare); err != nil {
			return err
		}
		other, err := scanContainer(tx.QueryRowContext(ctx, selectContainer+` WHERE name = $1`, c.Name))
		if err == nil && other.ID == c.ID {
			return nil // an attempt whose answer was lost with the connection had stored it
		}
		if err == nil {
			return warmboot.Errorf(warmboot.Conflict, op, "the name %s is taken by container %s, which is %s; choose another name, or remove that one with `warmboot rm %s`", c.Name, other.ID.Short(), other.State, c.Name)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO containers (`+containerColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
			string(c.ID), c.Name, c.Image, string(c.RuntimeImageID), asJSON(c.Spec), string(c.State), orNull(c.BootMethod), plain(c.BootReason), c.VMID,
			orNull(c.SnapshotID), asJSON(c.Phases), c.ExitCode, plain(c.Error), stamp(c.CreatedAt), stampOrNull(c.StartedAt), stampOrNull(c.FinishedAt)); err != nil {
			return err
		}
		return s.claimPorts(ctx, tx, op, c)
	})
}

// Container implements warmboot.ContainerStore.
func (s *Store) Container(ctx context.Context, id warmboot.ID) (*warmboot.Container, error) {
	return s.container(ctx, s.read, id, "")
}

func (s *Store) container(ctx context.Context, q querier, id warmboot.ID, lock string) (*warmboot.Container, error) {
	const op = "find container"
	c, err := scanContainer(q.QueryRowContext(ctx, selectContainer+` WHERE id = $1`+lock, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, noContainer(string(id))
	}
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	return c, nil
}

func noContainer(ref string) error {
	return warmboot.Errorf(warmboot.NotFound, "find container", "there is no container %.80s; `warmboot ps -a` lists them", ref)
}

// FindContainer implements warmboot.ContainerStore. A name goes before the beginning of an id. The beginning may be typed
// with or without the id's dashes.
func (s *Store) FindContainer(ctx context.Context, ref string) (*warmboot.Container, error) {
	const op = "find container"
	if id, err := warmboot.ParseID(ref); err == nil {
		return s.Container(ctx, id)
	}
	c, err := scanContainer(s.read.QueryRowContext(ctx, selectContainer+` WHERE name = $1`, ref))
	if err == nil {
		return c, nil
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return nil, s.fail(ctx, op, err)
	}
	prefix := strings.ToLower(strings.ReplaceAll(ref, "-", ""))
	if prefix == "" || len(prefix) > 32 || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, noContainer(ref)
	}
	found, err := list(ctx, s.read, scanContainer, selectContainer+` WHERE REPLACE(CAST(id AS TEXT), '-', '') LIKE $1 ORDER BY created_at DESC LIMIT 2`, prefix+"%")
	switch {
	case err != nil:
		return nil, s.fail(ctx, op, err)
	case len(found) == 0:
		return nil, noContainer(ref)
	case len(found) > 1:
		return nil, warmboot.Errorf(warmboot.Conflict, op, "several container ids begin with %s, among them %s (%s) and %s (%s); type more of it", ref, found[0].ID.Short(), found[0].Name, found[1].ID.Short(), found[1].Name)
	}
	return found[0], nil
}

// Containers implements warmboot.ContainerStore.
func (s *Store) Containers(ctx context.Context, f warmboot.ContainerFilter) ([]*warmboot.Container, error) {
	query, args := selectContainer, []any{}
	if len(f.States) > 0 {
		query += ` WHERE state IN (`
		for i, state := range f.States {
			if i > 0 {
				query += `, `
			}
			query += `$` + strconv.Itoa(i+1)
			args = append(args, string(state))
		}
		query += `)`
	}
	all, err := list(ctx, s.read, scanContainer, query+` ORDER BY created_at DESC, id DESC`, args...)
	return all, s.fail(ctx, "list containers", err)
}

// UpdateContainer implements warmboot.ContainerStore. A container's id and time of creation cannot be altered. Others
// wait meanwhile, so change must be quick.
func (s *Store) UpdateContainer(ctx context.Context, id warmboot.ID, change func(*warmboot.Container) error) (*warmboot.Container, error) {
	const op = "update container"
	var c *warmboot.Container
	err := s.tx(ctx, op, func(tx *sql.Tx) (err error) {
		if c, err = s.container(ctx, tx, id, s.dialect.forUpdate); err != nil {
			return err
		}
		before := c.State
		if err := change(c); err != nil {
			return err
		}
		if c.State != before && !before.CanBecome(c.State) {
			return warmboot.Errorf(warmboot.Conflict, op, "container %s is %s and cannot become %s", c.Name, before, c.State)
		}
		if _, err = tx.ExecContext(ctx, `UPDATE containers SET name = $1, image = $2, runtime_image_id = $3, spec = $4, state = $5, boot_method = $6, boot_reason = $7, vm_id = $8, snapshot_id = $9, phases = $10, exit_code = $11, error = $12, started_at = $13, finished_at = $14 WHERE id = $15`,
			c.Name, c.Image, string(c.RuntimeImageID), asJSON(c.Spec), string(c.State), orNull(c.BootMethod), plain(c.BootReason), c.VMID,
			orNull(c.SnapshotID), asJSON(c.Phases), c.ExitCode, plain(c.Error), stampOrNull(c.StartedAt), stampOrNull(c.FinishedAt), string(id)); err != nil {
			return err
		}
		if before != c.State {
			if err := s.movePorts(ctx, tx, op, c); err != nil {
				return err
			}
		}
		c, err = s.container(ctx, tx, id, "")
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// DeleteContainer implements warmboot.ContainerStore.
func (s *Store) DeleteContainer(ctx context.Context, id warmboot.ID) error {
	return s.tx(ctx, "delete container", func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM containers WHERE id = $1`, string(id))
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return errors.Join(err, noContainer(string(id)))
		}
		return nil
	})
}
