package crash

import (
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/expect"
)

// TestDatabaseRestoredFromABackup puts a database back that knows nothing of the last hour, in which containers were created, stopped and deleted
// and the snapshot was replaced. What runs is known again, what was deleted does not come back as running, and what cannot boot any more is replaced.
func TestDatabaseRestoredFromABackup(t *testing.T) {
	for name, backup := range map[string]func(t *testing.T, url string) (restore func() string){
		"PostgreSQL": func(t *testing.T, url string) func() string {
			dump := postgres.Dump(t, url)
			return func() string { return postgres.Restore(t, dump) }
		},
		"SQLite": func(t *testing.T, url string) func() string {
			path := filepath.Join(t.TempDir(), "backup.db")
			db, err := sql.Open("sqlite", url)
			expect.NoError(t, err)
			_, err = db.ExecContext(t.Context(), "VACUUM INTO ?", path)
			expect.NoError(t, errors.Join(err, db.Close()))
			return func() string { return path }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlant(t, name)
			ctx := t.Context()
			create := func(name string) { // cold, so that none stands on a snapshot and its files may go
				_, err := p.CreateContainerAndWait(ctx, api.CreateContainer{Name: name, Image: "debian:trixie", ColdBoot: true}, client.Started)
				expect.NoError(t, err)
			}
			for _, c := range []string{"stays", "stopped-since", "deleted-since", "started-since", "deleted-stopped"} {
				create(c)
			}
			for _, c := range []string{"started-since", "deleted-stopped"} {
				_, err := p.StopContainer(ctx, c, nil)
				expect.NoError(t, err)
			}
			p.Stop()
			restore := backup(t, p.options.URL)
			p.restart()

			_, err := p.StopContainer(ctx, "stopped-since", nil)
			expect.NoError(t, err)
			for _, c := range []string{"deleted-since", "deleted-stopped"} {
				expect.NoError(t, p.DeleteContainer(ctx, c, true))
			}
			_, err = p.StartContainer(ctx, "started-since")
			expect.NoError(t, err)
			old, err := p.Snapshots(ctx)
			expect.NoError(t, err)
			_, err = p.RebuildSnapshot(ctx, old[0].ID)
			expect.NoError(t, err)
			p.settled("the snapshot to be replaced", func() error {
				if p.host.HasSnapshot(warmboot.ID(old[0].ID)) {
					return fmt.Errorf("the host still has snapshot %s", old[0].ID)
				}
				return p.snapshots(1)
			})
			create("created-since")
			create("created-and-stopped")
			_, err = p.StopContainer(ctx, "created-and-stopped", nil)
			expect.NoError(t, err)
			p.settled("the hour to be over", func() error {
				return p.containers(map[string]string{"stays": "running", "stopped-since": "stopped", "started-since": "running", "created-since": "running", "created-and-stopped": "stopped"})
			})
			p.Stop()

			p.options.URL = restore()
			p.restart()
			p.settled("after the backup", func() error {
				if _, err := p.CollectGarbage(ctx, false); err != nil { // as it happens once a day
					return err
				}
				return p.containers(map[string]string{
					"stays": "running", "stopped-since": "stopped", "started-since": "running", "created-since": "running", "created-and-stopped": "stopped", "deleted-since": "stopped", "deleted-stopped": "stopped",
				})
			})
			p.settled("a snapshot that boots", func() error { return p.snapshots(1) })
			if c := p.mustRun("afterwards"); *c.BootMethod != "warm" {
				t.Errorf("%+v", c)
			}
		})
	}
}
