package controlplane_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plane is a Service on a real store and a host in memory.
type plane struct {
	t     *testing.T
	svc   *controlplane.Service
	store *store.Store
	host  *hosttest.Host
	log   *logLines
	img   *warmboot.Image
}

// newPlane starts a Service with one image registered. shape may set the host's hooks and change the configuration.
func newPlane(t *testing.T, shape func(*hosttest.Host, *controlplane.Config)) *plane {
	t.Helper()
	t.Parallel()
	st, err := store.Open(t.Context(), store.Config{URL: filepath.Join(t.TempDir(), "warmboot.db"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	p := &plane{t: t, store: st, host: hosttest.New(), log: &logLines{}}
	config := controlplane.Config{Store: st, Host: p.host, Log: slog.New(p.log)}
	if shape != nil {
		shape(p.host, &config)
	}
	p.svc = controlplane.New(config)
	t.Cleanup(p.svc.Close)
	if err := p.svc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.img, err = p.svc.RegisterImage(t.Context(), warmboot.Image{Name: "runtime", KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"})
	p.must(err)
	return p
}

// restart replaces the Service by a new one on the same store and host, as after a crash.
func (p *plane) restart() {
	p.t.Helper()
	p.svc.Close()
	p.svc = controlplane.New(controlplane.Config{Store: p.store, Host: p.host, Log: slog.New(p.log)})
	p.t.Cleanup(p.svc.Close)
	p.must(p.svc.Start(p.t.Context()))
}

func (p *plane) must(err error) {
	p.t.Helper()
	if err != nil {
		p.t.Fatal(err)
	}
}

// wantCode fails the test unless err has the code, and its text every one of words.
func (p *plane) wantCode(err error, code warmboot.Code, words ...string) {
	p.t.Helper()
	if got := warmboot.CodeOf(err); got != code {
		p.t.Fatalf("error %v has code %q, want %q", err, got, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			p.t.Fatalf("error %q does not say %q", err, w)
		}
	}
}

// create makes a container and waits until it has started or failed.
func (p *plane) create(in controlplane.CreateContainer) *warmboot.Container {
	p.t.Helper()
	if in.Image == "" {
		in.Image = "debian:trixie"
	}
	c, err := p.svc.CreateContainer(p.t.Context(), in)
	p.must(err)
	return p.wait(c.ID, controlplane.WaitStarted)
}

func (p *plane) wait(id warmboot.ID, cond controlplane.WaitFor) *warmboot.Container {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	c, err := p.svc.WaitContainer(ctx, string(id), cond)
	p.must(err)
	return c
}

// snapshot builds a snapshot and waits until it is ready.
func (p *plane) snapshot() warmboot.ID {
	p.t.Helper()
	id, err := p.svc.BuildSnapshot(p.t.Context(), p.img.ID)
	p.must(err)
	p.waitState(id, warmboot.SnapshotReady)
	return id
}

// waitState waits until a snapshot is in a state. The Service tells containers' changes only, so this looks again and again.
func (p *plane) waitState(id warmboot.ID, want warmboot.SnapshotState) *warmboot.RuntimeSnapshot {
	p.t.Helper()
	return eventually(p.t, "snapshot "+string(id)+" is "+string(want), func() (*warmboot.RuntimeSnapshot, bool) {
		snap, err := p.svc.Snapshot(p.t.Context(), id)
		p.must(err)
		return snap, snap.State == want
	})
}

// eventually looks every few milliseconds until something holds.
func eventually[T any](t *testing.T, what string, look func() (T, bool)) T {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		if v, ok := look(); ok {
			return v
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("it did not come to pass that %s", what)
		}
	}
}

// logLines is a slog.Handler that keeps "LEVEL message".
type logLines struct {
	mu    sync.Mutex
	lines []string
}

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logLines) WithGroup(string) slog.Handler            { return l }
func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, r.Level.String()+" "+r.Message)
	return nil
}

// want waits for a line that matches the whole of the pattern.
func (l *logLines) want(t *testing.T, pattern string) {
	t.Helper()
	re := regexp.MustCompile("^(?:" + pattern + ")$")
	eventually(t, "the log has a line "+pattern+"; it has:\n"+strings.Join(l.all(), "\n"), func() (struct{}, bool) {
		return struct{}{}, slices.ContainsFunc(l.all(), re.MatchString)
	})
}

func (l *logLines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}
