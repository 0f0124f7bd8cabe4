package load

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"warmboot/internal/agent"
	"warmboot/internal/agentrpc"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/expect"
	"warmboot/internal/store"
	"warmboot/test/managerprocess"
)

// BenchmarkHosts is what a thousand hosts' signs of life cost the manager, over connections and with certificates of their own.
func BenchmarkHosts(b *testing.B) {
	const hosts, during = 1000, 30 * time.Second
	url := postgres(b)
	m := managerprocess.Start(b, managerprocess.Options{Name: "m", URL: url, API: "127.0.0.1:28080", Cluster: "127.0.0.1:28081"})
	db, err := store.Open(b.Context(), store.Config{URL: url, Log: slog.New(slog.DiscardHandler)})
	expect.NoError(b, err)
	b.Cleanup(func() { expect.NoError(b, db.Close()) })
	ca, err := authority.Open(b.Context(), db)
	expect.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	for i := range hosts {
		h := hosttest.New()
		h.Name, h.Address = fmt.Sprintf("h%d", i), "127.0.0.1:1"
		managers := agentrpc.NewManagers([]string{"127.0.0.1:28081"})
		token, _, err := ca.NewToken(ctx, db, "", time.Hour, "bench")
		expect.NoError(b, err)
		credentials, id, err := authority.JoinHost(ctx, filepath.Join(b.TempDir(), "agent"), token, managers)
		expect.NoError(b, err)
		managers.Use(credentials)
		h.ID = id
		inventory, err := h.Inventory(ctx)
		expect.NoError(b, err)
		expect.NoError(b, managers.HostHello(ctx, controlplane.Hello{ID: id, Name: h.Name, Address: h.Address, Inventory: inventory}))
		all.Go(func() {
			defer managers.Close()
			time.Sleep(agent.DefaultBeat * time.Duration(i) / hosts) // as they would come
			for beat := time.NewTicker(agent.DefaultBeat); ; {
				if err := managers.HostBeat(ctx, id, nil); err != nil && ctx.Err() == nil {
					b.Error(err)
					return
				}
				select {
				case <-beat.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	for b.Loop() {
		time.Sleep(2 * agent.DefaultBeat) // all have begun
		before := cpuTime(b, m.PID())
		time.Sleep(during)
		report(b, 100*float64(cpuTime(b, m.PID())-before)/float64(during), "manager-%-of-a-core")
	}
	up, err := m.Hosts(b.Context())
	expect.NoError(b, err)
	for _, h := range up {
		if h.State != "up" {
			b.Errorf("host %s is %s", h.Name, h.State)
		}
	}
}
