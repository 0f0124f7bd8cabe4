package hostnet

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"
)

// resolvConf is where the host's name servers are listed: resolv.conf(5).
const resolvConf = "/etc/resolv.conf"

// localResolver is the name server where none is listed (the same).
var localResolver = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53)

// hostResolver is the first name server in a file like resolvConf.
func hostResolver(path string) (netip.AddrPort, error) {
	f, err := os.Open(path)
	if err != nil {
		return localResolver, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(fields[1]); err == nil {
			return netip.AddrPortFrom(a.Unmap(), 53), nil
		}
	}
	return localResolver, nil
}

// reachable reports whether connections of slots can be sent to a name server by a rule alone. One on the host's loopback may take
// nothing that comes by another interface (systemd-resolved does not), and one with an IPv6 address cannot be named in IPv4.
func reachable(a netip.Addr) bool { return a.Is4() && !a.IsLoopback() }

// The forwarder's limits: of a question, of how many there may be at once, from all guests and from one, so that none has all places, and of how
// long an answer may take. A resolver gives up after five seconds (resolv.conf(5), timeout).
const (
	maxQuestion  = 4096
	maxQuestions = 1024
	maxOfOne     = 64
	answerLimit  = 5 * time.Second
	retryDelay   = 10 * time.Millisecond // of file descriptors there may soon be more
)

// forwarder passes questions for names on to a name server that rules do not reach. It understands nothing of them. It listens on the host's
// loopback, on the same port for UDP and TCP.
type forwarder struct {
	log  *slog.Logger
	udp  *net.UDPConn
	tcp  *net.TCPListener
	all  sync.WaitGroup
	stop context.CancelFunc

	mu       sync.Mutex
	upstream netip.AddrPort
	busy     int                // questions in hand
	busyFor  map[netip.Addr]int // and by whose they are; every slot has an address of its own
}

func startForwarder(upstream netip.AddrPort, log *slog.Logger) (*forwarder, error) {
	f := &forwarder{log: log, upstream: upstream, busyFor: map[netip.Addr]int{}}
	var err error
	for range 10 { // until a port is free for both
		if f.udp, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
			return nil, err
		}
		if f.tcp, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: f.udp.LocalAddr().(*net.UDPAddr).Port}); err == nil {
			break
		}
		_ = f.udp.Close()
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	f.all.Go(func() { f.serveUDP(ctx) })
	f.all.Go(func() { f.serveTCP(ctx) })
	return f, nil
}

func (f *forwarder) addr() netip.AddrPort {
	a := f.udp.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (f *forwarder) setUpstream(a netip.AddrPort) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.upstream = a
}

// begin takes a question in hand, unless there are too many; done is for when it is answered.
func (f *forwarder) begin(from netip.AddrPort) (done func(), ok bool) {
	a := from.Addr().Unmap()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.busy == maxQuestions || f.busyFor[a] == maxOfOne {
		return nil, false
	}
	f.busy++
	f.busyFor[a]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.busy--
		if f.busyFor[a]--; f.busyFor[a] == 0 {
			delete(f.busyFor, a)
		}
	}, true
}

func (f *forwarder) dial(ctx context.Context, network string) (net.Conn, error) {
	f.mu.Lock()
	to := f.upstream
	f.mu.Unlock()
	conn, err := (&net.Dialer{Timeout: answerLimit}).DialContext(ctx, network, to.String())
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	return closing{conn, stop}, conn.SetDeadline(time.Now().Add(answerLimit))
}

// closing is a connection that is also closed when a context ends.
type closing struct {
	net.Conn
	stop func() bool
}

func (c closing) Close() error {
	c.stop()
	return c.Conn.Close()
}

func (f *forwarder) serveUDP(ctx context.Context) {
	question := make([]byte, maxQuestion)
	for {
		n, from, err := f.udp.ReadFromUDPAddrPort(question)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			time.Sleep(retryDelay)
			continue
		}
		done, ok := f.begin(from)
		if !ok {
			continue // whoever asked asks again
		}
		asked := append([]byte(nil), question[:n]...)
		f.all.Go(func() {
			defer done()
			conn, err := f.dial(ctx, "udp")
			if err != nil {
				return
			}
			defer conn.Close()
			if _, err := conn.Write(asked); err != nil {
				return
			}
			answer := make([]byte, 64<<10)
			if n, err := conn.Read(answer); err == nil {
				_, _ = f.udp.WriteToUDPAddrPort(answer[:n], from) // if it cannot be sent it is asked again
			}
		})
	}
}

func (f *forwarder) serveTCP(ctx context.Context) {
	for {
		in, err := f.tcp.AcceptTCP()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			f.log.Warn("A question for a name could not be taken", "err", err)
			time.Sleep(retryDelay)
			continue
		}
		done, ok := f.begin(in.RemoteAddr().(*net.TCPAddr).AddrPort())
		if !ok {
			_ = in.Close()
			continue
		}
		f.all.Go(func() {
			defer done()
			defer func() { _ = in.Close() }()
			out, err := f.dial(ctx, "tcp")
			if err != nil {
				return
			}
			defer out.Close()
			_ = in.SetDeadline(time.Now().Add(answerLimit))
			var both sync.WaitGroup
			both.Go(func() {
				_, _ = io.Copy(out, in)
				if c, ok := out.(closing).Conn.(*net.TCPConn); ok {
					_ = c.CloseWrite()
				}
			})
			_, _ = io.Copy(in, out)
			_ = in.CloseWrite()
			both.Wait()
		})
	}
}

func (f *forwarder) close() error {
	f.stop()
	err := errors.Join(f.udp.Close(), f.tcp.Close())
	f.all.Wait()
	return err
}
