package httpapi_test

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
	"warmboot/internal/telemetry"
)

// newMeasuredRig is a rig whose Service and API are counted.
func newMeasuredRig(t *testing.T, shape func(*hosttest.Host, *httpapi.Config)) *rig {
	t.Helper()
	metrics := telemetry.NewMetrics()
	r := newObservedRig(t, metrics, func(h *hosttest.Host, c *httpapi.Config) {
		c.Metrics = metrics
		if shape != nil {
			shape(h, c)
		}
	})
	r.must(metrics.Watch(telemetry.Inventory{Service: r.svc, Slots: func() (int, int) { return 2, 16384 }, Jobs: r.plane.Queue.Depth, Log: r.logger()}))
	return r
}

// scrape returns the samples of /metrics by name and labels.
func (r *rig) scrape() map[string]string {
	r.t.Helper()
	res, body := r.request(http.MethodGet, "/metrics", "")
	if res.StatusCode != http.StatusOK {
		r.t.Fatalf("/metrics answered %d: %s", res.StatusCode, body)
	}
	samples := map[string]string{}
	for line := range strings.Lines(body) {
		if i := strings.LastIndexByte(line, ' '); i > 0 && line[0] != '#' {
			samples[line[:i]] = strings.TrimSpace(line[i+1:])
		}
	}
	return samples
}

func (r *rig) wantSamples(want map[string]string) {
	r.t.Helper()
	got := r.scrape()
	for name, value := range want {
		if got[name] != value {
			r.t.Errorf("%s is %q, want %q", name, got[name], value)
		}
	}
}

func TestMetricsTellWhichWayContainersBooted(t *testing.T) {
	r := newMeasuredRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnWarm = func(_ context.Context, m controlplane.MachineSpec, _ warmboot.RuntimeSnapshot) error {
			if strings.HasPrefix(m.Hostname, "damaged") {
				return warmboot.Errorf(warmboot.Corrupt, "restore", "a file is cut off")
			}
			return nil
		}
		h.OnCold = func(context.Context, controlplane.MachineSpec) error {
			time.Sleep(100 * time.Millisecond) // a boot takes longer than a restore
			return nil
		}
		h.OnStart = func(_ context.Context, c warmboot.Container) error {
			if c.Name == "missing" {
				return warmboot.Errorf(warmboot.ImagePull, "pull", "there is no such image")
			}
			return nil
		}
	})
	r.create(api.CreateContainer{Name: "early"}) // no snapshot yet
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	r.waitReady(id)
	r.create(api.CreateContainer{Name: "warm"})
	r.create(api.CreateContainer{Name: "asked", ColdBoot: true})
	r.create(api.CreateContainer{Name: "damaged"})
	r.create(api.CreateContainer{Name: "missing"})
	r.request(http.MethodGet, "/v1/containers/warm", "")
	r.request(http.MethodGet, "/v1/containers/absent", "")
	r.request("BREW", "/coffee", "")
	r.wantSamples(map[string]string{
		`warmboot_boots_total{method="warm",outcome="success"}`:                                   "2",
		`warmboot_boots_total{method="warm",outcome="failed"}`:                                    "1",
		`warmboot_boots_total{method="cold",outcome="success"}`:                                   "3",
		`warmboot_boots_total{method="cold",outcome="failed"}`:                                    "0",
		`warmboot_fallbacks_total{reason="no_snapshot"}`:                                          "1",
		`warmboot_fallbacks_total{reason="corrupt"}`:                                              "1",
		`warmboot_container_starts_total{outcome="success"}`:                                      "4",
		`warmboot_container_starts_total{outcome="failed"}`:                                       "1",
		`warmboot_boot_seconds_count{method="warm"}`:                                              "2",
		`warmboot_phase_seconds_bucket{method="warm",phase="restore",le="0.1"}`:                   "2",
		`warmboot_phase_seconds_bucket{method="warm",phase="restore",le="0.05"}`:                  "0",
		`warmboot_phase_seconds_count{method="warm",phase="pull"}`:                                "1",
		`warmboot_snapshot_builds_total{outcome="success"}`:                                       "1",
		`warmboot_snapshot_build_seconds_count`:                                                   "1",
		`warmboot_snapshots{state="ready"}`:                                                       "1",
		`warmboot_containers{state="running"}`:                                                    "4",
		`warmboot_containers{state="failed"}`:                                                     "1",
		`warmboot_vms_running`:                                                                    "4",
		`warmboot_slots_used`:                                                                     "2",
		`warmboot_slots`:                                                                          "16384",
		`warmboot_store_up`:                                                                       "1",
		`warmboot_http_requests_total{method="GET",route="GET /v1/containers/{id}",status="200"}`: "1",
		`warmboot_http_requests_total{method="GET",route="GET /v1/containers/{id}",status="404"}`: "1",
		`warmboot_http_requests_total{method="other",route="none",status="404"}`:                  "1",
	})
	if saved, err := strconv.ParseFloat(r.scrape()["warmboot_saved_seconds_total"], 64); err != nil || saved <= 0 || saved > 60 {
		t.Errorf("a warm boot has saved %g s, %v", saved, err)
	}
	for name := range r.scrape() {
		if strings.Contains(name, "absent") || strings.Contains(name, "coffee") || strings.Contains(name, "cut off") {
			t.Errorf("a label holds what a caller sent: %s", name)
		}
	}
}

func TestMetricsTellOfHostsManagersAndJobs(t *testing.T) {
	hold := make(chan struct{})
	r := newMeasuredRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.MaxVMs = 7
		h.OnBuild = func(ctx context.Context, _ warmboot.RuntimeSnapshot) error {
			select {
			case <-hold:
			case <-ctx.Done():
			}
			return ctx.Err()
		}
	})
	seen := time.Now().Add(-time.Minute)
	r.must(r.store.CreateHost(t.Context(), &warmboot.Host{ID: warmboot.NewID(), Name: "gone", State: warmboot.HostDown, Cordoned: true, CreatedAt: seen, LastSeenAt: &seen, Inventory: warmboot.HostInventory{VMs: 3, MaxVMs: 10}}))
	r.must(r.store.CreateHost(t.Context(), &warmboot.Host{ID: warmboot.NewID(), Name: "new", State: warmboot.HostUp, CreatedAt: seen}))
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	for snap, step := (api.Snapshot{}), ""; snap.Metadata.Step == ""; { // its job runs
		snap, err = r.client.WaitSnapshot(within(t), id, step)
		r.must(err)
	}
	r.wantSamples(map[string]string{
		`warmboot_hosts{state="up"}`:           "2",
		`warmboot_hosts{state="down"}`:         "1",
		`warmboot_hosts_cordoned`:              "1",
		`warmboot_host_vms{host="gone"}`:       "3",
		`warmboot_host_vms_max{host="gone"}`:   "10",
		`warmboot_host_vms_max{host="box"}`:    "7",
		`warmboot_managers`:                    "1",
		`warmboot_jobs{state="running"}`:       "1",
		`warmboot_jobs{state="available"}`:     "0",
		`warmboot_jobs{state="retryable"}`:     "0",
		`warmboot_jobs{state="scheduled"}`:     "0",
		`warmboot_snapshots{state="creating"}`: "1",
	})
	got := r.scrape()
	for host, atLeast := range map[string]float64{"gone": 60, "box": 0} {
		if age, err := strconv.ParseFloat(got[`warmboot_host_last_seen_age_seconds{host="`+host+`"}`], 64); err != nil || age < atLeast || age > atLeast+30 {
			t.Errorf("host %s was seen %v seconds ago: %v", host, age, err)
		}
	}
	if _, told := got[`warmboot_host_last_seen_age_seconds{host="new"}`]; told {
		t.Error("a host that was never seen has an age")
	}
	close(hold)
	r.waitReady(id)
}

func TestFailedBuildIsCounted(t *testing.T) {
	r := newMeasuredRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnBuild = func(context.Context, warmboot.RuntimeSnapshot) error {
			return warmboot.Errorf(warmboot.Timeout, "build", "Docker did not answer")
		}
	})
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	snap := r.awaitBuild(id)
	if snap.State != "unhealthy" || !strings.Contains(snap.Metadata.Error, "Docker did not answer") {
		t.Fatalf("%+v", snap)
	}
	r.wantSamples(map[string]string{
		`warmboot_snapshot_builds_total{outcome="failed"}`: "1", `warmboot_snapshot_build_seconds_count`: "0", `warmboot_snapshots{state="unhealthy"}`: "1",
	})
}

// awaitBuild waits through the API until a build has ended.
func (r *rig) awaitBuild(id string) api.Snapshot {
	r.t.Helper()
	ctx := within(r.t)
	for step := ""; ; {
		snap, err := r.client.WaitSnapshot(ctx, id, step)
		r.must(err)
		if snap.State != "creating" {
			return snap
		}
		step = snap.Metadata.Step
	}
}

func TestWaitForASnapshotTellsItsSteps(t *testing.T) {
	frozen := make(chan struct{})
	r := newRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnBuild = func(ctx context.Context, _ warmboot.RuntimeSnapshot) error {
			select {
			case <-frozen:
			case <-ctx.Done():
			}
			return ctx.Err()
		}
	})
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	snap, err := r.client.WaitSnapshot(within(t), id, "")
	r.must(err)
	if snap.State != "creating" || snap.Metadata.Step != "booting" {
		t.Fatalf("%+v", snap)
	}
	res, body := r.request(http.MethodGet, "/v1/runtime-snapshots/"+id+"/wait?step=booting&timeout=0", "")
	if res.StatusCode != http.StatusOK || !strings.Contains(body, `"creating"`) {
		t.Fatalf("a wait that has timed out answers %d %s", res.StatusCode, body)
	}
	close(frozen)
	if snap := r.awaitBuild(id); snap.State != "ready" {
		t.Fatalf("%+v", snap)
	}
	res, body = r.request(http.MethodGet, "/v1/runtime-snapshots/0195f2c4-0000-4000-8000-000000000009/wait", "")
	r.wantProblem(res, body, http.StatusNotFound, warmboot.NotFound)
}

func TestDatabaseGoneIsToldBothWays(t *testing.T) {
	r := newMeasuredRig(t, nil)
	res, body := r.request(http.MethodGet, "/readyz", "")
	if res.StatusCode != http.StatusOK || strings.TrimSpace(body) != `{"ready":true,"checks":[{"name":"store","ok":true},{"name":"host","ok":true}]}` {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	r.must(r.store.Close())
	res, body = r.request(http.MethodGet, "/readyz", "")
	if res.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, `{"ready":false,"checks":[{"name":"store","ok":false,"error":"`) {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	r.wantSamples(map[string]string{`warmboot_store_up`: "0", `warmboot_slots_used`: "2"})
}

func TestMonitoringNeedsAToken(t *testing.T) {
	r := newMeasuredRig(t, nil)
	viewer := r.token("prometheus", warmboot.RoleViewer, 0)
	for _, path := range []string{"/metrics", "/readyz"} {
		res, body := r.request(http.MethodGet, path, "", "Authorization: ")
		r.wantProblem(res, body, http.StatusUnauthorized, warmboot.Unauthenticated)
		if res, body := r.request(http.MethodGet, path, "", "Authorization: Bearer "+viewer); res.StatusCode != http.StatusOK {
			t.Errorf("%s with a viewer's token answered %d: %s", path, res.StatusCode, body)
		}
	}
	r.wantSamples(map[string]string{`warmboot_http_requests_total{method="GET",route="GET /metrics",status="401"}`: "1"})
}
