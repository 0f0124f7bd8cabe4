package store

import (
	"context"

	"warmboot"
)

// Counts implements warmboot.Store. Only a container that has not ended can have a microVM, so that the many that have need not be looked
// at.
func (s *Store) Counts(ctx context.Context) (*warmboot.Counts, error) {
	type count struct {
		what, state string
		n           int
	}
	all, err := list(ctx, s.read, func(row scanner) (c count, err error) { return c, row.Scan(&c.what, &c.state, &c.n) }, `
		SELECT 'container', state, COUNT(*) FROM containers GROUP BY state
		UNION ALL SELECT 'vm', '', COUNT(*) FROM containers WHERE state IN ('creating', 'starting', 'running', 'stopping', 'deleting') AND vm_id <> ''
		UNION ALL SELECT 'snapshot', state, COUNT(*) FROM runtime_snapshots GROUP BY state
		UNION ALL SELECT 'manager', '', COUNT(*) FROM managers`)
	if err != nil {
		return nil, s.fail(ctx, "count what there is", err)
	}
	counts := &warmboot.Counts{Containers: map[warmboot.ContainerState]int{}, Snapshots: map[warmboot.SnapshotState]int{}}
	for _, c := range all {
		switch c.what {
		case "container":
			counts.Containers[warmboot.ContainerState(c.state)] = c.n
		case "snapshot":
			counts.Snapshots[warmboot.SnapshotState(c.state)] = c.n
		case "vm":
			counts.VMs = c.n
		case "manager":
			counts.Managers = c.n
		}
	}
	return counts, nil
}
