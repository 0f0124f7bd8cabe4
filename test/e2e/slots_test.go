package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"warmboot/internal/netns"
)

// ownNetworkVar says that this is the suite in a network namespace of its own.
const ownNetworkVar = "WARMBOOT_TEST_OWN_NETWORK"

// TestSlots runs TestInOwnNetwork: nothing happens to this machine's network.
func TestSlots(t *testing.T) {
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestInOwnNetwork$", "-test.v", "-test.timeout=20m")
	cmd.Env = append(os.Environ(), ownNetworkVar+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}

// prepareNetwork makes a fresh namespace a host as it is after it was installed, which forwards no packets.
func prepareNetwork() error {
	return errors.Join(exec.Command("ip", "link", "set", "lo", "up").Run(), os.WriteFile(forwardFile, []byte("0"), 0))
}

const forwardFile = "/proc/sys/net/ipv4/ip_forward"

// The world is one machine that the host knows. It has web servers at two addresses.
const (
	hostInWorld = "203.0.113.1"
	world       = "203.0.113.2"
	otherWorld  = "203.0.113.3"
	webPort     = "8000"
)

// serveWorld makes the world, and a name server for the host that says where everything is.
func serveWorld(t *testing.T) {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	ip := func(args ...string) {
		t.Helper()
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
		}
	}
	ip("link", "add", "world", "type", "veth", "peer", "name", "eth0", "netns", netns.Path(ns))
	ip("addr", "add", hostInWorld+"/24", "dev", "world")
	ip("link", "set", "world", "up")
	var l net.Listener
	if err := netns.In(ns, func() error {
		for _, args := range []string{"addr add " + world + "/24 dev eth0", "addr add " + otherWorld + "/24 dev eth0", "link set eth0 up"} {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				return fmt.Errorf("ip %s: %w: %s", args, err, out)
			}
		}
		l, err = net.Listen("tcp4", ":"+webPort)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "world to %s\n", r.RemoteAddr) })}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })

	resolver := hostResolver(t)
	if !resolver.IsLoopback() {
		ip("addr", "add", resolver.String()+"/32", "dev", "lo")
	}
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(resolver, 53)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go answerNames(c)
}

// hostResolver is the name server that this machine has been told.
func hostResolver(t *testing.T) netip.Addr {
	t.Helper()
	f, err := os.Open("/etc/resolv.conf")
	if err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if fields := strings.Fields(lines.Text()); len(fields) > 1 && fields[0] == "nameserver" {
				if a, err := netip.ParseAddr(fields[1]); err == nil && a.Is4() {
					return a
				}
			}
		}
	}
	return netip.MustParseAddr("127.0.0.1")
}

// udpecho is the path of the program that answers datagrams.
func udpecho(t *testing.T) string {
	t.Helper()
	if repo == "" {
		return filepath.Join(bin, "udpecho")
	}
	path := filepath.Join(t.TempDir(), "udpecho")
	build := exec.Command("go", "build", "-ldflags=-s -w", "-o", path, "warmboot/test/e2e/udpecho")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// echoes sends a datagram and wants it back.
func echoes(to string) error {
	c, err := net.Dial("udp4", to)
	if err != nil {
		return err
	}
	defer c.Close()
	for try := range 10 { // datagrams may be lost
		text := fmt.Sprint("datagram ", try)
		if _, err = c.Write([]byte(text)); err != nil {
			return err
		}
		got := make([]byte, 100)
		c.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = c.Read(got); err == nil {
			if string(got[:n]) == text {
				return nil
			}
			err = fmt.Errorf("%q comes back as %q", text, got[:n])
		}
	}
	return err
}

// answerNames says for every name that it is the world's (RFC 1035, 4).
func answerNames(c *net.UDPConn) {
	question := make([]byte, 512)
	for {
		n, from, err := c.ReadFromUDPAddrPort(question)
		if err != nil {
			return
		}
		q := question[:n]
		end := 12
		for end < n && q[end] != 0 {
			end += int(q[end]) + 1
		}
		end += 5 // the root, type and class
		if end > n {
			continue
		}
		isA := q[end-3] == 1 // and not AAAA
		answer := append([]byte{q[0], q[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, q[12:end]...)
		if isA {
			answer[7] = 1
			a := netip.MustParseAddr(world).As4()
			answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, a[0], a[1], a[2], a[3])
		}
		c.WriteToUDPAddrPort(answer, from)
	}
}

// TestInOwnNetwork is a server whose microVMs have TAPs.
func TestInOwnNetwork(t *testing.T) {
	if os.Getenv(ownNetworkVar) == "" {
		return // it is part of TestSlots
	}
	noTraces(t)
	serveWorld(t)
	s := &server{t: t}
	s.root, s.uidBase = newRoot(t)
	s.addr = freeAddr(t)
	s.start() // auto: it finds out that there can be slots
	t.Cleanup(s.stop)
	t.Cleanup(func() { s.t = t })
	hosts, err := s.api.Hosts(t.Context())
	if err != nil || len(hosts) != 1 || hosts[0].Inventory.Network != "tap" {
		t.Fatalf("the host is %+v, %v", hosts, err)
	}
	s.must("image", "register", "trixie", "--kernel", runtimeImg.KernelPath, "--initrd", runtimeImg.InitrdPath, "--rootfs", runtimeImg.RootfsPath)
	s.must("snapshot", "create")
	serveWeb := func(text string) []string {
		return []string{"--", open.Image, "sh", "-c", "mkdir /www; echo " + text + " > /www/index.html; exec httpd -f -p 80 -h /www"}
	}
	// reach has a container ask a web server, and returns what it said.
	reach := func(name, address string) (string, bool) {
		host, port, _ := net.SplitHostPort(address)
		out, _, code := s.warmboot("exec", name, "sh", "-c", `printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 5 `+host+" "+port)
		return out, code == 0 && strings.HasPrefix(out, "HTTP/1.")
	}
	resolves := func(name string) bool {
		out, _, _ := s.warmboot("exec", name, "busybox", "nslookup", "-timeout=3", "-retry=1", "anything.example.com")
		return strings.Contains(out, "Address: "+world)
	}
	web := func(host string) string { return net.JoinHostPort(host, webPort) }

	for _, step := range []struct {
		name string
		run  func(t *testing.T)
	}{
		{"open", func(t *testing.T) {
			s.must(append([]string{"run", "-d", "--name", "open", "-p", "0.0.0.0::80", "-p", "0.0.0.0::5353/udp"}, serveWeb("open")...)...)
			c := container(t, s, "open")
			if c.BootMethod == nil || *c.BootMethod != "warm" {
				t.Errorf("it came up %v: %s", c.BootMethod, c.BootReason)
			}
			for _, to := range []string{web(world), web(otherWorld)} {
				if out, ok := reach("open", to); !ok || !strings.Contains(out, "world to "+hostInWorld+":") {
					t.Errorf("%s answers %q", to, out)
				}
			}
			if !resolves("open") {
				t.Error("no name is resolved")
			}
			// The registry is offered to guests by their gateway; what else listens on the host's loopback, such as the API, is not.
			if out, ok := reach("open", "100.127.255.2:"+strings.Split(open.Host, ":")[1]); !ok {
				t.Errorf("the registry says %q", out)
			}
			if out, ok := reach("open", "100.127.255.2:"+strings.Split(s.addr, ":")[1]); ok {
				t.Errorf("warmboot's own API is reached: %q", out)
			}
			for _, a := range []string{"127.0.0.1", hostInWorld} {
				if got := fetch(t, fmt.Sprintf("http://%s:%d/", a, c.PortMappings[0].HostPort)); got != "open\n" {
					t.Errorf("the published port answers %q at %s", got, a)
				}
			}
		}},
		{"datagrams", func(t *testing.T) {
			program, err := os.Open(udpecho(t))
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			// exec has no --detach: what is left behind by the shell goes on.
			if _, errOut, code := s.warmbootFrom(program, "exec", "-i", "open", "sh", "-c", "cat >/udpecho; chmod +x /udpecho; (/udpecho >/udpecho.log 2>&1 &)"); code != 0 {
				t.Fatalf("exec ended with %d: %s", code, errOut)
			}
			await(t, 10*time.Second, "the container to listen", func() bool {
				out, _, _ := s.warmboot("exec", "open", "cat", "/udpecho.log")
				return out == "listening\n"
			})
			for _, a := range []string{"127.0.0.1", hostInWorld} {
				if err := echoes(net.JoinHostPort(a, strconv.Itoa(container(t, s, "open").PortMappings[1].HostPort))); err != nil {
					t.Errorf("the published UDP port at %s: %v", a, err)
				}
			}
		}},
		{"denied", func(t *testing.T) {
			// The image is pulled all the same.
			s.must(append([]string{"run", "-d", "--name", "denied", "--egress", "deny", "-p", "8080:80"}, serveWeb("denied")...)...)
			c := container(t, s, "denied")
			if *c.BootMethod != "warm" || c.Egress == nil || c.Egress.Policy != "deny" {
				t.Errorf("container is %+v", c)
			}
			for _, to := range []string{web(world), "100.127.255.2:" + strings.Split(open.Host, ":")[1]} {
				if out, ok := reach("denied", to); ok {
					t.Errorf("%s answers %q", to, out)
				}
			}
			if resolves("denied") {
				t.Error("names are resolved")
			}
			if got := fetch(t, "http://127.0.0.1:8080/"); got != "denied\n" {
				t.Errorf("the published port answers %q", got)
			}
			if _, errOut, code := s.warmboot("run", "-d", "-p", "8080:80", open.Image, "true"); code == 0 || !strings.Contains(errOut, "8080") {
				t.Errorf("the port is published twice: %d %s", code, errOut)
			}
		}},
		{"listed", func(t *testing.T) {
			s.must("run", "-d", "--name", "listed", "--egress-allow", world, "--egress-allow", "dns", "--egress-mbit", "10", open.Image, "sleep", "1000")
			if out, ok := reach("listed", web(world)); !ok || !resolves("listed") {
				t.Errorf("what is listed is not reached: %q", out)
			}
			if out, ok := reach("listed", web(otherWorld)); ok {
				t.Errorf("what is not listed answers %q", out)
			}
		}},
		{"after the server was killed", func(t *testing.T) {
			before, up := container(t, s, "open"), uptime(t, s, "open")
			s.kill()
			if got := fetch(t, "http://127.0.0.1:8080/"); got != "denied\n" {
				t.Errorf("without a server the published port answers %q", got)
			}
			s.start()
			for _, name := range []string{"open", "denied", "listed"} {
				if c := container(t, s, name); c.State != "running" {
					t.Errorf("container is %+v", c)
				}
			}
			if c, now := container(t, s, "open"), uptime(t, s, "open"); c.VMID != before.VMID || c.Restarts != 0 || now <= up {
				t.Errorf("container is %+v, was %+v; its machine was up for %.2fs, and now for %.2fs", c, before, up, now)
			}
			if got := fetch(t, "http://127.0.0.1:8080/"); got != "denied\n" {
				t.Errorf("the published port answers %q", got)
			}
			if err := echoes(fmt.Sprintf("127.0.0.1:%d", before.PortMappings[1].HostPort)); err != nil {
				t.Errorf("the published UDP port: %v", err)
			}
			if out, ok := reach("denied", web(world)); ok {
				t.Errorf("%q is reached in spite of the policy", out)
			}
			if _, ok := reach("listed", web(world)); !ok {
				t.Error("what is listed is not reached any more")
			}
		}},
		{"stopped and started", func(t *testing.T) {
			s.must("stop", "denied")
			s.must("start", "denied")
			await(t, 10*time.Second, "the container's web server", func() bool {
				res, err := http.Get("http://127.0.0.1:8080/")
				if err != nil {
					return false
				}
				res.Body.Close()
				return res.StatusCode == http.StatusOK
			})
			if out, ok := reach("denied", web(world)); ok {
				t.Errorf("%q is reached in spite of the policy", out)
			}
		}},
		{"the other VMM", func(t *testing.T) {
			if !onFirecracker {
				return
			}
			up := uptime(t, s, "open")
			s.must("rm", "-f", "denied", "listed")
			s.stop()
			s.startWith([]string{"MANAGER_VMM=qemu"})
			if now := uptime(t, s, "open"); now <= up {
				t.Errorf("the machine was up for %.2fs, and now for %.2fs", up, now)
			}
			if err := echoes(fmt.Sprintf("127.0.0.1:%d", container(t, s, "open").PortMappings[1].HostPort)); err != nil {
				t.Errorf("the published UDP port: %v", err)
			}
			s.must("run", "-d", "--name", "other", open.Image, "sleep", "1000")
			c := container(t, s, "other")
			if *c.BootMethod != "cold" || !strings.Contains(c.BootReason, "VMM: snapshot has firecracker, this machine needs qemu") {
				t.Errorf("with a snapshot of Firecracker's, QEMU booted it %s: %s", *c.BootMethod, c.BootReason)
			}
			if out, ok := reach("other", web(world)); !ok {
				t.Errorf("the world is not reached: %q", out)
			}
			s.must("rm", "-f", "open", "other")
			s.stop()
		}},
		{"user mode", func(t *testing.T) {
			if onFirecracker {
				return // it has none
			}
			s.must("rm", "-f", "denied", "listed")
			s.stop()
			s.start("--network", "user")
			if out, ok := reach("open", web(world)); !ok {
				t.Errorf("a container from before does not reach the world any more: %q", out)
			}
			s.must("run", "-d", "--name", "user", open.Image, "sleep", "1000")
			c := container(t, s, "user")
			if *c.BootMethod != "cold" || !strings.Contains(c.BootReason, "network: snapshot has tap, this machine needs user mode") {
				t.Errorf("with a snapshot of a machine with a TAP it came up %s: %s", *c.BootMethod, c.BootReason)
			}
			if out, ok := reach("user", web(world)); !ok {
				t.Errorf("in user mode the world is not reached: %q", out)
			}
			if _, errOut, code := s.warmboot("run", "-d", "--egress", "deny", open.Image, "true"); code == 0 || !strings.Contains(errOut, "user mode") {
				t.Errorf("a policy that nobody keeps is taken: %d %s", code, errOut)
			}
			s.must("rm", "-f", "open", "user")
			s.stop()
		}},
		{"nothing is left", func(t *testing.T) {
			out, err := exec.Command("ip", "-br", "link").CombinedOutput()
			if err != nil || regexp.MustCompile(`(?m)^wb`).Match(out) {
				t.Errorf("there are the interfaces\n%s%v", out, err)
			}
			for _, table := range tables(t) {
				if strings.HasPrefix(table, "warmboot") {
					t.Errorf("nftables table %s is left", table)
				}
			}
			if on, err := os.ReadFile(forwardFile); err != nil || string(on) != "0\n" {
				t.Errorf("net.ipv4.ip_forward is %q, %v, as before it is 0", on, err)
			}
		}},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			s.t = t
			step.run(t)
		}) {
			break // what follows builds on it
		}
	}
}
