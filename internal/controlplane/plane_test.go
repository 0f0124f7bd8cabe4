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
	"warmboot/internal/expect"
	"warmboot/internal/planetest"
	"warmboot/internal/store"
	"warmboot/internal/store/pgtest"
)

var postgres pgtest.Shared

func TestMain(m *testing.M) {
	postgres.Start()
	goleak.VerifyTestMain(m, goleak.IgnoreCurrent(), goleak.Cleanup(postgres.End))
}

// plane is a control plane on a real store and a host in memory.
type plane struct {
	t     *testing.T
	shape func(*controlplane.Config)
	svc   *controlplane.Service
	stop  func()
	url   string
	store *store.Store
	host  *hosttest.Host
	log   *logLines
	img   *warmboot.Image
}

// newPlane starts a Service with one image registered. shape may set the host's hooks and change the configuration.
func newPlane(t *testing.T, shape func(*hosttest.Host, *controlplane.Config)) *plane {
	t.Helper()
	t.Parallel()
	p := &plane{t: t, host: hosttest.New(), log: &logLines{}, url: filepath.Join(t.TempDir(), "warmboot.db")}
	t.Cleanup(p.host.Close)
	p.shape = func(c *controlplane.Config) {
		if shape != nil {
			shape(p.host, c)
		}
	}
	p.start()
	var err error
	p.img, err = p.svc.RegisterImage(t.Context(), runtimeImage("runtime"))
	p.must(err)
	return p
}

func runtimeImage(name string) warmboot.Image {
	return warmboot.Image{Name: name, KernelPath: hosttest.Root + "vmlinuz", RootfsPath: hosttest.Root + "rootfs.ext4"}
}

// start starts a control plane on the database, and lets the host join.
func (p *plane) start() {
	p.t.Helper()
	started, err := planetest.Start(p.t.Context(), planetest.Config{URL: p.url, Hosts: []*hosttest.Host{p.host}, Log: slog.New(p.log), Shape: p.shape})
	p.must(err)
	p.svc, p.store = started.Service, started.Store
	p.stop = func() {
		if err := started.Close(); err != nil {
			p.t.Error(err)
		}
	}
	p.t.Cleanup(p.stop)
}

// restart replaces the Service by a new one on the same store and host.
func (p *plane) restart() {
	p.t.Helper()
	p.stop()
	p.start()
}

// offline does something to the store while no Service runs.
func (p *plane) offline(f func(*store.Store)) {
	p.t.Helper()
	st, err := store.Open(p.t.Context(), store.Config{URL: p.url, Log: slog.New(slog.DiscardHandler)})
	p.must(err)
	f(st)
	p.must(st.Close())
}

func (p *plane) must(err error) {
	p.t.Helper()
	expect.NoError(p.t, err)
}

// wantCode fails the test unless err has the code, and its text every one of words.
func (p *plane) wantCode(err error, code warmboot.Code, words ...string) {
	p.t.Helper()
	expect.Code(p.t, err, code, words...)
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

// waitState waits until a snapshot is in a state.
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
