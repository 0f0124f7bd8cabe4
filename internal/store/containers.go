package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"time"

	"warmboot"
)

const (
	containerColumns = `id, name, image, runtime_image_id, host_id, spec, state, lease_owner, lease_generation, boot_method, boot_reason, vm_id, snapshot_id, phases, exit_code, error, private, stopped_by_user, restarts, created_at, started_at, finished_at`
	selectContainer  = `SELECT ` + containerColumns + `, ` + leaseHeld + ` FROM containers`
	// leaseHeld is true if the owner of the row's lease lives. NULL is in nothing.
	leaseHeld = `COALESCE(lease_owner IN (SELECT id FROM managers), FALSE)`
)

func scanContainer(row scanner) (*warmboot.Container, error) {
	c := &warmboot.Container{}
	return c, row.Scan(&c.ID, &c.Name, &c.Image, &c.RuntimeImageID, textInto[warmboot.ID]{&c.HostID}, jsonInto{&c.Spec}, &c.State,
		textInto[warmboot.ID]{&c.Lease.Owner}, &c.Lease.Generation, textInto[warmboot.BootMethod]{&c.BootMethod}, &c.BootReason, &c.VMID,
		textInto[warmboot.ID]{&c.SnapshotID}, jsonInto{&c.Phases}, &c.ExitCode, &c.Error, &c.Private, &c.StoppedByUser, &c.Restarts,
		timeInto{&c.CreatedAt}, optTimeInto{&c.StartedAt}, optTimeInto{&c.FinishedAt}, &c.Lease.Held)
}

// CreateContainer implements warmboot.ContainerStore.
func (s *Store) CreateContainer(ctx context.Context, c *warmboot.Container) error {
	const op = "create container"
	return s.create(ctx, op, c.ID, func(tx *sql.Tx) error {
		if _, err := s.image(ctx, tx, `id`, string(c.RuntimeImageID), s.dialect.forShare); err != nil {
			return err
		}
		other, err := scanContainer(tx.QueryRowContext(ctx, selectContainer+` WHERE name = $1`, c.Name))
		if err == nil && other.ID == c.ID {
			return nil // an attempt whose answer was lost with the connection had stored it
		}
		if err == nil {
			return nameTaken(op, other)
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if err := s.placeable(ctx, tx, op, c); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO containers (`+containerColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)`,
			string(c.ID), c.Name, c.Image, string(c.RuntimeImageID), orNull(c.HostID), asJSON(c.Spec), string(c.State), orNull(c.Lease.Owner), c.Lease.Generation,
			orNull(c.BootMethod), plain(c.BootReason), c.VMID, orNull(c.SnapshotID), asJSON(c.Phases), c.ExitCode, plain(c.Error),
			c.Private, c.StoppedByUser, c.Restarts, stamp(c.CreatedAt), stampOrNull(c.StartedAt), stampOrNull(c.FinishedAt)); err != nil {
			return err
		}
		if c.State == warmboot.ContainerStopped || c.State == warmboot.ContainerFailed {
			return nil // it holds no ports
		}
		return s.claimPorts(ctx, tx, op, c)
	})
}

// nameTaken is for who wants a name that another container has.
func nameTaken(op string, other *warmboot.Container) error {
	return warmboot.Errorf(warmboot.Conflict, op, "the name %s is taken by container %s, which is %s; choose another name, or remove that one with `warmboot rm %s`", other.Name, other.ID.Short(), other.State, other.Name)
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
	var c conditions
	oneOf(&c, `state`, f.States)
	equal(&c, `host_id`, f.HostID)
	equal(&c, `runtime_image_id`, f.RuntimeImageID)
	equal(&c, `image`, f.Image)
	equal(&c, `boot_method`, f.BootMethod)
	if f.NamePrefix != "" {
		name := `name COLLATE ` + s.dialect.bytewise
		c.add(name+` >= ? AND `+name+` < ?`, plain(f.NamePrefix), plain(f.NamePrefix)+afterNames)
	}
	return page(ctx, s, "list containers", scanContainer, selectContainer, c, f.Page)
}

// afterNames sorts behind everything that a container's name may have (warmboot.ValidateContainerName).
const afterNames = "~"

// ContainerLoad implements warmboot.ContainerStore.
func (s *Store) ContainerLoad(ctx context.Context) (map[warmboot.ID]int, error) {
	const op = "count containers"
	type load struct {
		host warmboot.ID
		n    int
	}
	all, err := list(ctx, s.read, func(row scanner) (l load, err error) { return l, row.Scan(&l.host, &l.n) },
		`SELECT host_id, COUNT(*) FROM containers WHERE host_id IS NOT NULL AND state NOT IN ('stopped', 'failed') GROUP BY host_id`)
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	loads := map[warmboot.ID]int{}
	for _, l := range all {
		loads[l.host] = l.n
	}
	return loads, nil
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
		before, host, name := c.State, c.HostID, c.Name
		if err := change(c); err != nil {
			return err
		}
		if c.Name != name {
			other, err := scanContainer(tx.QueryRowContext(ctx, selectContainer+` WHERE name = $1`, c.Name))
			if err == nil {
				return nameTaken(op, other)
			}
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		if c.State != before && !before.CanBecome(c.State) {
			return warmboot.Errorf(warmboot.Conflict, op, "container %s is %s and cannot become %s", c.Name, before, c.State)
		}
		if host != c.HostID {
			if err := s.placeable(ctx, tx, op, c); err != nil {
				return err
			}
		}
		if c, err = scanContainer(tx.QueryRowContext(ctx, `UPDATE containers SET name = $1, image = $2, runtime_image_id = $3, host_id = $4, spec = $5, state = $6, lease_owner = $7, lease_generation = $8, boot_method = $9, boot_reason = $10,
				vm_id = $11, snapshot_id = $12, phases = $13, exit_code = $14, error = $15, private = $16, stopped_by_user = $17, restarts = $18, started_at = $19, finished_at = $20 WHERE id = $21 RETURNING `+containerColumns+`, `+leaseHeld,
			c.Name, c.Image, string(c.RuntimeImageID), orNull(c.HostID), asJSON(c.Spec), string(c.State), orNull(c.Lease.Owner), c.Lease.Generation, orNull(c.BootMethod), plain(c.BootReason),
			c.VMID, orNull(c.SnapshotID), asJSON(c.Phases), c.ExitCode, plain(c.Error), c.Private, c.StoppedByUser, c.Restarts, stampOrNull(c.StartedAt), stampOrNull(c.FinishedAt), string(id))); err != nil {
			return err
		}
		if before != c.State || host != c.HostID {
			return s.movePorts(ctx, tx, op, c)
		}
		return nil
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
		_, err = tx.ExecContext(ctx, `INSERT INTO deleted_containers (id, deleted_at) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, string(id), stamp(time.Now()))
		return err
	})
}

// DeletedContainers implements warmboot.ContainerStore.
func (s *Store) DeletedContainers(ctx context.Context, ids []warmboot.ID) (map[warmboot.ID]bool, error) {
	const op = "find deleted containers"
	deleted := map[warmboot.ID]bool{}
	for some := range slices.Chunk(ids, maxPlaces) {
		var args []any
		found, err := list(ctx, s.read, func(row scanner) (id warmboot.ID, err error) { return id, row.Scan(&id) },
			`SELECT id FROM deleted_containers WHERE id IN (`+places(&args, some)+`)`, args...)
		if err != nil {
			return nil, s.fail(ctx, op, err)
		}
		for _, id := range found {
			deleted[id] = true
		}
	}
	return deleted, nil
}

// maxPlaces is how many values are put into one statement; SQLite takes 32766, PostgreSQL 65535.
const maxPlaces = 1000

// ForgetDeletedContainers implements warmboot.ContainerStore.
func (s *Store) ForgetDeletedContainers(ctx context.Context, before time.Time) error {
	_, err := s.write.ExecContext(ctx, `DELETE FROM deleted_containers WHERE deleted_at < $1`, stamp(before))
	return s.fail(ctx, "forget deleted containers", err)
}
