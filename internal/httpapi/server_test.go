package httpapi_test

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/access"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/expect"
	"warmboot/internal/httpapi"
	"warmboot/internal/planetest"
	"warmboot/internal/store"
	"warmboot/internal/store/pgtest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	postgres.Start()
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(postgres.End))
}

// rig is the API on a real Service and store, and a host in memory. It asks with an admin's token, unless none is asked for.
type rig struct {
	t      *testing.T
	host   *hosttest.Host
	plane  *planetest.Plane
	svc    *controlplane.Service
	store  *store.Store
	db     string // its file
	access *access.Keeper
	secret string
	server *httptest.Server
	client *client.Client
	image  api.Image
	log    *syncBuffer
}

func newRig(t *testing.T, shape func(*hosttest.Host, *httpapi.Config)) *rig {
	t.Helper()
	return newObservedRig(t, nil, shape)
}

// newObservedRig is a rig whose Service has an observer.
func newObservedRig(t *testing.T, observer controlplane.Observer, shape func(*hosttest.Host, *httpapi.Config)) *rig {
	t.Helper()
	t.Parallel()
	db := filepath.Join(t.TempDir(), "warmboot.db")
	r := &rig{t: t, host: hosttest.New(), db: db, log: &syncBuffer{}}
	t.Cleanup(r.host.Close)
	log := r.logger()
	config := httpapi.Config{Log: log, Version: "1.2.3"}
	if shape != nil {
		shape(r.host, &config)
	}
	p, err := planetest.Start(t.Context(), planetest.Config{
		URL: db, Hosts: []*hosttest.Host{r.host}, Log: log, Tracing: config.Tracing, Shape: func(c *controlplane.Config) { c.Observer = observer },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	r.access = access.New(access.Config{Store: p.Store, Log: log, Static: staticToken})
	t.Cleanup(r.access.Close)
	r.plane, r.svc, r.store, config.Service, config.Access = p, p.Service, p.Store, p.Service, r.access
	ca, err := authority.Open(t.Context(), p.Store)
	r.must(err)
	config.Joins = &httpapi.Joins{Authority: ca, Store: p.Store}
	r.server = httptest.NewServer(httpapi.New(config))
	t.Cleanup(r.server.Close)
	if !config.NoAuth {
		r.secret = r.token("admin", warmboot.RoleAdmin, 0)
	}
	r.client = r.clientOf(r.secret)
	r.image, err = r.client.RegisterImage(t.Context(), api.RegisterImage{Name: "runtime", KernelPath: hosttest.Root + "vmlinuz", InitrdPath: hosttest.Root + "initrd.img", RootfsPath: hosttest.Root + "rootfs.ext4"})
	r.must(err)
	return r
}

// staticToken is the one of the server's configuration.
const staticToken = "the operator's own"

// token makes a token and returns its secret.
func (r *rig) token(name string, role warmboot.Role, ttl time.Duration) string {
	r.t.Helper()
	_, secret, err := r.access.CreateToken(r.t.Context(), access.Anonymous, name, role, ttl)
	r.must(err)
	return secret
}

// sql changes the database behind the server's back.
func (r *rig) sql(statement string) {
	db, err := sql.Open("sqlite", "file:"+r.db+"?_pragma=busy_timeout(5000)")
	if err == nil {
		_, err = db.ExecContext(context.Background(), statement)
		err = errors.Join(err, db.Close())
	}
	if err != nil {
		r.t.Error(err)
	}
}

// dump reads a column of the database behind the server's back, each value before a "|".
func (r *rig) dump(query string) string {
	r.t.Helper()
	db, err := sql.Open("sqlite", "file:"+r.db+"?_pragma=busy_timeout(5000)")
	r.must(err)
	defer func() { _ = db.Close() }()
	rows, err := db.QueryContext(r.t.Context(), query)
	r.must(err)
	defer rows.Close()
	var all strings.Builder
	for rows.Next() {
		var v string
		r.must(rows.Scan(&v))
		all.WriteString(v + "|")
	}
	r.must(rows.Err())
	return all.String()
}

// url is the server's address.
func (r *rig) url() *url.URL {
	r.t.Helper()
	u, err := url.Parse(r.server.URL)
	r.must(err)
	return u
}

// clientOf is a client that has a token.
func (r *rig) clientOf(secret string) *client.Client {
	r.t.Helper()
	c, err := client.New(client.Config{Addr: r.server.URL, Token: secret, HTTP: r.server.Client()})
	r.must(err)
	return c
}

func (r *rig) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func (r *rig) must(err error) {
	r.t.Helper()
	expect.NoError(r.t, err)
}

// wantCode fails the test unless err has the code, and its text every one of words.
func (r *rig) wantCode(err error, code warmboot.Code, words ...string) {
	r.t.Helper()
	expect.Code(r.t, err, code, words...)
}

// create makes a container and waits until it runs.
func (r *rig) create(in api.CreateContainer) api.Container {
	r.t.Helper()
	if in.Image == "" {
		in.Image = "debian:trixie"
	}
	id, err := r.client.CreateContainer(r.t.Context(), in)
	r.must(err)
	c, err := r.client.WaitContainer(r.t.Context(), id, client.Started)
	r.must(err)
	return c
}

// reply is what a response has beside its body.
type reply struct {
	StatusCode int
	Header     http.Header
	Request    *http.Request
}

// request sends one request with headers given as "Name: value", and the rig's token unless they have an Authorization.
func (r *rig) request(method, path, body string, headers ...string) (reply, string) {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.t.Context(), method, r.server.URL+path, strings.NewReader(body))
	r.must(err)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if r.secret != "" {
		req.Header.Set("Authorization", "Bearer "+r.secret)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	if req.Header.Get("Authorization") == "" {
		req.Header.Del("Authorization")
	}
	client := *r.server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	res, err := client.Do(req)
	r.must(err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	r.must(err)
	return reply{res.StatusCode, res.Header, res.Request}, string(text)
}

// wantProblem fails the test unless the answer is a problem document with this status and code.
func (r *rig) wantProblem(res reply, body string, status int, code warmboot.Code) api.Problem {
	r.t.Helper()
	var p api.Problem
	dec := json.NewDecoder(strings.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		r.t.Fatalf("%v in %q", err, body)
	}
	if res.StatusCode != status || p.Status != status || p.Code != string(code) || p.Detail == "" || p.Title == "" {
		r.t.Fatalf("%s %s answered %d: %s; want %d %s", res.Request.Method, res.Request.URL.Path, res.StatusCode, body, status, code)
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" {
		r.t.Errorf("Content-Type %s", ct)
	}
	return p
}

// golden compares with a file in testdata, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; `go test ./internal/httpapi -update` writes it", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s has changed; if that is meant, `go test ./internal/httpapi -update` writes it anew (-want +got):\n%s", path, diff)
	}
}

func indent(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, text, "", "  "); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return b.Bytes()
}

// syncBuffer is a buffer for a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// within is the test's context with a limit, for what could wait for ever.
func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}
