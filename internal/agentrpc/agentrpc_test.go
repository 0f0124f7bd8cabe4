package agentrpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"warmboot"
	"warmboot/internal/agentrpc"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/expect"
	"warmboot/internal/planetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve serves a handler for others of the cluster and returns its address.
func serve(t *testing.T, h http.Handler, c *authority.Credentials) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	expect.NoError(t, err)
	s := agentrpc.NewServer(h, c.Server())
	s.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)
	var done sync.WaitGroup
	done.Go(func() { _ = s.ServeTLS(l, "", "") })
	var once sync.Once
	stop = func() { once.Do(func() { expect.NoError(t, s.Close()); done.Wait() }) }
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// manager is a manager with everything real but its hosts' machines.
type manager struct {
	*planetest.Plane
	ca      *authority.Authority
	address string
	stop    func() // of its cluster server
}

func newManager(t *testing.T, url string) *manager {
	t.Helper()
	m := &manager{}
	var hosts *agentrpc.Hosts
	var err error
	m.Plane, err = planetest.Start(t.Context(), planetest.Config{URL: url, Reach: reach(func(h *warmboot.Host) (controlplane.Host, error) { return hosts.Host(h) })})
	expect.NoError(t, err)
	t.Cleanup(func() { expect.NoError(t, m.Close()) })
	m.ca, err = authority.Open(t.Context(), m.Store)
	expect.NoError(t, err)
	credentials := m.ca.Manager()
	hosts = agentrpc.NewHosts(credentials)
	t.Cleanup(func() { expect.NoError(t, hosts.Close()) })
	m.address, m.stop = serve(t, agentrpc.ManagerHandler(agentrpc.ManagerConfig{Reports: m.Service, Authority: m.ca, Store: m.Store, Log: slog.New(slog.DiscardHandler)}), credentials)
	return m
}

type reach func(*warmboot.Host) (controlplane.Host, error)

func (f reach) Host(h *warmboot.Host) (controlplane.Host, error) { return f(h) }

func (m *manager) token(t *testing.T) string {
	t.Helper()
	secret, _, err := m.ca.NewToken(t.Context(), m.Store, "", time.Hour, "test")
	expect.NoError(t, err)
	return secret
}

// agent is a host that has joined: its machines are in memory, everything between it and its managers is real.
type agent struct {
	*hosttest.Host
	managers    *agentrpc.Managers
	credentials *authority.Credentials
	address     string
	stop        func() // of its server
	peers       *agentrpc.Peers
	files       dirFiles
}

func join(t *testing.T, name, token string, managers ...string) *agent {
	t.Helper()
	a := &agent{Host: hosttest.New(), managers: agentrpc.NewManagers(managers), files: dirFiles(t.TempDir())}
	t.Cleanup(a.Close)
	a.Name = name
	var err error
	a.credentials, a.ID, err = authority.JoinHost(t.Context(), filepath.Join(t.TempDir(), "agent"), token, a.managers)
	expect.NoError(t, err)
	a.managers.Use(a.credentials)
	t.Cleanup(func() { expect.NoError(t, a.managers.Close()) })
	a.peers = agentrpc.NewPeers(a.credentials)
	t.Cleanup(func() { expect.NoError(t, a.peers.Close()) })
	mux := http.NewServeMux()
	mux.Handle("/artifacts/", agentrpc.ArtifactHandler(a.files))
	mux.Handle("/", agentrpc.ManagersOnly(agentrpc.HostHandler(a.Host)))
	a.address, a.stop = serve(t, mux, a.credentials)
	a.Address = a.address
	expect.NoError(t, a.Join(t.Context(), func() controlplane.Reports { return a.managers }))
	return a
}

// dirFiles are the files of a directory.
type dirFiles string

func (d dirFiles) OpenArtifact(path string) (*os.File, error) {
	f, err := os.Open(filepath.Join(string(d), filepath.Clean("/"+path)))
	if err != nil {
		return nil, warmboot.Errorf(warmboot.NotFound, "open", "%w", err)
	}
	return f, nil
}

// TestAContainerOnAnotherHost goes through every call that a container's life makes.
func TestAContainerOnAnotherHost(t *testing.T) {
	t.Parallel()
	m := newManager(t, filepath.Join(t.TempDir(), "db"))
	a := join(t, "one", m.token(t), m.address)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	h, err := m.Service.Host(ctx, "one")
	expect.NoError(t, err)
	if h.ID != a.ID || h.State != warmboot.HostUp || h.Address != a.address || h.Inventory.VMM != hosttest.VMM {
		t.Fatalf("%+v", h)
	}
	img, err := m.Service.RegisterImage(ctx, warmboot.Image{Name: "runtime", KernelPath: hosttest.Root + "k", RootfsPath: hosttest.Root + "r"})
	expect.NoError(t, err)
	_, err = m.Service.RegisterImage(ctx, warmboot.Image{Name: "bad", KernelPath: "/etc/passwd", RootfsPath: hosttest.Root + "r"})
	expect.Code(t, err, warmboot.Denied, "/etc/passwd lies outside")
	snap, err := m.Service.BuildSnapshot(ctx, img.ID)
	expect.NoError(t, err)
	for now := (&warmboot.RuntimeSnapshot{State: warmboot.SnapshotCreating}); now.State == warmboot.SnapshotCreating; {
		now, err = m.Service.WaitSnapshot(ctx, snap, now.Metadata.Step)
		expect.NoError(t, err)
	}
	made, err := m.Service.CreateContainer(ctx, controlplane.CreateContainer{Name: "web", Image: "debian:trixie", Spec: warmboot.ContainerSpec{PortMappings: []warmboot.PortMapping{{ContainerPort: 80}}}})
	expect.NoError(t, err)
	c, err := m.Service.WaitContainer(ctx, "web", controlplane.WaitStarted)
	expect.NoError(t, err)
	if c.State != warmboot.ContainerRunning || c.BootMethod != warmboot.BootWarm || c.SnapshotID != snap || c.HostID != a.ID || len(c.Phases) != 7 || c.Spec.PortMappings[0].HostPort == 0 {
		t.Fatalf("%+v", c)
	}

	a.Print(made.ID, controlplane.LogLine{Stream: "stdout", Text: "hello\n"})
	logs, err := m.Service.Logs(ctx, "web", controlplane.LogOptions{Follow: true, Tail: -1})
	expect.NoError(t, err)
	line, err := logs.Next()
	expect.NoError(t, err)
	if line.Text != "hello\n" || line.Stream != "stdout" {
		t.Errorf("%+v", line)
	}
	expect.NoError(t, logs.Close())

	session, err := m.Service.Exec(ctx, "web", controlplane.ExecSpec{Command: []string{"cat"}, Stdin: true})
	expect.NoError(t, err)
	expect.NoError(t, session.Resize(ctx, 80, 25))
	if _, err := io.WriteString(session.Stdin(), "meow"); err != nil {
		t.Fatal(err)
	}
	expect.NoError(t, session.Stdin().Close())
	var got bytes.Buffer
	for {
		_, data, err := session.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		expect.NoError(t, err)
		got.Write(data)
	}
	if code, err := session.ExitCode(ctx); got.String() != "meow" || code != 0 || err != nil {
		t.Errorf("%q, %d, %v", got.String(), code, err)
	}
	expect.NoError(t, session.Close())
	_, err = m.Service.Exec(ctx, "web", controlplane.ExecSpec{Command: []string{"frobnicate"}})
	expect.Code(t, err, warmboot.NotFound, "frobnicate")

	a.Exit(made.ID, 3)
	if c, err = m.Service.WaitContainer(ctx, "web", controlplane.WaitStopped); err != nil || c.ExitCode == nil || *c.ExitCode != 3 {
		t.Fatalf("%+v, %v", c, err)
	}
	_, err = m.Service.StartContainer(ctx, "web")
	expect.NoError(t, err)
	c, err = m.Service.WaitContainer(ctx, "web", controlplane.WaitStarted)
	expect.NoError(t, err)
	if c.State != warmboot.ContainerRunning {
		t.Fatalf("%+v", c)
	}
	policy := warmboot.RestartPolicy{Name: warmboot.RestartAlways}
	if c, err = m.Service.UpdateContainer(ctx, "web", controlplane.ContainerChange{RestartPolicy: &policy}); err != nil || c.Spec.RestartPolicy != policy {
		t.Errorf("%+v, %v", c, err)
	}
	c, err = m.Service.StopContainer(ctx, "web", time.Second)
	expect.NoError(t, err)
	if c.ExitCode == nil || *c.ExitCode != 143 {
		t.Errorf("%+v", c)
	}
	expect.NoError(t, m.Service.DeleteContainer(ctx, "web", false))
	expect.NoError(t, m.Service.Scrub(ctx))
	if _, err := m.Service.CollectGarbage(ctx, false); err != nil {
		t.Error(err)
	}
}

// TestErrorsCross sends an error of every code, with the causes that somebody looks for.
func TestErrorsCross(t *testing.T) {
	t.Parallel()
	m := newManager(t, filepath.Join(t.TempDir(), "db"))
	a := join(t, "one", m.token(t), m.address)
	var answer error
	a.OnCold = func(context.Context, controlplane.MachineSpec) error { return answer }
	h, err := m.Service.Host(t.Context(), "one")
	expect.NoError(t, err)
	hosts := agentrpc.NewHosts(m.ca.Manager())
	defer hosts.Close()
	host, err := hosts.Host(h)
	expect.NoError(t, err)
	for _, code := range []warmboot.Code{
		warmboot.Invalid, warmboot.Unauthenticated, warmboot.Denied, warmboot.NotFound, warmboot.Conflict, warmboot.TooLarge, warmboot.Exhausted,
		warmboot.ImagePull, warmboot.Unavailable, warmboot.Timeout, warmboot.Canceled, warmboot.Corrupt, warmboot.Incompatible, warmboot.Internal,
	} {
		answer = warmboot.Errorf(code, "cold boot", "it says so (%w)", controlplane.ErrMachineSize)
		_, err := host.ColdBoot(t.Context(), controlplane.MachineSpec{})
		if warmboot.CodeOf(err) != code || err.Error() != answer.Error() || !errors.Is(err, controlplane.ErrMachineSize) || errors.Is(err, controlplane.ErrUnreachable) {
			t.Errorf("%s has become %q: %v", code, warmboot.CodeOf(err), err)
		}
	}
	a.stop()
	_, err = host.Inventory(t.Context())
	if expect.Code(t, err, warmboot.Unavailable, "reach host one"); !errors.Is(err, controlplane.ErrUnreachable) {
		t.Errorf("%v", err)
	}
}

// TestAHostThatVanishesInTheMiddle cuts a call off while the host works at it: the call ends, and so does the host's work.
func TestAHostThatVanishesInTheMiddle(t *testing.T) {
	t.Parallel()
	m := newManager(t, filepath.Join(t.TempDir(), "db"))
	a := join(t, "one", m.token(t), m.address)
	working, ended := make(chan struct{}), make(chan struct{})
	a.OnCold = func(ctx context.Context, _ controlplane.MachineSpec) error {
		close(working)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	h, err := m.Service.Host(t.Context(), "one")
	expect.NoError(t, err)
	hosts := agentrpc.NewHosts(m.ca.Manager())
	defer hosts.Close()
	host, err := hosts.Host(h)
	expect.NoError(t, err)
	go func() { <-working; a.stop() }()
	_, err = host.ColdBoot(t.Context(), controlplane.MachineSpec{})
	if expect.Code(t, err, warmboot.Unavailable); !errors.Is(err, controlplane.ErrUnreachable) {
		t.Errorf("%v", err)
	}
	<-ended
}

func TestAHostTurnsToAnotherManager(t *testing.T) {
	t.Parallel()
	db := filepath.Join(t.TempDir(), "db")
	first := newManager(t, db)
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	expect.NoError(t, err)
	expect.NoError(t, nobody.Close())
	a := join(t, "one", first.token(t), nobody.Addr().String(), first.address)
	expect.NoError(t, a.managers.HostBeat(t.Context(), a.ID, nil))
	first.stop()
	expect.Code(t, a.managers.HostBeat(t.Context(), a.ID, nil), warmboot.Unavailable)
	second, _ := serve(t, agentrpc.ManagerHandler(agentrpc.ManagerConfig{Reports: first.Service, Authority: first.ca, Store: first.Store, Log: slog.New(slog.DiscardHandler)}), first.ca.Manager())
	both := agentrpc.NewManagers([]string{first.address, second})
	both.Use(a.credentials)
	defer both.Close()
	for range 3 {
		expect.NoError(t, both.HostBeat(t.Context(), a.ID, nil))
	}
}

func TestWhoIsLetIn(t *testing.T) {
	t.Parallel()
	m, foreign := newManager(t, filepath.Join(t.TempDir(), "db")), newManager(t, filepath.Join(t.TempDir(), "db"))
	ctx := t.Context()
	enter := func(token string) error {
		_, _, err := authority.JoinHost(ctx, filepath.Join(t.TempDir(), "agent"), token, agentrpc.NewManagers([]string{m.address}))
		return err
	}
	good := m.token(t)
	expect.Code(t, enter("nonsense"), warmboot.Invalid, "wbj_")
	expect.Code(t, enter(foreign.token(t)), warmboot.Unavailable, "not of the cluster that the join token is for")
	last := "0"
	if strings.HasPrefix(good, "wbj_0") {
		last = "1"
	}
	expect.Code(t, enter("wbj_"+last+good[5:]), warmboot.Unauthenticated, "not known")
	secret, _, err := m.ca.NewToken(ctx, m.Store, "", -time.Second, "test")
	expect.NoError(t, err)
	expect.Code(t, enter(secret), warmboot.Unauthenticated, "expired")
	expect.NoError(t, enter(good))
	expect.Code(t, enter(good), warmboot.Unauthenticated, "it was used")

	a, b := join(t, "one", m.token(t), m.address), join(t, "two", m.token(t), m.address)
	// A host's name is its own.
	b.Name = "one"
	expect.Code(t, b.SayHello(ctx), warmboot.Conflict, "another host has the name one")
	// A host cannot speak for another, nor command one.
	expect.NoError(t, b.managers.HostBeat(ctx, a.ID, nil)) // it is taken for its own
	commands := &http.Client{Transport: &http.Transport{TLSClientConfig: b.credentials.Client(authority.HostName(a.ID)), ForceAttemptHTTP2: true}}
	defer commands.CloseIdleConnections()
	res, err := commands.Post("https://"+a.address+"/warmboot.agent.v1.Host/Containers", "application/json", strings.NewReader("{}"))
	expect.NoError(t, err)
	if res.Body.Close(); res.StatusCode != http.StatusForbidden {
		t.Errorf("a host may command another: %s", res.Status)
	}
	// Who is not of the cluster can do nothing but join.
	strangers := foreign.ca.Manager()
	stranger := agentrpc.NewHosts(strangers)
	defer stranger.Close()
	h, err := m.Service.Host(ctx, string(a.ID))
	expect.NoError(t, err)
	host, err := stranger.Host(h)
	expect.NoError(t, err)
	_, err = host.Containers(ctx)
	expect.Code(t, err, warmboot.Unavailable, "certificate")
	outside := join(t, "outside", foreign.token(t), foreign.address)
	wrong := agentrpc.NewManagers([]string{m.address})
	wrong.Use(outside.credentials)
	defer wrong.Close()
	expect.Code(t, wrong.HostBeat(ctx, outside.ID, nil), warmboot.Unavailable, "certificate")

	// A host that was removed is out, until it joins again.
	_, err = m.Store.UpdateHost(ctx, a.ID, func(h *warmboot.Host) error { h.State = warmboot.HostDown; return nil })
	expect.NoError(t, err)
	expect.NoError(t, m.Service.RemoveHost(ctx, "one"))
	expect.Code(t, a.managers.HostBeat(ctx, a.ID, nil), warmboot.NotFound)
	expect.Code(t, a.SayHello(ctx), warmboot.Denied, "was removed")
	_, err = a.managers.Renew(ctx, "x")
	expect.Code(t, err, warmboot.Denied, "was removed")
}

// TestAHostThatLostItsCertificateComesBack joins with a token for a host that is known.
func TestAHostThatLostItsCertificateComesBack(t *testing.T) {
	t.Parallel()
	m := newManager(t, filepath.Join(t.TempDir(), "db"))
	a := join(t, "one", m.token(t), m.address)
	secret, _, err := m.ca.NewToken(t.Context(), m.Store, a.ID, time.Hour, "test")
	expect.NoError(t, err)
	_, id, err := authority.JoinHost(t.Context(), filepath.Join(t.TempDir(), "agent"), secret, a.managers)
	if err != nil || id != a.ID {
		t.Errorf("%s, %v", id, err)
	}
}

func TestFilesOfAPeer(t *testing.T) {
	t.Parallel()
	m := newManager(t, filepath.Join(t.TempDir(), "db"))
	a, b := join(t, "one", m.token(t), m.address), join(t, "two", m.token(t), m.address)
	content := make([]byte, 2*agentrpc.ChunkSize+5)
	copy(content[agentrpc.ChunkSize:], "text")
	copy(content[2*agentrpc.ChunkSize:], "tail!")
	expect.NoError(t, os.WriteFile(filepath.Join(string(a.files), "mem"), content, 0o600))
	expect.NoError(t, os.WriteFile(filepath.Join(string(a.files), "empty"), nil, 0o600))
	peer := controlplane.Peer{ID: a.ID, Address: a.address}
	for n, want := range map[int64][]byte{0: nil, 1: content[agentrpc.ChunkSize : 2*agentrpc.ChunkSize], 2: []byte("tail!")} {
		data, size, err := b.peers.Chunk(t.Context(), peer, "mem", n)
		expect.NoError(t, err)
		if !bytes.Equal(data, want) || size != int64(len(content)) {
			t.Errorf("chunk %d has %d bytes, of %d", n, len(data), size)
		}
	}
	if data, size, err := b.peers.Chunk(t.Context(), peer, "empty", 0); len(data) != 0 || size != 0 || err != nil {
		t.Errorf("an empty file: %d of %d, %v", len(data), size, err)
	}
	expect.NoError(t, os.WriteFile(filepath.Join(string(a.files), "disk"), nil, 0o600))
	disk, err := os.OpenFile(filepath.Join(string(a.files), "disk"), os.O_WRONLY, 0)
	expect.NoError(t, err)
	defer disk.Close()
	expect.NoError(t, disk.Truncate(1000*agentrpc.ChunkSize+1))
	for _, n := range []int64{3, 4, 900} {
		_, err := disk.WriteAt([]byte("text"), n*agentrpc.ChunkSize+1)
		expect.NoError(t, err)
	}
	for file, want := range map[string][][2]int64{"empty": {}, "mem": {{0, 3}}, "disk": {{3, 5}, {900, 901}}} {
		size, got, err := b.peers.Layout(t.Context(), peer, file)
		expect.NoError(t, err)
		info, err := os.Stat(filepath.Join(string(a.files), file))
		expect.NoError(t, err)
		if size != info.Size() || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %d bytes, data in chunks %v, want %v", file, size, got, want)
		}
	}
	_, _, err = b.peers.Layout(t.Context(), peer, "absent")
	expect.Code(t, err, warmboot.NotFound, "absent")
	_, _, err = b.peers.Chunk(t.Context(), peer, "absent", 0)
	expect.Code(t, err, warmboot.NotFound, "absent")
	_, _, err = b.peers.Chunk(t.Context(), controlplane.Peer{ID: b.ID, Address: a.address}, "mem", 0)
	expect.Code(t, err, warmboot.Unavailable) // whoever is there is not who was meant
	nobody := &http.Client{Transport: &http.Transport{TLSClientConfig: func() *tls.Config {
		c := b.credentials.Client(authority.HostName(a.ID))
		c.GetClientCertificate = nil
		return c
	}(), ForceAttemptHTTP2: true}}
	defer nobody.CloseIdleConnections()
	res, err := nobody.Get("https://" + a.address + "/artifacts/mem?chunk=0")
	expect.NoError(t, err)
	if res.Body.Close(); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger is answered %s", res.Status)
	}
}

func TestJoiningIsLimitedForWrongTokensOnly(t *testing.T) {
	t.Parallel()
	m := newManager(t, filepath.Join(t.TempDir(), "db"))
	for i := range 50 { // a rack that is switched on
		join(t, "h"+strconv.Itoa(i), m.token(t), m.address)
	}
	used := m.token(t)
	join(t, "last", used, m.address)
	managers := agentrpc.NewManagers([]string{m.address})
	t.Cleanup(func() { expect.NoError(t, managers.Close()) })
	for range 100 {
		_, _, err := authority.JoinHost(t.Context(), filepath.Join(t.TempDir(), "agent"), used, managers)
		if warmboot.CodeOf(err) == warmboot.Exhausted {
			return
		}
		expect.Code(t, err, warmboot.Unauthenticated)
	}
	t.Error("100 wrong tokens were looked at")
}
