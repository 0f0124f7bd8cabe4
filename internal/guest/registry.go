package guest

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

// addRegistry makes a registry usable by Docker.
func (g *Guest) addRegistry(ctx context.Context, req *guestv1.RegistryRequest) error {
	const op = "set up registry"
	host, ports, err := splitRegistry(req.Host)
	if err != nil {
		return err
	}
	if isLoopback(host) {
		// Docker speaks HTTP to loopback without being told.
		g.mu.Lock()
		gateway := g.gateway
		g.mu.Unlock()
		if gateway == "" {
			return warmboot.Errorf(warmboot.Conflict, op, "%s is the host's own, and the guest does not know the host's address yet; it must be re-identified first", req.Host)
		}
		for _, port := range ports {
			if err := g.registry.forward(port, net.JoinHostPort(gateway, port)); err != nil {
				return &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "port " + port + " of the guest's loopback cannot be forwarded to the host", Err: err}
			}
		}
		return nil
	}
	if !req.PlainHttp {
		return nil
	}
	return g.allowPlainHTTP(ctx, req.Host)
}

// splitRegistry splits host[:port]; without a port, Docker tries 443 and then 80.
func splitRegistry(registry string) (host string, ports []string, err error) {
	bad := warmboot.Errorf(warmboot.Invalid, "set up registry", "%.200q is not a registry; give it as in the image reference, host or host:port", registry)
	if registry == "" || strings.ContainsAny(registry, "/ \t\n@") {
		return "", nil, bad
	}
	host, port, splitErr := net.SplitHostPort(registry)
	if splitErr != nil {
		if strings.Count(registry, ":") == 1 { // a port that is none
			return "", nil, bad
		}
		return strings.Trim(registry, "[]"), []string{"443", "80"}, nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || host == "" {
		return "", nil, bad
	}
	return host, []string{port}, nil
}

func isLoopback(host string) bool {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// allowPlainHTTP adds a registry to those that Docker speaks HTTP to, in the part of its configuration that it can load again
// while it runs.
func (g *Guest) allowPlainHTTP(ctx context.Context, registry string) error {
	const op = "set up registry"
	g.mu.Lock()
	defer g.mu.Unlock()
	allowed := func() (bool, error) {
		info, err := g.docker.info(ctx)
		if err != nil {
			return false, err
		}
		index, ok := info.RegistryConfig.IndexConfigs[registry]
		return ok && !index.Secure, nil
	}
	if ok, err := allowed(); err != nil || ok {
		return unavailable(op, "Docker does not answer", err)
	}
	conf, err := g.readDockerConfig()
	if err != nil {
		return internal(op, err)
	}
	list, _ := conf["insecure-registries"].([]any)
	if !slices.Contains(list, any(registry)) {
		conf["insecure-registries"] = append(list, registry)
		if err := g.writeDockerConfig(conf); err != nil {
			return internal(op, err)
		}
	}
	// Docker reports the reload as an event; listen before asking for it.
	events, err := g.docker.open(ctx, http.MethodGet, `/events?filters={"type":["daemon"],"event":["reload"]}`, nil)
	if err != nil {
		return unavailable(op, "Docker does not answer", err)
	}
	defer events.Body.Close()
	pid, err := g.dockerPID()
	if err == nil {
		err = syscall.Kill(pid, syscall.SIGHUP)
	}
	if err != nil {
		return internal(op, err)
	}
	if _, err := events.Body.Read(make([]byte, 1)); err != nil {
		return unavailable(op, "Docker did not load its configuration again", err)
	}
	ok, err := allowed()
	if err != nil {
		return unavailable(op, "Docker does not answer", err)
	}
	if !ok {
		return warmboot.Errorf(warmboot.Internal, op, "Docker has loaded its configuration again but still insists on TLS for %s", registry)
	}
	return nil
}

func unavailable(op, msg string, err error) error {
	if err == nil {
		return nil
	}
	code := warmboot.CodeOf(err)
	if code == warmboot.Internal {
		code = warmboot.Unavailable
	}
	return &warmboot.Error{Code: code, Op: op, Msg: msg, Err: err}
}

// forwarder makes ports of the host's loopback reachable at the same ports of the guest's.
type forwarder struct {
	log       *slog.Logger
	mu        sync.Mutex
	listeners map[string]net.Listener // by port
	targets   map[string]string       // by port; a clone's host may have another address
}

func newForwarder(log *slog.Logger) *forwarder {
	return &forwarder{log: log, listeners: map[string]net.Listener{}, targets: map[string]string{}}
}

// forward forwards 127.0.0.1:port to target, a host:port, until close.
func (f *forwarder) forward(port, target string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.listeners[port] == nil {
		l, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", port))
		if err != nil {
			return err
		}
		f.listeners[port] = l
		go f.serve(l, port)
	}
	f.targets[port] = target
	return nil
}

// close ends all forwarding; connections that are open go on.
func (f *forwarder) close() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := len(f.listeners)
	for _, l := range f.listeners {
		_ = l.Close()
	}
	clear(f.listeners)
	clear(f.targets)
	return n
}

func (f *forwarder) serve(l net.Listener, port string) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		f.mu.Lock()
		target := f.targets[port]
		f.mu.Unlock()
		go func() {
			defer conn.Close()
			out, err := net.Dial("tcp4", target)
			if err != nil {
				f.log.Warn("registry on the host cannot be reached", "address", target, "error", err)
				return
			}
			defer out.Close()
			relay(conn.(*net.TCPConn), out.(*net.TCPConn))
		}()
	}
}

// relay copies both ways until both have ended.
func relay(a, b *net.TCPConn) {
	var both sync.WaitGroup
	for _, p := range [][2]*net.TCPConn{{a, b}, {b, a}} {
		both.Go(func() {
			if _, err := io.Copy(p[0], p[1]); err != nil {
				_ = p[1].Close()
			}
			_ = p[0].CloseWrite()
		})
	}
	both.Wait()
}

// dockerPID returns the process id of dockerd, whoever started it.
func (g *Guest) dockerPID() (int, error) {
	if g.dockerd != nil {
		if pid := g.dockerd.pid(); pid != 0 {
			return pid, nil
		}
		return 0, fmt.Errorf("dockerd does not run")
	}
	return readPIDFile(g.path(dockerPIDFile))
}
