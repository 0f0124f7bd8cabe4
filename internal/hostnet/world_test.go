package hostnet

import (
	"bufio"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	vishns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/netns"
)

// refusedIn is how long a connection that must not come about is tried; reachedIn one that must.
const (
	refusedIn = 700 * time.Millisecond
	reachedIn = 5 * time.Second
)

var serial atomic.Int32

// owner is another one each time.
func owner() string { return fmt.Sprintf("%06x", 0xa00000+serial.Add(1)) }

// config is that of an owner of its own.
func config(t *testing.T) Config {
	t.Helper()
	return Config{
		Mode: TAP, Owner: owner(), FirstUID: 1_970_000_001 + uint32(serial.Add(1))<<15, Ready: 1, Log: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
		resolvConf: resolvFile(t, "nameserver 127.0.0.1"),
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func resolvFile(t *testing.T, text string) string {
	t.Helper()
	path := t.TempDir() + "/resolv.conf"
	if err := os.WriteFile(path, []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// open opens a Net and closes it at the end of the test, when nothing of its owner may be left.
func open(t *testing.T, c Config) *Net {
	t.Helper()
	needRoot(t)
	n, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		nothingLeft(t, c)
	})
	if err := n.Settle(); err != nil {
		t.Fatal(err)
	}
	return n
}

// nothingLeft fails the test if anything of an owner is on the host.
func nothingLeft(t *testing.T, c Config) {
	t.Helper()
	r := newRules(c)
	links, err := whole(netlink.LinkList)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Attrs().Name, r.links) {
			t.Errorf("interface %s is left", l.Attrs().Name)
		}
	}
	if tableExists(t, r.name) {
		t.Errorf("table %s is left", r.name)
	}
	if g := (&guard{owner: c.Owner, first: c.FirstUID}); tableExists(t, g.table()) {
		t.Errorf("table %s is left", g.table())
	}
}

// take takes a slot and gives it back at the end of the test.
func take(t *testing.T, n *Net, w Wants) *Slot {
	t.Helper()
	s, err := n.Take(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Release(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func namespace(t *testing.T) *os.File {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	configure(t, ns, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		return h.LinkSetUp(lo)
	})
	return ns
}

func configure(t *testing.T, ns *os.File, f func(*netlink.Handle) error) {
	t.Helper()
	h, err := netlink.NewHandleAt(vishns.NsHandle(ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := f(h); err != nil {
		t.Fatal(err)
	}
}

// outside is a machine in the host's network.
type outside struct {
	ns         *os.File
	host, addr netip.Addr // the host's address in that network, and the machine's own
	link       string     // the host's interface
}

// newOutside connects another machine to the host. more are further addresses of it, to which the host knows the way.
func newOutside(t *testing.T, more ...string) outside {
	t.Helper()
	needRoot(t)
	n := serial.Add(1)
	// RFC 2544's networks for tests of network devices.
	o := outside{ns: namespace(t), link: fmt.Sprintf("wan%d", n), host: netip.AddrFrom4([4]byte{198, 18, byte(n), 1}), addr: netip.AddrFrom4([4]byte{198, 18, byte(n), 2})}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	configure(t, o.ns, func(h *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		pair := netlink.NewVeth(attrs)
		pair.PeerName, pair.PeerNamespace = o.link, netlink.NsFd(home.Fd())
		if err := h.LinkAdd(pair); err != nil {
			return err
		}
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		err = errors.Join(h.LinkSetUp(link), h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(o.addr, 24))}))
		for _, a := range more {
			err = errors.Join(err, h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(host(netip.MustParseAddr(a)))}))
		}
		return err
	})
	t.Cleanup(func() {
		if link, err := netlink.LinkByName(o.link); err == nil {
			netlink.LinkDel(link)
		}
	})
	link, err := netlink.LinkByName(o.link)
	if err == nil {
		err = errors.Join(netlink.LinkSetUp(link), netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(o.host, 24))}))
	}
	for _, a := range more {
		err = errors.Join(err, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: o.addr.AsSlice(), Dst: ipNet(host(netip.MustParseAddr(a)))}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// guest is a machine behind a slot's TAP: another namespace, whose interface we connect to the TAP frame by frame, as a VMM does.
type guest struct {
	ns   *os.File
	slot *Slot
}

func newGuest(t *testing.T, s *Slot) guest {
	t.Helper()
	g := guest{ns: namespace(t), slot: s}
	if err := netns.In(g.ns, func() error { return netns.MakeTAP("eth0", 0) }); err != nil {
		t.Fatal(err)
	}
	theirs := openTAP(t, netns.Path(g.ns), "eth0")
	ours := openTAP(t, s.Network.Namespace, s.Network.TAP)
	var both sync.WaitGroup
	for _, pair := range [][2]*os.File{{theirs, ours}, {ours, theirs}} {
		both.Go(func() { pump(pair[0], pair[1]) })
	}
	t.Cleanup(func() { // before the slot is released
		theirs.Close()
		ours.Close()
		both.Wait()
	})
	configure(t, g.ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(s.Network.Guest())}), h.LinkSetUp(link),
			h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: s.Network.Gateway().AsSlice()}))
	})
	return g
}

// openTAP opens a TAP so that reading it ends when it is closed.
func openTAP(t *testing.T, path, name string) *os.File {
	t.Helper()
	f, err := netns.OpenTAP(path, name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

func pump(from, to *os.File) {
	frame := make([]byte, 1<<17)
	for {
		n, err := from.Read(frame)
		if errors.Is(err, syscall.EBADFD) { // its interface is about to go
			return
		}
		if err != nil {
			return
		}
		if _, err := to.Write(frame[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// The namespace nil is the host.
func within(ns *os.File, f func() error) error {
	if ns == nil {
		return f()
	}
	return netns.In(ns, f)
}

// serve answers each TCP connection and each UDP datagram at an address with name and the address it came from.
func serve(t *testing.T, ns *os.File, at netip.AddrPort, name string) netip.AddrPort {
	t.Helper()
	var l *net.TCPListener
	var c *net.UDPConn
	if err := within(ns, func() (err error) {
		if l, err = net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(at)); err != nil {
			return err
		}
		at = l.Addr().(*net.TCPAddr).AddrPort()
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	over := make(chan struct{})
	all.Go(func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				fmt.Fprintf(conn, "%s to %s\n", name, conn.RemoteAddr().(*net.TCPAddr).IP)
				<-over
			})
		}
	})
	all.Go(func() {
		question := make([]byte, 2048)
		for {
			_, from, err := c.ReadFromUDPAddrPort(question)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				c.WriteToUDPAddrPort(fmt.Appendf(nil, "%s to %s\n", name, from.Addr()), from)
			}
		}
	})
	t.Cleanup(func() {
		close(over)
		l.Close()
		c.Close()
		all.Wait()
	})
	return at
}

// ask connects from a namespace and returns the answer.
func ask(ns *os.File, network, to string, limit time.Duration) (string, error) {
	var conn net.Conn
	if err := within(ns, func() (err error) {
		conn, err = net.DialTimeout(network, to, limit)
		return err
	}); err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(limit))
	if network == "udp" {
		if _, err := conn.Write([]byte("?")); err != nil {
			return "", err
		}
	}
	text, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(text), err
}

func reaches(t *testing.T, ns *os.File, network, to, want string) {
	t.Helper()
	limit := reachedIn
	for try := 1; ; try++ { // a datagram may be lost
		got, err := ask(ns, network, to, limit/3)
		if err == nil {
			if !strings.Contains(got, want) {
				t.Errorf("%s %s answers %q, want %q", network, to, got, want)
			}
			return
		}
		if network != "udp" || try == 3 {
			t.Errorf("%s %s: %v, want %q", network, to, err, want)
			return
		}
	}
}

// refused sees that nobody answers, and that this is known at once where a rule says so.
func refused(t *testing.T, ns *os.File, network, to string) {
	t.Helper()
	got, err := ask(ns, network, to, reachedIn) // on a machine that does much else a packet may be lost and sent again
	if err == nil {
		t.Errorf("%s %s answers %q; it must not be reached", network, to, got)
	} else if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("%s %s: %v, want that it is refused at once", network, to, err)
	}
}

// lost is refused where silence will do.
func lost(t *testing.T, ns *os.File, network, to string) {
	t.Helper()
	if got, err := ask(ns, network, to, refusedIn); err == nil {
		t.Errorf("%s %s answers %q; it must not be reached", network, to, got)
	}
}

func anyPort(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }

// freePort is a port of the address that nobody holds.
func freePort(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	at, release, err := Hold(warmboot.TCP, anyPort(addr))
	if err != nil {
		t.Fatal(err)
	}
	release()
	return at
}

// guestOrHost is a place to connect from; the zero value is the host.
type guestOrHost struct{ ns *os.File }

// routeBy lets an outside machine send to an address by way of the host.
func routeBy(t *testing.T, o outside, to netip.Addr) {
	t.Helper()
	configure(t, o.ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: o.host.AsSlice(), Dst: ipNet(host(to))})
	})
}

// setMTU makes the host's interface to an outside machine, and only that end, take smaller packets: nothing that the machine says gives
// that away.
func setMTU(t *testing.T, o outside, mtu int) {
	t.Helper()
	link, err := netlink.LinkByName(o.link)
	if err == nil {
		err = netlink.LinkSetMTU(link, mtu)
	}
	if err != nil {
		t.Fatal(err)
	}
}
