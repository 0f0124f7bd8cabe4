package httpapi_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
)

// patch sends a JSON merge patch.
func (r *rig) patch(path, body string, headers ...string) (reply, string) {
	r.t.Helper()
	return r.request(http.MethodPatch, path, body, append([]string{"Content-Type: application/merge-patch+json"}, headers...)...)
}

func TestContainerIsPatched(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "other", Image: "nginx"})
	r.create(api.CreateContainer{Name: "web", Image: "nginx", CPULimit: 1, MemoryLimitMB: 256, RestartPolicy: "always", PortMappings: []api.PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	_, err := r.client.StopContainer(t.Context(), "web", nil)
	r.must(err)
	spec := func(name string) string {
		c, err := r.client.Container(t.Context(), name)
		r.must(err)
		ports := ""
		for _, p := range c.PortMappings {
			ports += fmt.Sprintf(" %s:%d->%d/%s", p.HostIP, p.HostPort, p.ContainerPort, p.Protocol)
		}
		return fmt.Sprintf("%s %g CPUs %d MiB %s%s", c.Name, c.CPULimit, c.MemoryLimitMB, c.RestartPolicy, ports)
	}
	for _, c := range []struct {
		patch, want string
		later       []string // at_next_start
	}{
		{`{}`, "web 1 CPUs 256 MiB always 127.0.0.1:8080->80/tcp", nil},
		{`{"cpu_limit": 2.5}`, "web 2.5 CPUs 256 MiB always 127.0.0.1:8080->80/tcp", []string{"cpu_limit"}},
		{`{"memory_limit_mb": 512, "restart_policy": "on-failure:3"}`, "web 2.5 CPUs 512 MiB on-failure:3 127.0.0.1:8080->80/tcp", []string{"memory_limit_mb"}},
		{`{"port_mappings": [{"container_port": 53, "host_port": 5353, "protocol": "udp"}, {"container_port": 80, "host_ip": "0.0.0.0"}]}`, "web 2.5 CPUs 512 MiB on-failure:3 127.0.0.1:5353->53/udp 0.0.0.0:40001->80/tcp", []string{"port_mappings"}},
		{`{"cpu_limit": null, "memory_limit_mb": null}`, "web 0 CPUs 0 MiB on-failure:3 127.0.0.1:5353->53/udp 0.0.0.0:40001->80/tcp", []string{"cpu_limit", "memory_limit_mb"}},
		{`{"port_mappings": null, "restart_policy": null}`, "web 0 CPUs 0 MiB ", []string{"port_mappings"}},
		{`{"port_mappings": []}`, "web 0 CPUs 0 MiB ", []string{"port_mappings"}},
	} {
		res, body := r.patch("/v1/containers/web", c.patch)
		var out api.UpdatedContainer
		if r.must(json.Unmarshal([]byte(body), &out)); res.StatusCode != http.StatusOK {
			t.Fatalf("%s: %s", c.patch, body)
		}
		if got := spec("web"); got != c.want || out.Item.CPULimit != 2.5 && strings.Contains(c.want, "2.5") {
			t.Errorf("%s: %q, want %q", c.patch, got, c.want)
		}
		if diff := cmp.Diff(append([]string{}, c.later...), out.AtNextStart); diff != "" {
			t.Errorf("%s:\n%s", c.patch, diff)
		}
		if get, _ := r.request(http.MethodGet, "/v1/containers/web", ""); get.Header.Get("ETag") == "" || get.Header.Get("ETag") != res.Header.Get("ETag") {
			t.Errorf("%s: ETag %s, and then %s", c.patch, res.Header.Get("ETag"), get.Header.Get("ETag"))
		}
	}
	for body, want := range map[string]struct {
		status int
		code   warmboot.Code
	}{
		`{"image": "redis"}`:                    {422, warmboot.Invalid}, // not what can be changed
		`{"env_vars": {"A": "1"}}`:              {422, warmboot.Invalid},
		`{"state": "running"}`:                  {422, warmboot.Invalid},
		`{"title": "x"}`:                        {422, warmboot.Invalid},
		`{"name": null}`:                        {422, warmboot.Invalid},
		`{"name": ""}`:                          {422, warmboot.Invalid},
		`{"name": "-a"}`:                        {400, warmboot.Invalid},
		`{"name": "other"}`:                     {409, warmboot.Conflict},
		`{"cpu_limit": -1}`:                     {422, warmboot.Invalid},
		`{"cpu_limit": "1"}`:                    {422, warmboot.Invalid},
		`{"restart_policy": "sometimes"}`:       {422, warmboot.Invalid},
		`{"port_mappings": [{"host_port": 1}]}`: {422, warmboot.Invalid},
		`{"port_mappings": [{"container_port": 80, "host_ip": "x"}]}`: {400, warmboot.Invalid},
		`[]`:      {422, warmboot.Invalid},
		`{"name"`: {400, warmboot.Invalid},
	} {
		res, text := r.patch("/v1/containers/web", body)
		r.wantProblem(res, text, want.status, want.code)
	}
	if got := spec("web"); got != "web 0 CPUs 0 MiB " {
		t.Errorf("what was refused was done: %s", got)
	}
	res, body := r.request(http.MethodPatch, "/v1/containers/web", `{"cpu_limit": 1}`) // as application/json
	if res.StatusCode != http.StatusOK {
		t.Error(body)
	}
	res, body = r.request(http.MethodPatch, "/v1/containers/web", `cpu_limit=1`, "Content-Type: text/plain")
	if res.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	res, body = r.patch("/v1/containers/nobody", `{}`)
	r.wantProblem(res, body, http.StatusNotFound, warmboot.NotFound)
	r.awaitAudit("update-container", "not_found")

	// The next start has all that.
	r.patch("/v1/containers/web", `{"cpu_limit": 2, "name": "web2"}`)
	_, err = r.client.StartContainer(t.Context(), "web2")
	r.must(err)
	if c, err := r.client.WaitContainer(within(t), "web2", "started"); err != nil || c.State != "running" || c.CPULimit != 2 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestRunningContainerIsPatched(t *testing.T) {
	var told []string
	fail := false
	r := newRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnUpdate = func(_ context.Context, c warmboot.Container) error {
			if fail {
				return warmboot.Errorf(warmboot.Unavailable, "update", "Docker does not answer")
			}
			told = append(told, c.Spec.RestartPolicy.String())
			return nil
		}
	})
	c := r.create(api.CreateContainer{Name: "web", RestartPolicy: "no"})
	events := r.svc.Events("")
	for body, what := range map[string]string{`{"cpu_limit": 2}`: "stop it", `{"memory_limit_mb": 1}`: "stop it", `{"port_mappings": []}`: "stop it", `{"name": "x", "cpu_limit": 2}`: "stop it"} {
		res, text := r.patch("/v1/containers/web", body)
		if p := r.wantProblem(res, text, http.StatusConflict, warmboot.Conflict); !strings.Contains(p.Detail, what) {
			t.Error(text)
		}
	}
	res, body := r.patch("/v1/containers/web", `{"name": "web2", "restart_policy": "always"}`)
	if item := decode(t, body)["item"].(map[string]any); res.StatusCode != http.StatusOK || item["name"] != "web2" || item["restart_policy"] != "always" || item["id"] != c.ID {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if later := decode(t, body)["at_next_start"].([]any); len(later) != 1 || later[0] != "hostname" {
		t.Error(body)
	}
	if ev, err := events.Next(within(t)); err != nil || ev.Name != "web2" || ev.State != "running" {
		t.Errorf("%+v, %v", ev, err)
	}
	// What the host cannot be told is not so.
	fail = true
	res, body = r.patch("/v1/containers/web2", `{"restart_policy": "no"}`)
	r.wantProblem(res, body, http.StatusServiceUnavailable, warmboot.Unavailable)
	after, err := r.client.Container(t.Context(), "web2")
	if err != nil || after.RestartPolicy != "always" || after.State != "running" {
		t.Errorf("%+v, %v", after, err)
	}
	fail = false
	r.patch("/v1/containers/web2", `{"restart_policy": "no"}`)
	if diff := cmp.Diff([]string{"always", "no"}, told); diff != "" {
		t.Error(diff)
	}
	_, err = r.client.StopContainer(t.Context(), "web2", nil) // nobody holds its lease any more
	r.must(err)
	if r.patch("/v1/containers/web2", `{"restart_policy": "always"}`); len(told) != 2 {
		t.Error("the host was told of a container that does not run")
	}
}

func TestImagesAndHostsArePatched(t *testing.T) {
	r := newRig(t, nil)
	r.must(r.store.CreateImage(t.Context(), &warmboot.Image{ID: warmboot.NewID(), Name: "other", CreatedAt: time.Now()}))
	res, body := r.patch("/v1/images/runtime", `{"name": "base"}`)
	if item := decode(t, body)["item"].(map[string]any); res.StatusCode != http.StatusOK || item["name"] != "base" || item["id"] != r.image.ID {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	if get, _ := r.request(http.MethodGet, "/v1/images/base", ""); get.Header.Get("ETag") != res.Header.Get("ETag") {
		t.Error("another ETag")
	}
	for body, status := range map[string]int{`{"name": "other"}`: 409, `{"name": null}`: 422, `{"name": "a b"}`: 422, `{"digest": "x"}`: 422, `{}`: 200, `{"name": "base"}`: 200} {
		if res, text := r.patch("/v1/images/base", body); res.StatusCode != status {
			t.Errorf("%s: %d %s", body, res.StatusCode, text)
		}
	}
	img, err := r.client.RenameImage(t.Context(), "base", "runtime")
	if err != nil || img.Name != "runtime" {
		t.Error(img, err)
	}

	for body, cordoned := range map[string]bool{`{"cordoned": true}`: true} {
		res, text := r.patch("/v1/hosts/box", body)
		if item := decode(t, text)["item"].(map[string]any); res.StatusCode != http.StatusOK || item["cordoned"] != cordoned {
			t.Errorf("%s: %d %s", body, res.StatusCode, text)
		}
	}
	res, body = r.request(http.MethodPost, "/v1/containers", `{"image": "nginx"}`)
	r.wantProblem(res, body, http.StatusServiceUnavailable, warmboot.Unavailable)
	r.patch("/v1/hosts/box", `{"cordoned": false}`)
	r.create(api.CreateContainer{})
	res, body = r.patch("/v1/hosts/box", `{"name": "x"}`)
	r.wantProblem(res, body, http.StatusUnprocessableEntity, warmboot.Invalid)
}

// TestETags goes through every kind of entity: what the tag of an answer is good for, and when it is not any more.
func TestETags(t *testing.T) {
	r := newRig(t, nil)
	r.stored(&warmboot.Container{Name: "web", HostID: r.host.ID})
	snap := &warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: warmboot.ID(r.image.ID), State: warmboot.SnapshotReady, CreatedAt: time.Now()}
	r.must(r.store.CreateSnapshot(t.Context(), snap))
	r.must(r.store.CreateImage(t.Context(), &warmboot.Image{ID: warmboot.NewID(), Name: "spare", CreatedAt: time.Now()}))
	r.must(r.store.CreateHost(t.Context(), &warmboot.Host{ID: warmboot.NewID(), Name: "gone", State: warmboot.HostDown, CreatedAt: time.Now()}))
	r.token("ci", warmboot.RoleViewer, 0)
	for path, change := range map[string]struct {
		do  string // on the row, behind the server's back
		how bool   // If-None-Match is taken
	}{
		"/v1/containers/web":                       {`UPDATE containers SET exit_code = 3 WHERE name = 'web'`, true},
		"/v1/runtime-snapshots/" + string(snap.ID): {`UPDATE runtime_snapshots SET success_count = success_count + 1`, true},
		"/v1/images/spare":                         {`UPDATE images SET size_bytes = 7 WHERE name = 'spare'`, true},
		"/v1/hosts/gone":                           {`UPDATE hosts SET cordoned = 1 WHERE name = 'gone'`, false},
		"/v1/tokens/ci":                            {`UPDATE api_tokens SET role = 'operator' WHERE name = 'ci'`, false},
	} {
		tag := func() string {
			res, body := r.request(http.MethodGet, path, "")
			if tag := res.Header.Get("ETag"); res.StatusCode == http.StatusOK && len(tag) > 2 && tag[0] == '"' {
				return tag
			}
			t.Fatalf("%s: %d, ETag %q, %s", path, res.StatusCode, res.Header.Get("ETag"), body)
			return ""
		}
		first := tag()
		if again := tag(); again != first {
			t.Errorf("%s has %s, and then %s", path, first, again)
		}
		for _, have := range []string{first, "W/" + first, `"x", ` + first, "*"} {
			res, body := r.request(http.MethodGet, path, "", "If-None-Match: "+have)
			want := http.StatusOK
			if change.how {
				want = http.StatusNotModified
			}
			if res.StatusCode != want || change.how && (body != "" || res.Header.Get("ETag") != first) {
				t.Errorf("%s with If-None-Match %s: %d %s", path, have, res.StatusCode, body)
			}
		}
		if res, _ := r.request(http.MethodGet, path, "", `If-None-Match: "x"`); res.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
		r.sql(change.do)
		second := tag()
		if second == first {
			t.Errorf("%s has changed, and its ETag has not", path)
		}
		if res, _ := r.request(http.MethodGet, path, "", "If-None-Match: "+first); res.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
		for _, stale := range []string{first, "W/" + second, `"x"`, strings.Trim(second, `"`)} {
			res, body := r.request(http.MethodDelete, path, "", "If-Match: "+stale)
			r.wantProblem(res, body, http.StatusPreconditionFailed, warmboot.Stale)
		}
		if res, body := r.request(http.MethodDelete, path, "", `If-Match: "x", `+second); res.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", path, res.StatusCode, body)
		}
	}
}

// TestETagTellsOfTheHostToo: what an answer tells that is not in the entity's row counts as well.
func TestETagTellsOfTheHostToo(t *testing.T) {
	r := newRig(t, nil)
	r.stored(&warmboot.Container{Name: "web", HostID: r.host.ID})
	before, _ := r.request(http.MethodGet, "/v1/containers/web", "")
	r.sql(`UPDATE hosts SET state = 'down'`)
	tick := time.NewTicker(5 * time.Millisecond) // the manager reads its hosts once a second
	defer tick.Stop()
	for ctx := within(t); ; <-tick.C {
		res, body := r.request(http.MethodGet, "/v1/containers/web", "", "If-None-Match: "+before.Header.Get("ETag"))
		if res.StatusCode == http.StatusOK && strings.Contains(body, `"host_state":"down"`) {
			break
		}
		if res.StatusCode != http.StatusNotModified || ctx.Err() != nil {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
	}
	res, body := r.patch("/v1/containers/web", `{"name": "x"}`, "If-Match: "+before.Header.Get("ETag"))
	r.wantProblem(res, body, http.StatusPreconditionFailed, warmboot.Stale)
}

// TestOfTwoChangesOneIsStale lets many change the same container, all having seen the same.
func TestOfTwoChangesOneIsStale(t *testing.T) {
	r := newRig(t, nil)
	r.stored(&warmboot.Container{Name: "web"})
	for round := range 5 {
		_, tag, err := r.client.TaggedContainer(t.Context(), "web")
		r.must(err)
		var mu sync.Mutex
		won := 0
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				limit := float64(1 + 8*round + i) // never what it is already: that would be no change
				done, err := r.client.UpdateContainer(t.Context(), "web", api.UpdateContainer{CPULimit: &limit}, tag)
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && done.Item.CPULimit == limit:
					won++
				case warmboot.CodeOf(err) != warmboot.Stale:
					t.Errorf("%+v, %v", done, err)
				}
			})
		}
		wg.Wait()
		if won != 1 {
			t.Errorf("%d changes were made", won)
		}
	}
	// A name can be another container's by now.
	_, tag, err := r.client.TaggedContainer(t.Context(), "web")
	r.must(err)
	r.must(r.client.DeleteContainer(t.Context(), "web", true))
	r.create(api.CreateContainer{Name: "web"})
	for _, force := range []string{"true", "false"} {
		if force == "false" {
			_, err := r.client.StopContainer(t.Context(), "web", nil)
			r.must(err)
		}
		res, body := r.request(http.MethodDelete, "/v1/containers/web?force="+force, "", "If-Match: "+tag)
		r.wantProblem(res, body, http.StatusPreconditionFailed, warmboot.Stale)
	}
	if c, err := r.client.Container(t.Context(), "web"); err != nil || c.State != "stopped" {
		t.Errorf("%+v, %v", c, err)
	}
}
