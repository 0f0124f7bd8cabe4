package httpapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
)

// stored stores containers as they are, without a machine, each newer than the one before.
func (r *rig) stored(all ...*warmboot.Container) {
	r.t.Helper()
	at := time.Now().Add(-time.Hour)
	for i, c := range all {
		c.ID, c.RuntimeImageID, c.CreatedAt = warmboot.NewID(), warmboot.ID(r.image.ID), at.Add(time.Duration(i)*time.Second)
		if c.Name == "" {
			c.Name = fmt.Sprintf("c%03d", i)
		}
		if c.State == "" {
			c.State = warmboot.ContainerStopped
		}
		r.must(r.store.CreateContainer(r.t.Context(), c))
	}
}

func TestListsComeInPages(t *testing.T) {
	r := newRig(t, nil)
	var all []*warmboot.Container
	var want []string
	for i := range 25 {
		all = append(all, &warmboot.Container{})
		want = append([]string{fmt.Sprintf("c%03d", i)}, want...)
	}
	r.stored(all...)
	var got []string
	pages := 0
	for cursor := ""; ; pages++ {
		res, body := r.request(http.MethodGet, "/v1/containers?limit=10&cursor="+url.QueryEscape(cursor), "")
		if res.StatusCode != http.StatusOK {
			t.Fatal(body)
		}
		page := decode(t, body)
		for _, item := range page["items"].([]any) {
			got = append(got, item.(map[string]any)["name"].(string))
		}
		next, more := page["next_cursor"]
		if !more {
			break
		}
		cursor = next.(string)
		if pages == 0 { // what comes and goes meanwhile shifts nothing
			r.must(r.store.DeleteContainer(t.Context(), all[15].ID)) // the last of this page
			r.stored(&warmboot.Container{Name: "late"})
		}
	}
	if pages != 2 {
		t.Errorf("there were %d pages before the last", pages)
	}
	// "late" is stored as an hour old, and so in its place among the others.
	if got = slices.DeleteFunc(got, func(name string) bool { return name == "late" }); cmp.Diff(want, got) != "" {
		t.Error(cmp.Diff(want, got))
	}
	for _, bad := range []string{"limit=0", "limit=1001", "limit=x", "cursor=%21", "cursor=bm8", "cursor=" + url.QueryEscape("MjAyNi0wMS0yNFQxMjowMDowMFogeA")} {
		for _, list := range []string{"/v1/containers", "/v1/runtime-snapshots", "/v1/images", "/v1/tokens"} {
			res, body := r.request(http.MethodGet, list+"?"+bad, "")
			if res.StatusCode != http.StatusBadRequest && res.StatusCode != http.StatusUnprocessableEntity {
				t.Errorf("%s?%s answered %d: %s", list, bad, res.StatusCode, body)
			}
		}
	}
}

func TestEveryListComesInPages(t *testing.T) {
	r := newRig(t, nil)
	ctx := t.Context()
	names := map[string][]string{"/v1/images": {"runtime"}, "/v1/tokens": {"admin"}, "/v1/hosts": {"box"}}
	for i := range 4 {
		name := fmt.Sprintf("x%d", i)
		r.must(r.store.CreateImage(ctx, &warmboot.Image{ID: warmboot.NewID(), Name: name, CreatedAt: time.Now()}))
		names["/v1/images"] = append([]string{name}, names["/v1/images"]...)
		r.token(name, warmboot.RoleViewer, 0)
		names["/v1/tokens"] = append([]string{name}, names["/v1/tokens"]...)
		r.must(r.store.CreateHost(ctx, &warmboot.Host{ID: warmboot.NewID(), Name: name, State: warmboot.HostDown, CreatedAt: time.Now()}))
		names["/v1/hosts"] = append(names["/v1/hosts"], name)
		r.must(r.store.CreateSnapshot(ctx, &warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: warmboot.ID(r.image.ID), State: warmboot.SnapshotDeleted, FCVersion: name, CreatedAt: time.Now()}))
		names["/v1/runtime-snapshots?all=true"] = append([]string{name}, names["/v1/runtime-snapshots?all=true"]...)
	}
	for list, want := range names {
		var got []string
		for cursor, more := "", true; more; {
			u, err := url.Parse(list)
			r.must(err)
			q := u.Query()
			q.Set("limit", "2")
			if cursor != "" {
				q.Set("cursor", cursor)
			}
			_, body := r.request(http.MethodGet, u.Path+"?"+q.Encode(), "")
			page := decode(t, body)
			items := page["items"].([]any)
			if len(items) > 2 {
				t.Fatalf("%s: %d items", list, len(items))
			}
			for _, item := range items {
				name, ok := item.(map[string]any)["name"]
				if !ok {
					name = item.(map[string]any)["fc_version"]
				}
				got = append(got, name.(string))
			}
			cursor, more = page["next_cursor"].(string)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", list, diff)
		}
	}
}

func TestListsCanBeNarrowed(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web-1", Image: "nginx"})
	r.create(api.CreateContainer{Name: "web-2", Image: "redis"})
	r.stored(&warmboot.Container{Name: "old", Image: "nginx", BootMethod: warmboot.BootWarm}, &warmboot.Container{Name: "odd", State: warmboot.ContainerFailed})
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	r.waitReady(id)
	for query, want := range map[string][]string{
		"":                                     {"web-2", "web-1", "odd", "old"},
		"?image=nginx":                         {"web-1", "old"},
		"?host=box":                            {"web-2", "web-1"},
		"?host=" + string(r.host.ID):           {"web-2", "web-1"},
		"?runtime_image=runtime&name_prefix=o": {"odd", "old"},
		"?boot_method=cold":                    {"web-2", "web-1"},
		"?boot_method=warm&state=stopped":      {"old"},
		"?state=stopped,failed":                {"odd", "old"},
		"?state=failed":                        {"odd"},
		"?name_prefix=web-1":                   {"web-1"},
	} {
		_, body := r.request(http.MethodGet, "/v1/containers"+query, "")
		got := []string{}
		for _, item := range decode(t, body)["items"].([]any) {
			got = append(got, item.(map[string]any)["name"].(string))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", query, diff)
		}
	}
	for query, want := range map[string]int{"": 1, "?state=ready": 1, "?state=deleted": 0, "?image=runtime": 1, "?host=box&image=" + r.image.ID: 1, "?state=creating,unhealthy": 0} {
		_, body := r.request(http.MethodGet, "/v1/runtime-snapshots"+query, "")
		if got := len(decode(t, body)["items"].([]any)); got != want {
			t.Errorf("%s: %d snapshots, want %d", query, got, want)
		}
	}
	// A name that nothing has is a mistake, and no empty list.
	for _, path := range []string{"/v1/containers?host=mars", "/v1/containers?runtime_image=mars", "/v1/runtime-snapshots?image=mars", "/v1/runtime-snapshots?host=mars"} {
		res, body := r.request(http.MethodGet, path, "")
		r.wantProblem(res, body, http.StatusNotFound, warmboot.NotFound)
	}
	for _, path := range []string{"/v1/containers?state=bored", "/v1/containers?boot_method=hot", "/v1/runtime-snapshots?state=bored"} {
		res, body := r.request(http.MethodGet, path, "")
		r.wantProblem(res, body, http.StatusUnprocessableEntity, warmboot.Invalid)
	}
}

func TestClientReadsPagesAsTheyAreNeeded(t *testing.T) {
	asked := 0
	r := newRig(t, func(_ *hosttest.Host, c *httpapi.Config) {})
	all := make([]*warmboot.Container, 1100)
	for i := range all {
		all[i] = &warmboot.Container{}
	}
	r.stored(all...)
	counted, err := client.New(client.Config{Addr: r.server.URL, Token: r.secret, HTTP: &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
		asked++
		return r.server.Client().Transport.RoundTrip(req)
	})}})
	r.must(err)
	for _, c := range []struct{ limit, breakAfter, want, asked int }{{0, 0, 1100, 3}, {3, 0, 3, 1}, {500, 0, 500, 1}, {501, 0, 501, 2}, {0, 2, 2, 1}, {5000, 0, 1100, 3}} {
		asked = 0
		seen := map[string]bool{}
		for container, err := range counted.EachContainer(t.Context(), client.ContainerFilter{Limit: c.limit}) {
			r.must(err)
			if seen[container.ID] = true; len(seen) == c.breakAfter {
				break
			}
		}
		if len(seen) != c.want || asked != c.asked {
			t.Errorf("limit %d: %d containers in %d requests, want %d in %d", c.limit, len(seen), asked, c.want, c.asked)
		}
	}
	whole, err := counted.Containers(t.Context())
	if err != nil || len(whole) != 1100 {
		t.Errorf("%d, %v", len(whole), err)
	}
	r.must(r.store.Close())
	for _, err := range counted.EachContainer(t.Context(), client.ContainerFilter{}) {
		r.wantCode(err, warmboot.Unavailable)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
