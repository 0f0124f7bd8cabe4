package guest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
)

func TestExec(t *testing.T) {
	t.Parallel()
	c := serveTest(t, newTestGuest(t))
	run := func(stdin string, argv ...string) (stdout, stderr string, code int) {
		t.Helper()
		p, err := c.Exec(t.Context(), &guestv1.ExecRequest{Argv: argv, Env: []string{"X=y"}, Dir: "/usr"})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			io.WriteString(p.Stdin, stdin)
			p.Stdin.Close()
		}()
		var o, e bytes.Buffer
		p.Output(func(a, b []byte) { o.Write(a); e.Write(b) })
		code, err = p.Wait()
		if err != nil {
			t.Fatal(err)
		}
		return o.String(), e.String(), code
	}
	if o, e, code := run("", "sh", "-c", "echo $X; pwd >&2; exit 9"); o != "y\n" || e != "/usr\n" || code != 9 {
		t.Errorf("%q %q %d", o, e, code)
	}
	big := rand.Text() + strings.Repeat("0123456789abcdef", 200_000)
	if o, _, code := run(big, "cat"); o != big || code != 0 {
		t.Errorf("%d of %d bytes came back, code %d", len(o), len(big), code)
	}
	// A command that ends without reading its input, and one that leaves its output open.
	if _, _, code := run(big, "true"); code != 0 {
		t.Errorf("code %d", code)
	}
	if o, _, code := run("", "sh", "-c", "sleep 5 & echo over"); o != "over\n" || code != 0 {
		t.Errorf("%q %d", o, code)
	}
	for _, argv := range [][]string{nil, {""}, {"/no/such/program"}, {"/etc/passwd"}} {
		_, err := c.Exec(t.Context(), &guestv1.ExecRequest{Argv: argv})
		if code := warmboot.CodeOf(err); code != warmboot.Invalid && code != warmboot.NotFound {
			t.Errorf("%q: %v", argv, err)
		}
	}
}

func TestExecSignals(t *testing.T) {
	t.Parallel()
	c := serveTest(t, newTestGuest(t))
	p, err := c.Exec(t.Context(), &guestv1.ExecRequest{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Signal(15); err != nil {
		t.Fatal(err)
	}
	if code, err := p.Wait(); code != 143 || err != nil {
		t.Errorf("%d %v", code, err)
	}
	// A host that hangs up kills.
	if p, err = c.Exec(t.Context(), &guestv1.ExecRequest{Argv: []string{"sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	p.Close()
	eventually(t, "the end of the command", func() bool { return !alive(p.PID) })
}

func TestTunnel(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	c := serveTest(t, g)
	if _, err := c.DialDocker(t.Context()); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("without Docker: %v", err)
	}
	// Like Docker's attach: takes input to its end, then answers on the same connection.
	serveDocker(t, g, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		in, _ := io.ReadAll(rw)
		conn.Write(bytes.ToUpper(in))
	}))
	conn, err := c.DialDocker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	big := strings.Repeat("input ", 100_000)
	io.WriteString(conn, "POST / HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n")
	io.WriteString(conn, big)
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); string(got) != strings.ToUpper(big) || err != nil {
		t.Errorf("%d bytes came back, %v; want %d", len(got), err, len(big))
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("wrote after CloseWrite")
	}
}

// TestTunnelIsCut: closing the host's end wakes its reader and reaches Docker, which may be writing at the time.
func TestTunnelIsCut(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	c := serveTest(t, g)
	ended := make(chan struct{})
	serveDocker(t, g, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		for {
			if _, err := w.Write(make([]byte, 32<<10)); err != nil || r.Context().Err() != nil {
				return
			}
		}
	}))
	conn, err := c.DialDocker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: docker\r\n\r\n")
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := io.Copy(io.Discard, conn); !errors.Is(err, net.ErrClosed) {
		t.Errorf("reading on: %v", err)
	}
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Error("Docker still writes")
	}
}

// TestWaitDocker waits through everything that can be there before Docker answers.
func TestWaitDocker(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	c := serveTest(t, g)
	_, err := c.WaitDocker(t.Context(), 20*time.Millisecond)
	if warmboot.CodeOf(err) != warmboot.Timeout {
		t.Errorf("without Docker: %v", err)
	}
	// One that dies when it is asked, and leaves its socket.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.docker.socket})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	died := make(chan struct{})
	go func() {
		defer close(died)
		if conn, err := dead.Accept(); err == nil {
			conn.Close()
		}
		dead.Close()
	}()
	type result struct {
		version string
		err     error
	}
	answered := make(chan result)
	go func() {
		r, err := c.WaitDocker(t.Context(), 10*time.Second)
		answered <- result{r.GetApiVersion(), err}
	}()
	<-died
	os.Remove(g.docker.socket)
	serveDocker(t, g, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.45")
		io.WriteString(w, "OK")
	}))
	if r := <-answered; r.version != "1.45" || r.err != nil {
		t.Errorf("%+v", r)
	}
	g.broken = errors.New("no data disk")
	if _, err := c.WaitDocker(t.Context(), time.Minute); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "no data disk") {
		t.Errorf("a broken machine: %v", err)
	}
}

// A Docker that answers at once is told of with the identity; whatever else there may be is left to WaitDocker.
func TestReidentifyPingsDocker(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	ask := func() *guestv1.ReidentifyResponse {
		t.Helper()
		resp, err := g.answer(t.Context(), &guestv1.Request{Call: &guestv1.Request_Reidentify{Reidentify: &guestv1.ReidentifyRequest{PingDocker: true}}})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetReidentify()
	}
	if r := ask(); r.Docker != nil {
		t.Errorf("without Docker: %v", r.Docker)
	}
	var mute atomic.Bool
	serveDocker(t, g, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if mute.Load() {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Api-Version", "1.45")
		io.WriteString(w, "OK")
	}))
	before := time.Now()
	if r := ask(); r.GetDocker().GetApiVersion() != "1.45" || r.Docker.WaitedMicros <= 0 {
		t.Errorf("with Docker: %v", r.Docker)
	}
	mute.Store(true)
	r := ask()
	if r.Docker != nil {
		t.Errorf("with a Docker that does not answer: %v", r.Docker)
	}
	if read := time.Unix(0, r.UnixNanos); read.Before(before.Add(pingPatience)) {
		t.Errorf("the clock was read at %v, before Docker was given up", read)
	}
}

func TestRegistryOfTheHost(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	c := serveTest(t, g)
	l, err := net.Listen("tcp4", "127.0.0.1:0") // a port that is free at 127.0.0.1, where the guest will listen ...
	if err != nil {
		t.Fatal(err)
	}
	port := strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
	l.Close()
	if err := c.Registry(t.Context(), "localhost:"+port, true); warmboot.CodeOf(err) != warmboot.Conflict {
		t.Errorf("before the gateway is known: %v", err)
	}
	host, err := net.Listen("tcp4", "127.0.0.2:"+port) // ... and the host at its own address
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })}
	go s.Serve(host)
	defer s.Close()
	g.gateway = "127.0.0.2"
	for range 2 {
		if err := c.Registry(t.Context(), "localhost:"+port, true); err != nil {
			t.Fatal(err)
		}
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	big := rand.Text() + strings.Repeat("layer", 300_000)
	resp, err := client.Post("http://localhost:"+port+"/", "text/plain", strings.NewReader(big))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(got) != big || err != nil {
		t.Errorf("%d bytes came back, %v; want %d", len(got), err, len(big))
	}
	if n := g.registry.close(); n != 1 {
		t.Errorf("%d ports were forwarded", n)
	}
	if _, err := net.Dial("tcp4", "127.0.0.1:"+port); err == nil {
		t.Error("the port is still forwarded")
	}
	for _, bad := range []string{"", "a/b", "host:port", "host:0", "host:99999", ":5000", "a b"} {
		if err := c.Registry(t.Context(), bad, true); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := c.Registry(t.Context(), "registry.example", false); err != nil {
		t.Errorf("a registry with TLS needs nothing: %v", err)
	}
}

func TestHealthAndUnknownCalls(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	c := serveTest(t, g)
	h, err := c.Health(t.Context())
	if err != nil || h.AgentVersion != "test" || h.UptimeSeconds <= 0 || time.Since(time.Unix(0, h.UnixNanos)).Abs() > time.Minute {
		t.Errorf("%v %v", h, err)
	}
	if _, err := g.answer(t.Context(), &guestv1.Request{}); warmboot.CodeOf(err) != warmboot.Invalid {
		t.Errorf("an unknown call: %v", err)
	}
}

func TestDockerConfiguration(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	os.MkdirAll(g.path(runDir), 0o755)
	// What the image brings wins, but never a door to the network.
	if err := g.writeDockerConfig(map[string]any{"hosts": []string{"tcp://0.0.0.0:2375"}, "storage-driver": "vfs"}); err != nil {
		t.Fatal(err)
	}
	if err := g.writeServiceConfig(); err != nil {
		t.Fatal(err)
	}
	conf, err := g.readDockerConfig()
	if err != nil || conf["hosts"] != nil || conf["storage-driver"] != "vfs" || conf["bridge"] != "none" {
		t.Errorf("%v %v", conf, err)
	}
}

// TestPortConversations uses a FIFO, which tells its reader about the coming and going of writers as a virtio-serial port does
// about hosts.
func TestPortConversations(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	p := &port{file: file, raw: raw}
	for _, text := range []string{"first host", "second host"} {
		conn := p.converse()
		go func() {
			w, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(w, text)
			w.Close()
		}()
		// Without a host it waits; then it reads until the host is gone.
		if got, err := io.ReadAll(conn); !strings.HasSuffix(string(got), text) || err != nil {
			t.Fatalf("%q %v, want %q", got, err, text)
		}
		if string(p.tail) != text {
			t.Errorf("kept %q of %q", p.tail, text)
		}
		conn.Close()
	}
	// Closing wakes one that waits for a host.
	p.tail = nil
	conn := p.converse()
	time.AfterFunc(10*time.Millisecond, func() { conn.Close() })
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("woken with %v", err)
	}
}

// TestHostThatTakesOver begins a conversation in the middle of another, as happens when a host goes away and comes back, or
// another one does, faster than the guest notices.
func TestHostThatTakesOver(t *testing.T) {
	t.Parallel()
	g := newTestGuest(t)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fds[0]), "guest's end")
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.conversations(ctx, &port{file: file, raw: raw})
	}()
	defer func() { cancel(); <-ended }()
	host := os.NewFile(uintptr(fds[1]), "host's end")
	defer host.Close()
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 900*time.Millisecond) // before Connect would try again
		c, err := guestrpc.Connect(ctx, func(context.Context) (net.Conn, error) { return borrowed{host}, nil })
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
		host.SetDeadline(time.Unix(1, 0)) // the host ends without a word; its channel stays
		c.Close()                         // returns when nobody reads the channel any more
		host.SetDeadline(time.Time{})
	}
}

// borrowed is a channel that outlives its conversations.
type borrowed struct{ *os.File }

func (borrowed) Close() error         { return nil }
func (borrowed) LocalAddr() net.Addr  { return &net.UnixAddr{} }
func (borrowed) RemoteAddr() net.Addr { return &net.UnixAddr{} }

// TestBreakOff uses a pipe, which takes as much as its reader does, as a port does.
func TestBreakOff(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	p := &port{file: w}
	if err := p.breakOff([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 10)
	if n, err := r.Read(text); string(text[:n]) != "answer" || err != nil {
		t.Errorf("the host read %q, %v", text[:n], err)
	}
	// Full, it takes nothing, like a port whose host is away.
	w.SetWriteDeadline(time.Now().Add(50 * time.Millisecond))
	for err == nil {
		_, err = w.Write(make([]byte, 4096))
	}
	if err := p.breakOff([]byte("answer")); err != nil {
		t.Error(err)
	}
}

// TestPortGetsItsNameLater: the host tells the name of a port after the port.
func TestPortGetsItsNameLater(t *testing.T) {
	t.Parallel()
	sys, dev := t.TempDir(), t.TempDir()
	found := make(chan string)
	go func() {
		device, err := waitPort(t.Context(), sys, dev)
		if err != nil {
			t.Error(err)
		}
		found <- device
	}()
	console, ours := filepath.Join(sys, "class/virtio-ports/vport0p0"), filepath.Join(sys, "class/virtio-ports/vport0p1")
	for _, dir := range []string{console, ours} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, node := range []string{"vport0p0", "vport0p1"} {
		if err := os.WriteFile(filepath.Join(dev, node), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case device := <-found:
		t.Errorf("found %q, which has no name", device)
	case <-time.After(50 * time.Millisecond):
	}
	if err := os.WriteFile(filepath.Join(ours, "name"), []byte(PortName+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	select {
	case device := <-found:
		if !strings.HasSuffix(device, "/vport0p1") {
			t.Errorf("found %q", device)
		}
	case <-time.After(10 * time.Second):
		t.Error("not found")
	}
}
