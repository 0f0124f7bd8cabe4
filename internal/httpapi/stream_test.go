package httpapi_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
)

func TestLifeOfAContainer(t *testing.T) {
	r := newRig(t, nil)
	ctx := within(t)
	version, err := r.client.Version(ctx)
	r.must(err)
	if version.Version != "1.2.3" || version.VMM != hosttest.VMM || version.GoVersion == "" || version.VMMWhy == "" {
		t.Errorf("%+v", version)
	}
	c := r.create(api.CreateContainer{
		Name: "web", Command: []string{"nginx"}, Args: []string{"-g"}, EnvVars: map[string]string{"A": "1"}, CPULimit: 1.5, MemoryLimitMB: 64,
		PortMappings: []api.PortMapping{{ContainerPort: 80}, {HostIP: "::1", HostPort: 53, ContainerPort: 53, Protocol: "udp"}},
	})
	if c.State != "running" || *c.BootMethod != "cold" || c.BootReason == "" || len(c.Phases) != 6 || c.EnvVars["A"] != "1" || c.Args[0] != "-g" || c.CPULimit != 1.5 {
		t.Errorf("%+v", c)
	}
	if p := c.PortMappings[0]; p.HostIP != "127.0.0.1" || p.HostPort == 0 || p.Protocol != "tcp" {
		t.Errorf("%+v", p)
	}
	for _, ref := range []string{"web", c.ID, strings.ReplaceAll(c.ID, "-", "")[:12]} {
		if got, err := r.client.Container(ctx, ref); err != nil || got.ID != c.ID {
			t.Errorf("by %q: %+v, %v", ref, got, err)
		}
	}
	grace := 1
	c, err = r.client.StopContainer(ctx, "web", &grace)
	r.must(err)
	if c.State != "stopped" || *c.ExitCode != 143 {
		t.Errorf("%+v", c)
	}
	_, err = r.client.Exec(ctx, "web", api.Exec{Command: []string{"cat"}})
	r.wantCode(err, warmboot.Conflict, "stopped")
	id, err := r.client.StartContainer(ctx, "web")
	r.must(err)
	if id != c.ID {
		t.Errorf("another id: %s", id)
	}
	_, err = r.client.WaitContainer(ctx, "web", client.Started)
	r.must(err)
	r.wantCode(r.client.DeleteContainer(ctx, "web", false), warmboot.Conflict)
	r.must(r.client.DeleteContainer(ctx, "web", true))
	_, err = r.client.Container(ctx, "web")
	r.wantCode(err, warmboot.NotFound, "web")
	r.must(r.client.DeleteImage(ctx, "runtime"))
	images, err := r.client.Images(ctx)
	r.must(err)
	if images == nil || len(images) != 0 {
		t.Errorf("%v", images)
	}
}

func TestWaitAnswersAfterItsTime(t *testing.T) {
	r := newRig(t, nil)
	c := r.create(api.CreateContainer{Name: "web"})
	res, body := r.request(http.MethodGet, "/v1/containers/web/wait?condition=stopped&timeout=0", "")
	if res.StatusCode != http.StatusOK || decode(t, body)["item"].(map[string]any)["state"] != "running" {
		t.Fatalf("%d: %s", res.StatusCode, body)
	}
	// A caller that goes away is no fault of ours.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := r.client.WaitContainer(ctx, "web", client.Stopped)
	r.wantCode(err, warmboot.Timeout)
	go r.host.Exit(warmboot.ID(c.ID), 0)
	if c, err = r.client.WaitContainer(within(t), "web", client.Stopped); err != nil || *c.ExitCode != 0 {
		t.Fatalf("%+v, %v", c, err)
	}
	if strings.Contains(r.log.String(), "level=ERROR") {
		t.Errorf("an error was logged:\n%s", r.log)
	}
}

func TestWaitForDockerAlone(t *testing.T) {
	goOn := make(chan struct{})
	r := newRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnStart = func(ctx context.Context, _ warmboot.Container) error {
			select {
			case <-goOn:
			case <-ctx.Done():
			}
			return ctx.Err()
		}
	})
	id, err := r.client.CreateContainer(t.Context(), createOf("debian:trixie"))
	r.must(err)
	c, err := r.client.WaitContainer(within(t), id, client.Booted)
	r.must(err)
	if c.State != "creating" || *c.BootMethod != "cold" {
		t.Errorf("%+v", c)
	}
	close(goOn)
	if c, err = r.client.WaitContainer(within(t), id, client.Started); err != nil || c.State != "running" {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestLongRequestIsNotEndedByTheLimitOnItsBody stops a container whose command takes longer to end than a body may take to come.
func TestLongRequestIsNotEndedByTheLimitOnItsBody(t *testing.T) {
	const limit = 100 * time.Millisecond
	r := newRig(t, func(h *hosttest.Host, c *httpapi.Config) {
		c.BodyTimeout = limit
		h.OnStop = func(ctx context.Context, _ warmboot.ID) error {
			select {
			case <-time.After(3 * limit): // the command's own time
			case <-ctx.Done():
			}
			return ctx.Err()
		}
	})
	r.create(api.CreateContainer{Name: "web"})
	if c, err := r.client.StopContainer(within(t), "web", nil); err != nil || c.State != "stopped" {
		t.Fatalf("%+v, %v", c, err)
	}
}

func TestLogs(t *testing.T) {
	r := newRig(t, nil)
	c := r.create(api.CreateContainer{Name: "web"})
	id := warmboot.ID(c.ID)
	line := func(text string) controlplane.LogLine {
		return controlplane.LogLine{Stream: "stdout", Time: time.Date(2026, 1, 24, 12, 0, 0, 123456789, time.UTC), Text: text}
	}
	for _, text := range []string{"one\n", "<two> & ü\n", "three"} {
		r.host.Print(id, line(text))
	}
	ctx := within(t)
	read := func(tail int) (texts []string) {
		s, err := r.client.Logs(ctx, "web", false, tail)
		r.must(err)
		defer func() { _ = s.Close() }()
		for {
			l, err := s.Next()
			if errors.Is(err, io.EOF) {
				return texts
			}
			r.must(err)
			texts = append(texts, l.Text)
		}
	}
	for tail, want := range map[int]string{-1: "one\n|<two> & ü\n|three", 0: "", 2: "<two> & ü\n|three", 9: "one\n|<two> & ü\n|three"} {
		if got := strings.Join(read(tail), "|"); got != want {
			t.Errorf("tail %d gave %q, want %q", tail, got, want)
		}
	}
	_, body := r.request(http.MethodGet, "/v1/containers/web/logs?tail=1", "")
	golden(t, "logs.ndjson", []byte(body))

	// Each line comes as it is written, not when some buffer is full.
	s, err := r.client.Logs(ctx, "web", true, 0)
	r.must(err)
	defer func() { _ = s.Close() }()
	for _, text := range []string{"four\n", "five\n"} {
		r.host.Print(id, line(text))
		if l, err := s.Next(); err != nil || l.Text != text || l.Stream != "stdout" || l.Time.Nanosecond() != 123456789 {
			t.Fatalf("%+v, %v", l, err)
		}
	}
	r.host.Exit(id, 0)
	if l, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Fatalf("after the end: %+v, %v", l, err)
	}
}

func TestLogsThatBreakOffAreNotAll(t *testing.T) {
	r := newRig(t, nil)
	c := r.create(api.CreateContainer{Name: "web"})
	s, err := r.client.Logs(within(t), "web", true, -1)
	r.must(err)
	defer func() { _ = s.Close() }()
	r.host.Print(warmboot.ID(c.ID), controlplane.LogLine{Text: "one"})
	_, err = s.Next()
	r.must(err)
	r.server.CloseClientConnections()
	_, err = s.Next()
	r.wantCode(err, warmboot.Unavailable, "broke off")
}

func TestLogsOfAMachineThatDiesAreNotAll(t *testing.T) {
	r := newRig(t, nil)
	c := r.create(api.CreateContainer{Name: "web"})
	s, err := r.client.Logs(within(t), "web", true, -1)
	r.must(err)
	defer func() { _ = s.Close() }()
	r.host.Print(warmboot.ID(c.ID), controlplane.LogLine{Text: "one"})
	_, err = s.Next()
	r.must(err)
	r.host.Crash(warmboot.ID(c.ID))
	_, err = s.Next()
	r.wantCode(err, warmboot.Unavailable, "broke off")
}

func TestFollowerThatGoesAway(t *testing.T) {
	r := newRig(t, nil) // goleak and the closing of the server see that the handler ends
	r.create(api.CreateContainer{Name: "web"})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := r.client.Logs(ctx, "web", true, -1)
	r.must(err)
	defer func() { _ = s.Close() }()
	cancel()
	_, err = s.Next()
	r.wantCode(err, warmboot.Canceled)
}

// output reads a session to its end.
func output(t *testing.T, s *client.ExecSession) (stdout, stderr string, err error) {
	t.Helper()
	for {
		stream, data, err := s.Next()
		if errors.Is(err, io.EOF) {
			return stdout, stderr, nil
		}
		if err != nil {
			return stdout, stderr, err
		}
		if stream == "stderr" {
			stderr += string(data)
		} else {
			stdout += string(data)
		}
	}
}

func TestExec(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web"})
	ctx := within(t)
	exec := func(cmd ...string) *client.ExecSession {
		s, err := r.client.Exec(ctx, "web", api.Exec{Command: cmd, Stdin: true})
		r.must(err)
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	s := exec("exit", "42")
	if s.ExitCode() != -1 {
		t.Error("the exit code is known too early")
	}
	if out, errOut, err := output(t, s); out != "" || errOut != "ending\n" || err != nil || s.ExitCode() != 42 {
		t.Errorf("%q, %q, %v, %d", out, errOut, err, s.ExitCode())
	}

	s = exec("cat")
	in := bytes.Repeat([]byte("0123456789abcdef"), 10_000)
	go func() {
		_, _ = s.Stdin().Write(in)
		_ = s.Stdin().Close()
	}()
	if out, _, err := output(t, s); out != string(in) || err != nil || s.ExitCode() != 0 {
		t.Errorf("%d bytes came back of %d, %v", len(out), len(in), err)
	}
	if _, err := s.Stdin().Write(in); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("write after close: %v", err)
	}

	s = exec("size")
	r.must(s.Resize(120, 40))
	if out, _, err := output(t, s); out != "120x40" || err != nil {
		t.Errorf("%q, %v", out, err)
	}

	_, _, err := output(t, exec("frobnicate"))
	r.wantCode(err, warmboot.NotFound, "frobnicate")
	_, err = r.client.Exec(ctx, "absent", api.Exec{Command: []string{"cat"}})
	r.wantCode(err, warmboot.NotFound, "absent")

	// A client that goes away ends the session on the host: goleak sees that cat's goroutine ends.
	r.must(exec("cat").Close())
}

func (r *rig) dialOptions() *websocket.DialOptions {
	return &websocket.DialOptions{HTTPHeader: http.Header{"Authorization": {"Bearer " + r.secret}}}
}

func TestExecMustBeginWithStart(t *testing.T) {
	r := newRig(t, nil)
	r.create(api.CreateContainer{Name: "web"})
	ctx := within(t)
	conn, _, err := websocket.Dial(ctx, r.server.URL+"/v1/containers/web/exec", r.dialOptions()) //nolint:bodyclose // the library sees to it
	r.must(err)
	defer func() { _ = conn.CloseNow() }()
	r.must(wsjson.Write(ctx, conn, api.ExecFrame{Stdin: []byte("x")}))
	var f api.ExecFrame
	r.must(wsjson.Read(ctx, conn, &f))
	if !strings.Contains(f.Error, "start") {
		t.Errorf("%+v", f)
	}
	var closed websocket.CloseError
	if err := wsjson.Read(ctx, conn, &f); !errors.As(err, &closed) || closed.Reason != "invalid" {
		t.Errorf("%v", err)
	}
}
