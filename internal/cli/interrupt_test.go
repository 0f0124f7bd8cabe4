package cli_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/cli"
)

// output is a stream that a test can watch.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// invocation is a command that runs in this process, so that a test can interrupt it at the right instant.
type invocation struct {
	out, err output
	signals  chan os.Signal
	code     chan int
}

func start(t *testing.T, s *server, args ...string) *invocation {
	t.Helper()
	i := &invocation{}
	i.run(t, s, strings.NewReader(""), &i.out, &i.err, args)
	return i
}

// run runs the command with the given streams.
func (i *invocation) run(t *testing.T, s *server, in io.Reader, out, errOut io.Writer, args []string) {
	i.signals, i.code = make(chan os.Signal, 2), make(chan int, 1)
	c := config()
	c.In, c.Out, c.Err, c.Signals = in, out, errOut, i.signals
	c.Env = func(name string) string {
		switch name {
		case "WARMBOOT_HOST":
			return s.http.URL
		case "WARMBOOT_TOKEN":
			return s.token
		}
		return ""
	}
	c.Serve = func(ctx context.Context, _ cli.ServeOptions) error {
		_, err := io.WriteString(out, "serving\n")
		<-ctx.Done()
		return err
	}
	go func() { i.code <- cli.Run(t.Context(), c, args) }()
}

// says waits until a stream holds a text.
func says(t *testing.T, o *output, text string) {
	t.Helper()
	if err := eventually(func() (bool, error) { return strings.Contains(o.String(), text), nil }); err != nil {
		t.Fatalf("%q does not come: %v; there is %q", text, err, o.String())
	}
}

// exits waits for the command's end.
func (i *invocation) exits(t *testing.T, want int) {
	t.Helper()
	select {
	case got := <-i.code:
		if got != want {
			t.Fatalf("exit code %d, want %d; stdout %q, stderr %q", got, want, i.out.String(), i.err.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not end; stdout %q, stderr %q", i.out.String(), i.err.String())
	}
}

func newServer(t *testing.T) *server {
	t.Helper()
	s, err := serve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	return s
}

func await(t *testing.T, s *server, name, state string) {
	t.Helper()
	if err := s.await(name, state); err != nil {
		t.Fatalf("container %s does not become %s: %v", name, state, err)
	}
}

func TestFirstInterruptionStopsTheContainer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	i := start(t, s, "run", "--rm", "--name", "web", "nginx")
	says(t, &i.out, "up\n")
	i.signals <- os.Interrupt
	i.exits(t, 143)
	if !strings.Contains(i.err.String(), "warmboot: stopping web; Ctrl-C again leaves it") {
		t.Errorf("stderr: %q", i.err.String())
	}
	await(t, s, "web", "gone")
}

func TestSecondInterruptionLeavesTheContainer(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	release := make(chan struct{})
	s.host.OnStop = func(context.Context, warmboot.ID) error { <-release; return nil }
	t.Cleanup(func() { close(release) }) // before the server's, which waits for the stop
	i := start(t, s, "run", "--name", "web", "nginx")
	says(t, &i.out, "up\n")
	i.signals <- os.Interrupt
	says(t, &i.err, "stopping web")
	await(t, s, "web", "stopping")
	i.signals <- os.Interrupt
	i.exits(t, 130)
	if !strings.Contains(i.err.String(), "leaving container web") {
		t.Errorf("stderr: %q", i.err.String())
	}
}

func TestInterruptionOfABootRemovesTheContainer(t *testing.T) {
	t.Parallel()
	for _, flag := range []string{"--detach=true", "--detach=false"} {
		s := newServer(t)
		i := start(t, s, "run", flag, "--name", "slow", "slow")
		await(t, s, "slow", "creating")
		i.signals <- os.Interrupt
		i.exits(t, 130)
		await(t, s, "slow", "gone")
		if i.out.String() != "" || !strings.Contains(i.err.String(), "the container is removed") {
			t.Errorf("stdout %q, stderr %q", i.out.String(), i.err.String())
		}
	}
}

func TestInterruptionEndsOtherCommandsSilently(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	start(t, s, "run", "-d", "--name", "web", "nginx").exits(t, 0)
	for _, c := range []struct {
		args []string
		says string
		code int
	}{
		{[]string{"logs", "-f", "web"}, "up\n", 130},
		{[]string{"serve"}, "serving\n", 0},
	} {
		i := start(t, s, c.args...)
		says(t, &i.out, c.says)
		i.signals <- os.Interrupt
		i.exits(t, c.code)
		if i.err.String() != "" {
			t.Errorf("%v: stderr %q", c.args, i.err.String())
		}
	}
	await(t, s, "web", "running")
}

func TestInterruptionOfAWaitLeavesTheBuild(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	release := make(chan struct{})
	s.host.OnBuild = func(ctx context.Context, _ warmboot.RuntimeSnapshot) error {
		select {
		case <-release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	i := start(t, s, "snapshot", "create")
	says(t, &i.err, "snapshot: booting")
	i.signals <- os.Interrupt
	i.exits(t, 130)
	says(t, &i.err, "the build goes on")
	close(release)
	if err := s.snapshot(); err != nil {
		t.Error(err)
	}
}

func TestFailedBuildIsAFault(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	s.host.OnBuild = func(context.Context, warmboot.RuntimeSnapshot) error {
		return errors.New("Docker did not answer in time")
	}
	i := start(t, s, "snapshot", "create")
	i.exits(t, 1)
	if !strings.Contains(i.err.String(), "could not be built: Docker did not answer in time") {
		t.Errorf("stderr: %q", i.err.String())
	}
}
