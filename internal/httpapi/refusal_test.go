package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
)

func decode(t *testing.T, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return v
}

func createOf(image string) api.CreateContainer { return api.CreateContainer{Image: image} }

// heldBuild makes builds stand still until goOn is closed.
func heldBuild(goOn <-chan struct{}) func(*hosttest.Host, *httpapi.Config) {
	return func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnBuild = func(ctx context.Context, _ warmboot.RuntimeSnapshot) error {
			select {
			case <-goOn:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

func (r *rig) waitReady(id string) {
	r.t.Helper()
	ctx := within(r.t)
	for step := ""; ; {
		snap, err := r.client.WaitSnapshot(ctx, id, step)
		r.must(err)
		switch snap.State {
		case "ready":
			return
		case "creating":
			step = snap.Metadata.Step
		default:
			r.t.Fatalf("snapshot %s is %s: %s", id, snap.State, snap.Metadata.Error)
		}
	}
}

func TestBadInput(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web", PortMappings: []api.PortMapping{{HostPort: 8080, ContainerPort: 80}}})
	r.host.UsePort(9090)
	unknown := string(warmboot.NewID())
	const containers, snapshots, images = "/v1/containers", "/v1/runtime-snapshots", "/v1/images"
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		code                     warmboot.Code
		says                     string // in the detail or one of the errors
	}{
		{"unknown image id", "POST", snapshots, `{"runtime_image_id":"` + unknown + `"}`, 404, warmboot.NotFound, unknown},
		{"unknown image id of a container", "POST", containers, `{"image":"a","runtime_image_id":"` + unknown + `"}`, 404, warmboot.NotFound, unknown},
		{"malformed UUID in the body", "POST", snapshots, `{"runtime_image_id":"17"}`, 422, warmboot.Invalid, "body.runtime_image_id"},
		{"malformed UUID in the path", "GET", snapshots + "/17", "", 422, warmboot.Invalid, "path.id"},
		{"malformed UUID in the path of a rebuild", "POST", snapshots + "/17/rebuild", "", 422, warmboot.Invalid, "path.id"},
		{"UUID with braces", "GET", snapshots + "/%7B" + unknown + "%7D", "", 400, warmboot.Invalid, "UUID"},
		{"unknown snapshot", "DELETE", snapshots + "/" + unknown, "", 404, warmboot.NotFound, unknown},
		{"missing field", "POST", snapshots, `{}`, 422, warmboot.Invalid, "runtime_image_id"},
		{"null for an object", "POST", snapshots, `null`, 422, warmboot.Invalid, "body"},
		{"array for an object", "POST", snapshots, `[]`, 422, warmboot.Invalid, "body"},
		{"wrong JSON type", "POST", containers, `{"image":17}`, 422, warmboot.Invalid, "body.image"},
		{"wrong JSON type, deep", "POST", containers, `{"image":"a","port_mappings":[{"container_port":"80"}]}`, 422, warmboot.Invalid, "body.port_mappings[0].container_port"},
		{"fraction for an integer", "POST", containers, `{"image":"a","memory_limit_mb":1.5}`, 422, warmboot.Invalid, "body.memory_limit_mb"},
		{"number that no float holds", "POST", containers, `{"image":"a","cpu_limit":1e999}`, 400, warmboot.Invalid, ""},
		{"field that does not exist", "POST", containers, `{"image":"a","imgae":"b"}`, 422, warmboot.Invalid, "body.imgae"},
		{"no JSON", "POST", containers, `{"image":`, 400, warmboot.Invalid, "body"},
		{"two documents", "POST", containers, `{"image":"a"}{"image":"b"}`, 400, warmboot.Invalid, "body"},
		{"no body", "POST", containers, ``, 400, warmboot.Invalid, "body is required"},
		{"no image reference", "POST", containers, `{"image":"Not An Image"}`, 400, warmboot.Invalid, "debian:trixie"},
		{"bad name", "POST", containers, `{"image":"a","name":"a/b"}`, 400, warmboot.Invalid, "a/b"},
		{"name taken", "POST", containers, `{"image":"a","name":"web"}`, 409, warmboot.Conflict, "warmboot rm web"},
		{"port published", "POST", containers, `{"image":"a","port_mappings":[{"host_port":8080,"container_port":80}]}`, 409, warmboot.Conflict, "container web"},
		{"port published on every address", "POST", containers, `{"image":"a","port_mappings":[{"host_ip":"0.0.0.0","host_port":8080,"container_port":80}]}`, 409, warmboot.Conflict, "container web"},
		{"port of another program", "POST", containers, `{"image":"a","port_mappings":[{"host_port":9090,"container_port":80}]}`, 409, warmboot.Conflict, "another program"},
		{"port twice", "POST", containers, `{"image":"a","port_mappings":[{"host_port":1,"container_port":80},{"host_port":1,"container_port":81}]}`, 400, warmboot.Invalid, "twice"},
		{"port out of range", "POST", containers, `{"image":"a","port_mappings":[{"host_port":65536,"container_port":0}]}`, 422, warmboot.Invalid, "host_port"},
		{"bad protocol", "POST", containers, `{"image":"a","port_mappings":[{"container_port":80,"protocol":"sctp"}]}`, 422, warmboot.Invalid, "protocol"},
		{"bad address", "POST", containers, `{"image":"a","port_mappings":[{"container_port":80,"host_ip":"localhost"}]}`, 400, warmboot.Invalid, "host_ip"},
		{"bad variable", "POST", containers, `{"image":"a","env_vars":{"A=B":"c"}}`, 400, warmboot.Invalid, "A=B"},
		{"NUL in the command", "POST", containers, `{"image":"a","command":["a\u0000b"]}`, 400, warmboot.Invalid, "NUL"},
		{"negative limit", "POST", containers, `{"image":"a","cpu_limit":-1}`, 422, warmboot.Invalid, "cpu_limit"},
		{"path outside the roots", "POST", images, `{"name":"a","kernel_path":"/etc/passwd","rootfs_path":"/srv/images/r"}`, 403, warmboot.Denied, "/etc/passwd"},
		{"path that climbs", "POST", images, `{"name":"a","kernel_path":"/srv/images/../../etc/passwd","rootfs_path":"/srv/images/r"}`, 403, warmboot.Denied, "root"},
		{"name of other content", "POST", images, `{"name":"runtime","kernel_path":"/srv/images/other-kernel","rootfs_path":"/srv/images/r"}`, 409, warmboot.Conflict, "runtime"},
		{"bad image name", "POST", images, `{"name":"a b","kernel_path":"/srv/images/k","rootfs_path":"/srv/images/r"}`, 422, warmboot.Invalid, "body.name"},
		{"image in use", "DELETE", images + "/runtime", "", 409, warmboot.Conflict, "container web"},
		{"unknown image", "GET", images + "/absent", "", 404, warmboot.NotFound, "absent"},
		{"unknown state", "GET", containers + "?state=asleep", "", 422, warmboot.Invalid, "query.state"},
		{"unknown container", "POST", containers + "/absent/stop", "", 404, warmboot.NotFound, "absent"},
		{"delete of a running one", "DELETE", containers + "/web", "", 409, warmboot.Conflict, "force"},
		{"no boolean", "DELETE", containers + "/web?force=maybe", "", 422, warmboot.Invalid, "query.force"},
		{"start of a container that does not exist", "POST", containers + "/absent/start", "", 404, warmboot.NotFound, "absent"},
		{"unknown condition", "GET", containers + "/web/wait?condition=happy", "", 422, warmboot.Invalid, "query.condition"},
		{"endless wait", "GET", containers + "/web/wait?timeout=100000", "", 422, warmboot.Invalid, "query.timeout"},
		{"long grace", "POST", containers + "/web/stop", `{"timeout_seconds":-1}`, 422, warmboot.Invalid, "timeout_seconds"},
		{"logs of nobody", "GET", containers + "/absent/logs", "", 404, warmboot.NotFound, "absent"},
		{"no number", "GET", containers + "/web/logs?tail=all", "", 422, warmboot.Invalid, "query.tail"},
		{"exec without WebSocket", "GET", containers + "/web/exec", "", 426, warmboot.Invalid, "WebSocket"},
		{"exec in nobody", "GET", containers + "/absent/exec", "", 404, warmboot.NotFound, "absent"},
		{"no such address", "GET", "/v1/volumes", "", 404, warmboot.NotFound, "/docs"},
		{"no such method", "PUT", containers, `{}`, 405, warmboot.Invalid, "PUT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := *r
			r.t = t
			res, body := r.request(c.method, c.path, c.body)
			p := r.wantProblem(res, body, c.status, c.code)
			if !strings.Contains(body, c.says) {
				t.Errorf("%s does not say %q", body, c.says)
			}
			if c.status == 422 && len(p.Errors) == 0 {
				t.Errorf("no list of errors in %s", body)
			}
			if c.status == 405 && res.Header.Get("Allow") == "" {
				t.Error("nothing tells the methods that are allowed")
			}
		})
	}
	all, err := r.client.Containers(t.Context())
	r.must(err)
	if len(all) != 1 || all[0].State != "running" {
		t.Errorf("after all that: %+v", all)
	}
}

func TestOversizedBody(t *testing.T) {
	r := newRig(t, nil)
	res, body := r.request("POST", "/v1/containers", `{"image":"`+strings.Repeat("a", 2<<20)+`"}`)
	r.wantProblem(res, body, 413, warmboot.TooLarge)
	// Without a length in the header, it must be noticed while reading.
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.server.URL+"/v1/containers", struct{ *bytes.Reader }{bytes.NewReader(make([]byte, 2<<20))})
	r.must(err)
	req.ContentLength = -1
	req.Header.Set("Authorization", "Bearer "+r.secret)
	if res, err := r.server.Client().Do(req); err == nil {
		res.Body.Close()
		if res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("status %d", res.StatusCode)
		}
	}
}

func TestBodyThatDoesNotCome(t *testing.T) {
	r := newRig(t, func(_ *hosttest.Host, c *httpapi.Config) { c.BodyTimeout = 50 * time.Millisecond })
	body, never := io.Pipe()
	defer func() { _ = never.Close() }()
	req, err := http.NewRequestWithContext(within(t), http.MethodPost, r.server.URL+"/v1/containers", body)
	r.must(err)
	req.Header.Set("Authorization", "Bearer "+r.secret)
	res, err := r.server.Client().Do(req)
	r.must(err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	r.must(err)
	r.wantProblem(reply{res.StatusCode, res.Header, res.Request}, string(text), 408, warmboot.Timeout)
}

func TestErrorsDoNotRepeatSecrets(t *testing.T) {
	r := newRig(t, nil)
	_, body := r.request("POST", "/v1/containers", `{"image":17,"registry_auth":{"username":"u","password":"hunter2"}}`)
	_, broken := r.request("POST", "/v1/containers", `{"registry_auth":{"password":"hunter2"`)
	if strings.Contains(body+broken+r.log.String(), "hunter2") {
		t.Error("a password came back or was logged")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	r := newRig(t, func(_ *hosttest.Host, c *httpapi.Config) { c.NoAuth = true })
	port := r.server.URL[strings.LastIndex(r.server.URL, ":"):]
	for _, c := range []struct {
		method  string
		headers []string
		ok      bool
	}{
		{"GET", nil, true},
		{"GET", []string{"Host: localhost" + port}, true},
		{"GET", []string{"Host: [::1]" + port}, true},
		{"GET", []string{"Host: 127.0.0.2"}, true},
		{"GET", []string{"Authorization: Bearer wrong"}, true}, // nobody looks
		{"GET", []string{"Host: box.lan" + port}, false},
		{"GET", []string{"Host: evil.example" + port}, false}, // a name that was made to point here
		{"GET", []string{"Host: 127.0.0.1.evil.example"}, false},
		{"GET", []string{"Host: 192.168.1.10"}, false},
		{"POST", []string{"Origin: " + r.server.URL}, true},
		{"POST", []string{"Sec-Fetch-Site: same-origin"}, true},
		{"POST", []string{"Origin: http://evil.example"}, false},
		{"POST", []string{"Origin: null"}, false},
		{"POST", []string{"Sec-Fetch-Site: cross-site"}, false},
		{"POST", []string{"Sec-Fetch-Site: same-site"}, false},
		{"GET", []string{"Origin: http://evil.example", "Connection: Upgrade", "Upgrade: websocket"}, false},
	} {
		path, body := "/v1/images", ""
		if c.method == "POST" {
			path, body = "/v1/runtime-snapshots", `{"runtime_image_id":"`+r.image.ID+`"}`
		}
		res, text := r.request(c.method, path, body, c.headers...)
		if c.ok != (res.StatusCode/100 == 2) {
			t.Errorf("%s with %v answered %d: %s", c.method, c.headers, res.StatusCode, text)
		}
		if !c.ok {
			r.wantProblem(res, text, 403, warmboot.Denied)
		}
	}
}

func TestCheckListen(t *testing.T) {
	t.Parallel()
	const loopback, local = "127.0.0.1:18080 localhost:0 [::1]:18080 127.1.2.3:1", ":18080 0.0.0.0:18080 [::]:18080 192.168.1.1:18080 box.lan:1"
	all := strings.Fields(loopback + " " + local)
	for e, refused := range map[httpapi.Exposure]string{
		{}:                                 local,
		{InsecureHTTP: true}:               "",
		{TLS: true}:                        "",
		{NoAuth: true}:                     local,
		{NoAuth: true, TLS: true}:          local,
		{NoAuth: true, InsecureHTTP: true}: local,
	} {
		for _, addr := range all {
			want := warmboot.Code("")
			if slices.Contains(strings.Fields(refused), addr) {
				want = warmboot.Denied
			}
			if err := httpapi.CheckListen(addr, e); warmboot.CodeOf(err) != want {
				t.Errorf("%s with %+v: %v", addr, e, err)
			}
		}
		if err := httpapi.CheckListen("18080", e); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("no port: %v", err)
		}
	}
}

func TestHeadersAndDocs(t *testing.T) {
	r := newRig(t, nil)
	for path, says := range map[string]string{"/docs": "docs.js", "/docs/docs.js": "/openapi.json", "/docs/docs.css": "prefers-color-scheme"} {
		res, body := r.request("GET", path, "")
		if res.StatusCode != http.StatusOK || !strings.Contains(body, says) {
			t.Errorf("%s answered %d: %.200s", path, res.StatusCode, body)
		}
		if strings.Contains(body, "https://") || strings.Contains(body, "http://") {
			t.Errorf("%s asks other servers", path)
		}
		for _, h := range []string{"Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "X-Request-Id"} {
			if res.Header.Get(h) == "" {
				t.Errorf("%s has no %s", path, h)
			}
		}
	}
	if res, _ := r.request("GET", "/", ""); res.StatusCode != http.StatusFound || res.Header.Get("Location") != "/docs" {
		t.Errorf("/ answered %d", res.StatusCode)
	}
}

func TestFaultsAreLoggedWithTheirRequest(t *testing.T) {
	r := newRig(t, nil)
	r.must(r.store.Close())
	res, body := r.request("GET", "/v1/containers", "")
	r.wantProblem(res, body, 503, warmboot.Unavailable)
	id := res.Header.Get("X-Request-Id")
	for line := range strings.Lines(r.log.String()) {
		if strings.Contains(line, "level=ERROR") && strings.Contains(line, id) && strings.Contains(line, "closed") {
			return
		}
	}
	t.Errorf("no line about request %s in\n%s", id, r.log)
}
