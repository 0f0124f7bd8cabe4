package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/access"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
	"warmboot/internal/planetest"
)

// TestCreatesMayBeSentAgain sends each kind of create twice with one key.
func TestCreatesMayBeSentAgain(t *testing.T) {
	r := newRig(t, nil)
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	r.waitReady(id)
	for _, c := range []struct {
		name, path, body, another string
		count                     func() int
	}{
		{"container", "/v1/containers", `{"image": "debian:trixie"}`, `{"image": "debian:sid"}`, func() int {
			all, err := r.client.Containers(t.Context())
			r.must(err)
			return len(all)
		}},
		{"rebuild", "/v1/runtime-snapshots/" + id + "/rebuild", "", "", func() int {
			all, err := r.store.Snapshots(t.Context(), warmboot.SnapshotFilter{})
			r.must(err)
			return len(all)
		}},
		{"snapshot", "/v1/runtime-snapshots", `{"runtime_image_id": "` + r.image.ID + `"}`, `{"runtime_image_id": "0195f2c4-0000-4000-8000-000000000001"}`, func() int {
			all, err := r.store.Snapshots(t.Context(), warmboot.SnapshotFilter{})
			r.must(err)
			return len(all)
		}},
		{"image", "/v1/images", `{"name": "x", "kernel_path": "/srv/images/k", "rootfs_path": "/srv/images/r"}`, `{"name": "y", "kernel_path": "/srv/images/k", "rootfs_path": "/srv/images/r"}`, func() int {
			all, err := r.client.Images(t.Context())
			r.must(err)
			return len(all)
		}},
		{"known image", "/v1/images", `{"name": "x", "kernel_path": "/srv/images/k", "rootfs_path": "/srv/images/r"}`, "", func() int { return 0 }},
		{"token", "/v1/tokens", `{"name": "ci", "role": "viewer"}`, `{"name": "ci", "role": "admin"}`, func() int {
			all, err := r.client.Tokens(t.Context())
			r.must(err)
			return len(all)
		}},
	} {
		key := "Idempotency-Key: " + c.name
		first, body := r.request(http.MethodPost, c.path, c.body, key)
		if first.StatusCode/100 != 2 || first.Header.Get("Idempotent-Replayed") != "" {
			t.Fatalf("%s: %d %s", c.name, first.StatusCode, body)
		}
		before := c.count()
		if made, _ := decode(t, body)["id"].(string); c.name == "snapshot" || c.name == "rebuild" {
			r.waitReady(made) // else it would be joined
			before = c.count()
		}
		spaced := strings.ReplaceAll(c.body, ": ", ":   ") // the same to who reads it
		again, repeated := r.request(http.MethodPost, c.path, spaced, key)
		if again.StatusCode != first.StatusCode || repeated != body || again.Header.Get("Idempotent-Replayed") != "true" {
			t.Errorf("%s: first %d %s, then %d %s", c.name, first.StatusCode, body, again.StatusCode, repeated)
		}
		if n := c.count(); n != before {
			t.Errorf("%s: there were %d, and now there are %d", c.name, before, n)
		}
		if c.another == "" {
			continue
		}
		res, text := r.request(http.MethodPost, c.path, c.another, key)
		if p := r.wantProblem(res, text, http.StatusConflict, warmboot.Conflict); !strings.Contains(p.Detail, "was used for another request") {
			t.Errorf("%s: %s", c.name, text)
		}
	}
	// Another operation is another request, and another token another sender.
	res, text := r.request(http.MethodPost, "/v1/images", `{"name": "z", "kernel_path": "/srv/images/k", "rootfs_path": "/srv/images/r"}`, "Idempotency-Key: container")
	r.wantProblem(res, text, http.StatusConflict, warmboot.Conflict)
	other := r.token("other", warmboot.RoleOperator, 0)
	res, text = r.request(http.MethodPost, "/v1/containers", `{"image": "debian:trixie"}`, "Idempotency-Key: container", "Authorization: Bearer "+other)
	if res.StatusCode != http.StatusCreated || res.Header.Get("Idempotent-Replayed") != "" {
		t.Errorf("%d %s", res.StatusCode, text)
	}
	r.awaitAudit("create-container", "ok")
	r.request(http.MethodPost, "/v1/containers", `{"image": "debian:trixie"}`, "Idempotency-Key: container", "Authorization: Bearer "+other)
	r.awaitAudit("create-container", "repeated")
	res, text = r.request(http.MethodPost, "/v1/containers", `{"image": "debian:trixie"}`, "Idempotency-Key: "+strings.Repeat("k", 256))
	r.wantProblem(res, text, http.StatusUnprocessableEntity, warmboot.Invalid)
}

// TestASecretGivenAgainIsKeptFromTheDatabase looks for the secret, and for the sender's, in the database's files.
func TestASecretGivenAgainIsKeptFromTheDatabase(t *testing.T) {
	r := newRig(t, nil)
	create := func(name string) api.CreatedToken {
		var made api.CreatedToken
		res, body := r.request(http.MethodPost, "/v1/tokens", `{"name": "`+name+`", "role": "viewer"}`, "Idempotency-Key: of "+name)
		if r.must(json.Unmarshal([]byte(body), &made)); res.StatusCode != http.StatusCreated {
			t.Fatal(body)
		}
		return made
	}
	first, again := create("ci"), create("ci")
	if first.Secret == "" || first.Secret != again.Secret || first.Item.ID != again.Item.ID {
		t.Fatalf("%+v, then %+v", first, again)
	}
	_, err := r.clientOf(again.Secret).Access(t.Context())
	r.must(err)
	receipts := r.dump("SELECT key_digest || request_digest || HEX(secret) FROM receipts")
	if !strings.Contains(receipts, "|") {
		t.Fatal("there is no receipt")
	}
	for _, secret := range []string{first.Secret, r.secret, fmt.Sprintf("%X", first.Secret), "of ci"} {
		if strings.Contains(receipts, secret) {
			t.Errorf("%s is in the database", secret)
		}
	}
	r.must(r.client.RevokeToken(t.Context(), "ci"))
	res, body := r.request(http.MethodPost, "/v1/tokens", `{"name": "ci", "role": "viewer"}`, "Idempotency-Key: of ci")
	r.wantProblem(res, body, http.StatusNotFound, warmboot.NotFound)
}

// TestAFailedCreateLeavesItsKeyFree sends what fails again with the same key, until it succeeds.
func TestAFailedCreateLeavesItsKeyFree(t *testing.T) {
	r := newRig(t, nil)
	r.stored(&warmboot.Container{Name: "web"})
	const body, key = `{"name": "web", "image": "nginx"}`, "Idempotency-Key: k"
	for range 2 {
		res, text := r.request(http.MethodPost, "/v1/containers", body, key)
		r.wantProblem(res, text, http.StatusConflict, warmboot.Conflict)
	}
	r.must(r.client.DeleteContainer(t.Context(), "web", true))
	res, text := r.request(http.MethodPost, "/v1/containers", body, key)
	if res.StatusCode != http.StatusCreated {
		t.Fatal(text)
	}
	// What was made is told even when it is gone.
	r.must(r.client.DeleteContainer(t.Context(), "web", true))
	if _, again := r.request(http.MethodPost, "/v1/containers", body, key); again != text {
		t.Errorf("first %s, then %s", text, again)
	}
	r.sql(`UPDATE receipts SET created_at = '2026-01-01T00:00:00.000000Z'`)
	n, err := r.store.PruneReceipts(t.Context(), time.Now().Add(-warmboot.ReceiptsKept))
	if err != nil || n != 2 { // the other is of the rig's image
		t.Fatal(n, err)
	}
	if _, again := r.request(http.MethodPost, "/v1/containers", body, key); again == text {
		t.Error("it is told after a day")
	}
}

// manager is one of several that share a database.
type manager struct {
	plane  *planetest.Plane
	server *httptest.Server
}

func newManager(t *testing.T, url, name string, host *hosttest.Host, shape func(*controlplane.Config)) *manager {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	p, err := planetest.Start(t.Context(), planetest.Config{URL: url, Reach: hosttest.Hosts{host}, Shape: func(c *controlplane.Config) {
		c.Name, c.Beat, c.DeadAfter, c.HostDownAfter = name, 50*time.Millisecond, time.Second, time.Minute
		if shape != nil {
			shape(c)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() }) // one that was cut off may find the store closed
	keeper := access.New(access.Config{Store: p.Store, Log: log, Static: staticToken})
	t.Cleanup(keeper.Close)
	m := &manager{plane: p, server: httptest.NewServer(httpapi.New(httpapi.Config{Service: p.Service, Access: keeper, Log: log}))}
	t.Cleanup(m.server.Close)
	return m
}

// create sends a create with a key, and returns the id in the answer.
func (m *manager) create(ctx context.Context, key, body string) (id string, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.server.URL+"/v1/containers", strings.NewReader(body))
	if err != nil {
		return "", false, err
	}
	req.Header = http.Header{"Authorization": {"Bearer " + staticToken}, "Content-Type": {"application/json"}, "Idempotency-Key": {key}}
	res, err := m.server.Client().Do(req)
	if err != nil {
		return "", false, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return "", false, err
	}
	var made api.Created
	if json.Unmarshal(text, &made) != nil || res.StatusCode != http.StatusCreated {
		return "", false, fmt.Errorf("%d %s", res.StatusCode, text)
	}
	return made.ID, res.Header.Get("Idempotent-Replayed") == "true", nil
}

func TestTwoManagersMakeOneThingOfOneRequest(t *testing.T) {
	t.Parallel()
	url, host := postgres.Database(t), hosttest.New()
	t.Cleanup(host.Close)
	a, b := newManager(t, url, "a", host, nil), newManager(t, url, "b", host, nil)
	if err := host.Join(t.Context(), func() controlplane.Reports { return a.plane.Service }); err != nil {
		t.Fatal(err)
	}
	if _, err := a.plane.Service.RegisterImage(t.Context(), warmboot.Image{Name: "runtime", KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"}); err != nil {
		t.Fatal(err)
	}
	knows(t, b, host)
	for round := range 5 {
		for _, body := range []string{`{"image": "nginx"}`, fmt.Sprintf(`{"image": "nginx", "name": "web-%d"}`, round)} {
			var mu sync.Mutex
			ids, firsts := map[string]int{}, 0
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					id, again, err := []*manager{a, b}[i%2].create(within(t), fmt.Sprint(round, len(body)), body)
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					if ids[id]++; !again {
						firsts++
					}
				})
			}
			wg.Wait()
			if len(ids) != 1 || firsts != 1 {
				t.Errorf("%s: %v, %d of them first", body, ids, firsts)
			}
		}
	}
	if all, err := a.plane.Service.Containers(t.Context(), warmboot.ContainerFilter{}); err != nil || len(all) != 10 {
		t.Errorf("there are %d containers: %v", len(all), err)
	}
}

// knows waits until a manager knows a host, as it does from its next beat on.
func knows(t *testing.T, m *manager, host *hosttest.Host) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for ctx := within(t); m.plane.Service.HostState(host.ID) != warmboot.HostUp; <-tick.C {
		if ctx.Err() != nil {
			t.Fatal("it does not know the host")
		}
	}
}

// TestManagerDiesBetweenCreateAndAnswer cuts a manager off in the moment in which what it was asked for is stored. Whoever asked sends the request
// again, to the other manager, and is given what the first has made; and that the other one brings up.
func TestManagerDiesBetweenCreateAndAnswer(t *testing.T) {
	t.Parallel()
	url, host := postgres.Database(t), hosttest.New()
	t.Cleanup(host.Close)
	link := postgres.Link(t, url)
	stored, end := make(chan struct{}), make(chan struct{})
	b := newManager(t, url, "b", host, nil)
	if err := host.Join(t.Context(), func() controlplane.Reports { return b.plane.Service }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.plane.Service.RegisterImage(t.Context(), warmboot.Image{Name: "runtime", KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"}); err != nil {
		t.Fatal(err)
	}
	a := newManager(t, link.URL, "a", host, func(c *controlplane.Config) {
		c.Step = func(label string) {
			if label == "create: stored" {
				link.Cut()
				close(stored)
				<-end
			}
		}
	})
	t.Cleanup(func() { close(end) })
	const body = `{"image": "nginx", "name": "web"}`
	ctx, lost := context.WithCancel(within(t))
	defer lost()
	go func() { <-stored; lost() }()
	if _, _, err := a.create(ctx, "k", body); err == nil {
		t.Fatal("the manager that was cut off has answered")
	}
	id, again, err := b.create(within(t), "k", body)
	if err != nil || !again {
		t.Fatalf("%s, again: %t, %v", id, again, err)
	}
	c, err := b.plane.Service.WaitContainer(within(t), id, controlplane.WaitStarted)
	if err != nil || c.State != warmboot.ContainerRunning || c.Name != "web" {
		t.Fatalf("%+v, %v", c, err)
	}
}

// TestClientSendsCreatesAgain has the connection break off after the server has carried a create out, and the server fail before it has.
func TestClientSendsCreatesAgain(t *testing.T) {
	r := newRig(t, nil)
	lost, keys := 0, map[string]bool{}
	broken := func(refusals int, how func(*http.Request) (*http.Response, error)) *client.Client {
		c, err := client.New(client.Config{Addr: r.server.URL, Token: r.secret, HTTP: &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.Method == http.MethodPost {
				keys[req.Header.Get("Idempotency-Key")] = true
			}
			if lost < refusals {
				lost++
				return how(req)
			}
			return r.server.Client().Transport.RoundTrip(req)
		})}})
		r.must(err)
		return c
	}
	answerLost := func(req *http.Request) (*http.Response, error) {
		res, err := r.server.Client().Transport.RoundTrip(req)
		r.must(err)
		res.Body.Close()
		return nil, io.ErrUnexpectedEOF
	}
	halfAnswer := func(req *http.Request) (*http.Response, error) {
		res, err := r.server.Client().Transport.RoundTrip(req)
		r.must(err)
		res.Body.Close()
		res.Body = io.NopCloser(strings.NewReader(`{"id": "01`))
		return res, nil
	}
	proxy := func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusBadGateway, Status: "502 Bad Gateway", Body: io.NopCloser(&bytes.Buffer{}), Request: &http.Request{URL: r.url()}}, nil
	}
	for name, how := range map[string]func(*http.Request) (*http.Response, error){"answer lost": answerLost, "half an answer": halfAnswer, "a proxy": proxy} {
		lost, keys = 0, map[string]bool{}
		before, err := r.client.Containers(t.Context())
		r.must(err)
		id, err := broken(2, how).CreateContainer(t.Context(), createOf("nginx"))
		r.must(err)
		after, err := r.client.Containers(t.Context())
		r.must(err)
		if len(after) != len(before)+1 || after[0].ID != id || len(keys) != 1 || lost != 2 {
			t.Errorf("%s: %d containers, then %d; %s; %d keys, %d times lost", name, len(before), len(after), id, len(keys), lost)
		}
	}
	lost, keys = 0, map[string]bool{}
	if _, err := broken(100, proxy).CreateContainer(t.Context(), createOf("nginx")); warmboot.CodeOf(err) != warmboot.Unavailable || lost != 4 || len(keys) != 1 {
		t.Errorf("%v after %d times", err, lost)
	}
	lost, keys = 0, map[string]bool{}
	if err := broken(100, proxy).DeleteContainer(t.Context(), "nobody", true); warmboot.CodeOf(err) != warmboot.Unavailable || lost != 1 {
		t.Errorf("%v after %d times", err, lost)
	}
}

func TestCreatesThatWait(t *testing.T) {
	goOn := make(chan struct{})
	r := newRig(t, func(h *hosttest.Host, c *httpapi.Config) {
		heldBuild(goOn)(h, c)
		h.OnStart = func(ctx context.Context, c warmboot.Container) error {
			switch c.Image {
			case "missing":
				return warmboot.Errorf(warmboot.ImagePull, "pull", "there is no such image")
			case "slow":
				<-ctx.Done()
				return ctx.Err()
			case "job":
				h.Exit(c.ID, 3)
			}
			return nil
		}
	})
	for _, c := range []struct{ query, image, state string }{
		{"wait=running", "nginx", "running"},
		{"wait=started&timeout=30", "nginx", "running"},
		{"wait=booted", "slow", "creating"},
		{"wait=running", "missing", "failed"},
		{"wait=stopped", "job", "stopped"},
		{"wait=stopped&timeout=1", "nginx", "running"},
		{"wait=running&timeout=1", "slow", "creating"},
	} {
		res, body := r.request(http.MethodPost, "/v1/containers?"+c.query, `{"image": "`+c.image+`", "cold_boot": true}`)
		item, _ := decode(t, body)["item"].(map[string]any)
		if res.StatusCode != http.StatusCreated || item["state"] != c.state {
			t.Errorf("%s of %s: %d %s", c.query, c.image, res.StatusCode, body)
		}
		if c.query == "wait=booted" && item["boot_method"] != "cold" {
			t.Errorf("it does not tell how it booted: %s", body)
		}
	}
	for _, query := range []string{"wait=bored", "wait=running&timeout=0", "wait=running&timeout=301"} {
		res, body := r.request(http.MethodPost, "/v1/containers?"+query, `{"image": "nginx"}`)
		r.wantProblem(res, body, http.StatusUnprocessableEntity, warmboot.Invalid)
	}

	// One that was created before is waited for like any other.
	_, body := r.request(http.MethodPost, "/v1/containers?wait=running&timeout=1", `{"image": "slow", "name": "again"}`, "Idempotency-Key: k")
	if decode(t, body)["item"].(map[string]any)["state"] != "creating" {
		t.Fatal(body)
	}
	res, body := r.request(http.MethodPost, "/v1/containers?wait=running&timeout=1", `{"image": "slow", "name": "again"}`, "Idempotency-Key: k")
	if res.Header.Get("Idempotent-Replayed") != "true" || decode(t, body)["item"].(map[string]any)["name"] != "again" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	c, err := r.client.CreateContainerAndWait(within(t), api.CreateContainer{Image: "job"}, client.Stopped)
	if err != nil || c.ExitCode == nil || *c.ExitCode != 3 {
		t.Errorf("%+v, %v", c, err)
	}

	create := `{"runtime_image_id": "` + r.image.ID + `"}`
	res, body = r.request(http.MethodPost, "/v1/runtime-snapshots?wait=ready&timeout=1", create)
	if res.StatusCode != http.StatusCreated || decode(t, body)["item"].(map[string]any)["state"] != "creating" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	close(goOn)
	res, body = r.request(http.MethodPost, "/v1/runtime-snapshots?wait=ready", create) // joins
	item := decode(t, body)["item"].(map[string]any)
	if res.StatusCode != http.StatusCreated || item["state"] != "ready" {
		t.Fatalf("%d %s", res.StatusCode, body)
	}
	res, body = r.request(http.MethodPost, "/v1/runtime-snapshots/"+item["id"].(string)+"/rebuild?wait=ready", "")
	if next := decode(t, body)["item"].(map[string]any); res.StatusCode != http.StatusOK || next["state"] != "ready" || next["id"] == item["id"] {
		t.Errorf("%d %s", res.StatusCode, body)
	}
}
