package load

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/access"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/expect"
	"warmboot/internal/httpapi"
	"warmboot/internal/planetest"
	"warmboot/internal/telemetry"
)

// manyContainers is what a page is read out of.
const manyContainers = 100_000

// fill makes many containers in PostgreSQL, without a machine: all have stopped but the oldest fifty, which run and booted cold, on an image and a host
// of their own. So a page of those is what is hardest to find.
const fill = `
	INSERT INTO containers (id, name, image, runtime_image_id, host_id, spec, state, boot_method, boot_reason, vm_id, phases, exit_code, error, created_at, started_at, finished_at)
	SELECT gen_random_uuid(), CASE WHEN n <= 50 THEN 'old-' ELSE 'busy-otter-' END || n, CASE WHEN n <= 50 THEN 'redis' ELSE 'registry.example.com/team/app:' || n % 40 END,
		$1::uuid, CASE WHEN n <= 50 THEN $2::uuid ELSE $3::uuid END,
		'{"args": ["-c", "exec /usr/local/bin/worker --queue default --concurrency 4"], "env_vars": {"LANG": "C.UTF-8", "QUEUE": "default"}, "restart_policy": {"name": "unless-stopped"}}',
		CASE WHEN n <= 50 THEN 'running' ELSE 'stopped' END, CASE WHEN n <= 50 THEN 'cold' ELSE 'warm' END, CASE WHEN n <= 50 THEN 'No runtime snapshot available' ELSE '' END, '',
		'[{"name": "disk", "duration_ns": 1234567}, {"name": "vmm", "duration_ns": 41234567}, {"name": "restore", "duration_ns": 31234567}, {"name": "reidentify", "duration_ns": 11234567}, {"name": "docker", "duration_ns": 2234567}]',
		CASE WHEN n <= 50 THEN NULL ELSE 0 END, '', now() - make_interval(secs => 100001 - n), now(), now()
	FROM generate_series(1, 100000) n`

// BenchmarkPages is what a page of 100 out of 100,000 containers costs whoever asks the API for it, on PostgreSQL.
func BenchmarkPages(b *testing.B) {
	url := postgres(b)
	here, there := hosttest.New(), hosttest.New()
	here.Name, there.Name = "here", "there"
	p, err := planetest.Start(b.Context(), planetest.Config{URL: url, Hosts: []*hosttest.Host{here, there}})
	expect.NoError(b, err)
	b.Cleanup(func() { _ = p.Close(); here.Close(); there.Close() })
	img, err := p.Service.RegisterImage(b.Context(), warmboot.Image{Name: "runtime", KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"})
	expect.NoError(b, err)
	db, _ := p.Store.SQL()
	if _, err := db.ExecContext(b.Context(), fill, string(img.ID), string(here.ID), string(there.ID)); err != nil {
		b.Fatal(err)
	}
	if _, err := db.ExecContext(b.Context(), `VACUUM ANALYZE containers`); err != nil { // as PostgreSQL does by itself in the end
		b.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	keeper := access.New(access.Config{Store: p.Store, Log: log})
	b.Cleanup(keeper.Close)
	metrics := telemetry.NewMetrics()
	if err := metrics.Watch(telemetry.Inventory{Service: p.Service, Jobs: p.Queue.Depth, Log: log}); err != nil {
		b.Fatal(err)
	}
	web := httptest.NewServer(httpapi.New(httpapi.Config{Service: p.Service, Access: keeper, Metrics: metrics, NoAuth: true, Log: log}))
	b.Cleanup(web.Close)
	middle := middleOf(b, web)
	for _, c := range []struct {
		name, path string
		want       int // containers in the answer
	}{
		{"first", "/v1/containers", 100},
		{"middle", "/v1/containers?cursor=" + middle, 100},
		{"alive", "/v1/containers?state=creating,running,stopping,starting,deleting", 50},
		{"state", "/v1/containers?state=running", 50},
		{"stopped", "/v1/containers?state=stopped&cursor=" + middle, 100},
		{"boot", "/v1/containers?boot_method=cold", 50},
		{"host", "/v1/containers?host=here", 50},
		{"image", "/v1/containers?image=redis", 50},
		{"name", "/v1/containers?name_prefix=old-", 50},
		{"several", "/v1/containers?name_prefix=busy&host=there&state=stopped&boot_method=warm&runtime_image=runtime", 100},
		{"thousand", "/v1/containers?limit=1000", 1000},
	} {
		b.Run(c.name, func(b *testing.B) {
			measure(b, func() {
				if got := len(ask(b, web, c.path).Items); got != c.want {
					b.Fatalf("%d containers, want %d", got, c.want)
				}
			})
		})
	}
	b.Run("scrape", func(b *testing.B) {
		measure(b, func() { get(b, web, "/metrics") })
	})
}

func measure(b *testing.B, do func()) {
	var took []time.Duration
	for b.Loop() {
		for range 500 {
			start := time.Now()
			do()
			took = append(took, time.Since(start))
		}
	}
	report(b, quantile(took, 0.5), "p50-ms")
	report(b, quantile(took, 0.99), "p99-ms")
	b.ReportMetric(0, "ns/op")
}

func get(b *testing.B, web *httptest.Server, path string) []byte {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, web.URL+path, http.NoBody)
	expect.NoError(b, err)
	res, err := web.Client().Do(req)
	expect.NoError(b, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		b.Fatal(fmt.Sprint(res.StatusCode, string(body), err))
	}
	return body
}

func ask(b *testing.B, web *httptest.Server, path string) (page api.Items[api.Container]) {
	if err := json.Unmarshal(get(b, web, path), &page); err != nil {
		b.Fatal(err)
	}
	return page
}

// middleOf reads all containers, and returns the cursor to the middle of them.
func middleOf(b *testing.B, web *httptest.Server) (middle string) {
	seen := 0
	for cursor, more := "", true; more; {
		page := ask(b, web, "/v1/containers?limit=1000&cursor="+cursor)
		cursor, more = page.NextCursor, page.NextCursor != ""
		if seen += len(page.Items); seen == manyContainers/2 {
			middle = cursor
		}
	}
	if seen != manyContainers || middle == "" {
		b.Fatalf("there are %d containers, and the middle is %q", seen, middle)
	}
	return middle
}
