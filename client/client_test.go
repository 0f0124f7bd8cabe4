package client_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

// The client's ways through the whole API are tested with the server, in internal/httpapi. Here is what a server that works
// does not do.

func dial(t *testing.T, addr string) *client.Client {
	t.Helper()
	c, err := client.New(client.Config{Addr: addr, Token: "s3cret"})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNobodyListens(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	c := dial(t, addr)
	_, exec := c.Exec(t.Context(), "web", api.Exec{Command: []string{"true"}})
	_, logs := c.Logs(t.Context(), "web", false, -1)
	_, list := c.Containers(t.Context())
	for _, err := range []error{exec, logs, list} {
		if warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "cannot reach warmboot at http://"+addr+": is `warmboot serve` running?") {
			t.Errorf("%v, code %q", err, warmboot.CodeOf(err))
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Containers(ctx); warmboot.CodeOf(err) != warmboot.Canceled {
		t.Errorf("%v, code %q", err, warmboot.CodeOf(err))
	}
}

func TestStrangeAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status int
		body   string
		code   warmboot.Code
		says   string
	}{
		"another program":   {404, "<html>", warmboot.Internal, "is the address right?"},
		"a proxy":           {502, "Bad Gateway", warmboot.Unavailable, "502"},
		"half an answer":    {200, `{"items": [`, warmboot.Unavailable, "broke off"},
		"a web page":        {200, "<html>", warmboot.Unavailable, "broke off"},
		"a problem of ours": {409, `{"code":"conflict","detail":"taken","errors":[{"message":"no","location":"body.name"}]}`, warmboot.Conflict, "taken\n  name: no"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Authorization") != "Bearer s3cret" {
				t.Error("no token")
			}
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}))
		_, err := dial(t, server.URL+"/").Containers(t.Context())
		if warmboot.CodeOf(err) != c.code || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, code %q", name, err, warmboot.CodeOf(err))
		}
		server.Close()
	}
}

// TestAskedTooOften has a server that wants to be asked again.
func TestAskedTooOften(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		retryAfter string
		refusals   int
		asked      int
		code       warmboot.Code
	}{
		"once":                          {"1", 1, 2, ""},
		"for longer than we wait":       {"3", 1, 1, warmboot.Exhausted},
		"without a time":                {"", 1, 1, warmboot.Exhausted},
		"with a time of day":            {"Wed, 21 Oct 2026 07:28:00 GMT", 1, 1, warmboot.Exhausted},
		"by a limit that does not pass": {"0", 1, 1, warmboot.Exhausted},
	} {
		asked := 0
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if string(body) != `{"runtime_image_id":"x"}` {
				t.Errorf("%s: time %d it gets %q", name, asked, body)
			}
			if asked++; asked <= c.refusals {
				w.Header().Set("Retry-After", c.retryAfter)
				w.WriteHeader(http.StatusTooManyRequests)
				_, _ = w.Write([]byte(`{"code":"exhausted","detail":"too often"}`))
				return
			}
			_, _ = w.Write([]byte(`{"id":"y"}`))
		}))
		id, err := dial(t, server.URL).CreateSnapshot(t.Context(), "x")
		server.Close()
		if warmboot.CodeOf(err) != c.code || asked != c.asked || err == nil && id != "y" {
			t.Errorf("%s: asked %d times: %q, %v", name, asked, id, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(http.StatusTooManyRequests)
		cancel() // while it waits, or just before
	}))
	defer server.Close()
	if _, err := dial(t, server.URL).Images(ctx); warmboot.CodeOf(err) != warmboot.Canceled {
		t.Errorf("%v, code %q", err, warmboot.CodeOf(err))
	}
}

// TestExecThatBreaksOff has a server that dies in the middle of an exec: that must not look like the command's end.
func TestExecThatBreaksOff(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := websocket.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		if _, _, err := conn.Read(r.Context()); err != nil {
			t.Error(err)
		}
		_ = conn.CloseNow()
	}))
	defer server.Close()
	s, err := dial(t, server.URL).Exec(t.Context(), "web", api.Exec{Command: []string{"cat"}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if _, _, err := s.Next(); warmboot.CodeOf(err) != warmboot.Unavailable || errors.Is(err, io.EOF) {
		t.Errorf("%v, code %q", err, warmboot.CodeOf(err))
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"", "127.0.0.1:18080", "http://[::1]:18080/", "https://box.lan/warmboot/"} {
		if _, err := client.New(client.Config{Addr: addr}); err != nil {
			t.Error(err)
		}
	}
	for _, addr := range []string{"unix:///run/x", "http://", "::", "http://a b"} {
		if _, err := client.New(client.Config{Addr: addr}); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%q: %v", addr, err)
		}
	}
}

func TestRefsStayInTheirPlace(t *testing.T) {
	t.Parallel()
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.EscapedPath()
		_, _ = w.Write([]byte("{}"))
	}))
	defer server.Close()
	c := dial(t, server.URL)
	if _, err := c.Container(t.Context(), "a/../b?c#d"); err != nil || asked != "/v1/containers/a%2F..%2Fb%3Fc%23d" {
		t.Errorf("%q, %v", asked, err)
	}
	for _, ref := range []string{"", ".", ".."} {
		if err := c.DeleteContainer(t.Context(), ref, true); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%q: %v", ref, err)
		}
	}
}
