package guest

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/hashicorp/yamux"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
)

// VsockPort is where the guest API is served over vsock.
const VsockPort = 5000

// serve serves the API on every channel that the machine has. It returns when all of them are broken, or ctx ends.
func (g *Guest) serve(ctx context.Context) error {
	errs := make(chan error, 2)
	channels := 1
	go func() { errs <- g.servePort(ctx) }()
	if exists("/dev/vsock") {
		channels++
		go func() { errs <- g.serveVsock(ctx) }()
	}
	var all []error
	for range channels {
		err := <-errs
		if err != nil && ctx.Err() == nil {
			g.Log.Error("a channel to the host broke", "error", err)
		}
		all = append(all, err)
	}
	return errors.Join(all...)
}

// servePort has one conversation after the other.
func (g *Guest) servePort(ctx context.Context) error {
	device, err := waitPort(ctx, "/sys", "/dev")
	if err != nil {
		return internal("find virtio-serial port", err)
	}
	p, err := openPort(device)
	if err != nil {
		return internal("open virtio-serial port", err)
	}
	defer p.file.Close()
	if answer, err := readFile(g.path(answerFile)); err == nil {
		if err := p.breakOff(answer); err != nil {
			g.Log.Warn("a host may not have noticed that the agent was started again", "error", err)
		}
	}
	return g.conversations(ctx, p)
}

// answerFile holds what the latest conversation over the port began with, for an agent that is started after this one has died.
const answerFile = runDir + "/answer"

func (g *Guest) remember(answer []byte) {
	if g.Init {
		return // nobody comes after us
	}
	if err := writeFile(g.path(answerFile), string(answer)); err != nil {
		g.Log.Warn("if the agent dies, its host will not notice", "error", err)
	}
}

func (g *Guest) conversations(ctx context.Context, p *port) error {
	stop := context.AfterFunc(ctx, func() { p.file.Close() })
	defer stop()
	for ctx.Err() == nil {
		conn := p.converse()
		session, err := guestrpc.Accept(conn, g.remember)
		switch {
		case err == nil:
			g.converse(session)
		case ctx.Err() == nil && !errors.Is(err, io.EOF):
			return internal("read virtio-serial port", err)
		}
		_ = conn.Close()
	}
	return ctx.Err()
}

func (g *Guest) serveVsock(ctx context.Context) error {
	// On every address: a restored machine may have another one than it had when this began.
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, VsockPort, nil)
	if err != nil {
		return internal("listen on vsock", err)
	}
	return g.serveListener(ctx, hostOnly{l})
}

// hostOnly turns away whoever is not the host: with a loopback transport in the kernel, a container could connect as well.
type hostOnly struct{ net.Listener }

func (l hostOnly) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || fromHost(conn.RemoteAddr()) {
			return conn, err
		}
		_ = conn.Close()
	}
}

func fromHost(a net.Addr) bool {
	peer, ok := a.(*vsock.Addr)
	return ok && peer.ContextID == vsock.Host
}

// serveListener has a conversation with everyone who connects.
func (g *Guest) serveListener(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			if session, err := guestrpc.Accept(conn, nil); err == nil {
				g.converse(session)
			}
		}()
	}
}

// converse answers a host's calls until it goes away.
func (g *Guest) converse(session *yamux.Session) {
	defer func() { _ = session.Close() }()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		go g.handle(stream)
	}
}

// handle answers one call.
func (g *Guest) handle(stream *yamux.Stream) {
	defer func() { _ = stream.Close() }()
	r := bufio.NewReader(stream)
	req := &guestv1.Request{}
	if err := guestrpc.ReadMessage(r, req); err != nil {
		refuse(stream, warmboot.Errorf(warmboot.Invalid, "", "the request cannot be read: %w", err))
		return
	}
	defer func() {
		// A panic here would be the kernel's.
		if p := recover(); p != nil {
			g.Log.Error("a call panicked", "traceparent", req.GetTraceparent(), "panic", p, "stack", string(debug.Stack()))
			refuse(stream, warmboot.Errorf(warmboot.Internal, "", "the guest agent panicked: %v", p))
		}
	}()
	switch call := req.Call.(type) {
	case *guestv1.Request_Exec:
		g.exec(stream, r, call.Exec)
	case *guestv1.Request_Tunnel:
		g.tunnel(stream, r, call.Tunnel)
	default:
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() { // the host says no more; end of file means that it gave up
			_, _ = io.Copy(io.Discard, r)
			cancel()
		}()
		resp, err := g.answer(ctx, req)
		if err != nil {
			refuse(stream, err)
			return
		}
		_ = guestrpc.WriteMessage(stream, resp)
		if req.GetShutdown() != nil {
			_ = stream.Close()
			g.offOnce.Do(func() { g.afterLastAnswer(ctx) })
		}
	}
}

// answer does a call that is one request and one response.
func (g *Guest) answer(ctx context.Context, req *guestv1.Request) (*guestv1.Response, error) {
	switch call := req.Call.(type) {
	case *guestv1.Request_Health:
		return &guestv1.Response{Result: &guestv1.Response_Health{Health: g.health()}}, nil
	case *guestv1.Request_WaitDocker:
		r, err := g.waitDocker(ctx, call.WaitDocker)
		return &guestv1.Response{Result: &guestv1.Response_WaitDocker{WaitDocker: r}}, err
	case *guestv1.Request_Quiesce:
		r, err := g.quiesce(ctx)
		return &guestv1.Response{Result: &guestv1.Response_Quiesce{Quiesce: r}}, err
	case *guestv1.Request_Reidentify:
		r, err := g.reidentify(call.Reidentify)
		if err == nil && call.Reidentify.GetPingDocker() {
			r.Docker = g.pingDocker(ctx)
			r.UnixNanos = time.Now().UnixNano() // the host takes the time since then for the answer's way
		}
		return &guestv1.Response{Result: &guestv1.Response_Reidentify{Reidentify: r}}, err
	case *guestv1.Request_Registry:
		err := g.addRegistry(ctx, call.Registry)
		return &guestv1.Response{Result: &guestv1.Response_Registry{Registry: &guestv1.RegistryResponse{}}}, err
	case *guestv1.Request_Shutdown:
		err := g.shutdown(ctx, call.Shutdown)
		return &guestv1.Response{Result: &guestv1.Response_Shutdown{Shutdown: &guestv1.ShutdownResponse{}}}, err
	}
	return nil, warmboot.Errorf(warmboot.Invalid, "", "this guest agent (%s) does not know the call; the runtime image is older than the host's warmboot, rebuild it", g.Version)
}

// refuse answers with a failure.
func refuse(w io.Writer, err error) {
	_ = guestrpc.WriteMessage(w, &guestv1.Response{Failure: &guestv1.Failure{Code: string(warmboot.CodeOf(err)), Message: err.Error()}})
}
