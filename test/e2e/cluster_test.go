package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"warmboot/api"
	"warmboot/internal/store/pgtest"
)

// network is a switch and machines on it, each in a network namespace of its own. Nothing of it is in the test's own namespace.
type network struct {
	t    *testing.T
	name string
}

func newNetwork(t *testing.T, machines ...string) *network {
	t.Helper()
	n := &network{t: t, name: fmt.Sprintf("wbe2e%d", os.Getpid())}
	for _, m := range append([]string{"switch"}, machines...) {
		n.ip("netns", "add", n.ns(m))
		t.Cleanup(func() { n.ip("netns", "del", n.ns(m)) })
		n.in(m, "ip", "link", "set", "lo", "up")
	}
	n.in("switch", "ip", "link", "add", "br0", "type", "bridge")
	n.in("switch", "ip", "link", "set", "br0", "up")
	for i, m := range machines {
		n.in("switch", "ip", "link", "add", m, "type", "veth", "peer", "name", "eth0", "netns", n.ns(m))
		n.in("switch", "ip", "link", "set", m, "master", "br0", "up")
		n.in(m, "ip", "addr", "add", fmt.Sprintf("10.213.0.%d/24", i+1), "dev", "eth0")
		n.in(m, "ip", "link", "set", "eth0", "up")
	}
	return n
}

func (n *network) ns(machine string) string { return n.name + "-" + machine }

func (n *network) ip(args ...string) {
	n.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		n.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (n *network) in(machine string, args ...string) {
	n.t.Helper()
	n.ip(append([]string{"netns", "exec", n.ns(machine)}, args...)...)
}

// plug connects a machine to the switch, or pulls its cable.
func (n *network) plug(machine string, in bool) {
	n.t.Helper()
	state := "down"
	if in {
		state = "up"
	}
	n.in("switch", "ip", "link", "set", machine, state)
}

// process is a program on a machine of the network.
type process struct {
	t    *testing.T
	n    *network
	on   string
	args []string
	env  []string
	cmd  *exec.Cmd
	log  *logBuffer
}

func (n *network) start(machine string, env []string, args ...string) *process {
	n.t.Helper()
	p := &process{t: n.t, n: n, on: machine, args: args, env: env}
	p.start()
	n.t.Cleanup(p.stop)
	return p
}

func (p *process) start() {
	p.t.Helper()
	p.cmd = exec.Command("ip", append([]string{"netns", "exec", p.n.ns(p.on)}, p.args...)...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.log = &logBuffer{}
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
}

// kill ends the program without a word: `ip netns exec` has become it.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	_ = p.cmd.Wait() // killed
}

func (p *process) stop() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil {
		p.t.Errorf("%s on %s ended with %v; its log:\n%s", filepath.Base(p.args[0]), p.on, err, p.log)
	} else if p.t.Failed() {
		p.t.Logf("log of %v on %s:\n%s", p.args[:2], p.on, p.log)
	}
}

// cluster is two managers and two hosts.
type cluster struct {
	t        *testing.T
	net      *network
	registry string // the program
	m1, m2   *process
	h1, h2   *process
	roots    map[string]string
	uids     map[string]uint32
}

const managers = "10.213.0.1:18081,10.213.0.2:18081"

func (c *cluster) startManager(name, address, db string) *process {
	c.t.Helper()
	root, _ := newRoot(c.t)
	c.roots[name] = root
	p := c.net.start(name, []string{"DATABASE_URL=" + db}, filepath.Join(bin, "warmboot"), "manager", "--name", name, "--storage-root", root,
		"--listen", "127.0.0.1:18080", "--cluster-listen", address+":18081", "--auto-snapshot=false", "--host-down-after", "10s")
	p.log.await(c.t, regexp.MustCompile(`INFO warmboot .* serves http://127.0.0.1:18080`), time.Minute)
	return p
}

func (c *cluster) startAgent(name string, flags ...string) *process {
	c.t.Helper()
	registry := c.net.start(name, nil, c.registry, "127.0.0.1:5055")
	registry.log.await(c.t, regexp.MustCompile(`127.0.0.1:5055/\S+`), time.Minute)
	root, uid := newRoot(c.t)
	c.roots[name], c.uids[name] = root, uid
	token := c.warmboot("m1", "host", "token")
	p := c.net.start(name, []string{"WARMBOOT_UID_BASE=" + strconv.Itoa(int(uid)), "WARMBOOT_JOIN_TOKEN=" + token},
		append([]string{filepath.Join(bin, "warmboot"), "agent", "--name", name, "--storage-root", root, "--manager", managers, "--plain-http-registry", "127.0.0.1:5055"}, flags...)...)
	p.log.await(c.t, regexp.MustCompile(`INFO warmboot .* runs microVMs for`), 2*time.Minute)
	return p
}

// run runs a command line of a user's on a manager's machine.
func (c *cluster) run(on string, args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	stdout, stderr, code = c.ask(on, args...)
	c.t.Logf("%s$ warmboot %s\n%s%s[exit %d]", on, strings.Join(args, " "), stdout, stderr, code)
	return stdout, stderr, code
}

// ask is run without a word in the log: for what is asked over and over.
func (c *cluster) ask(on string, args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	cmd := exec.Command("ip", append([]string{"netns", "exec", c.net.ns(on), filepath.Join(bin, "warmboot")}, args...)...)
	cmd.Env = append(os.Environ(), "MANAGER_STORAGE_ROOT="+c.roots[on], "WARMBOOT_HOST=127.0.0.1:18080", "WARMBOOT_TOKEN=", "MANAGER_API_TOKEN=")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// shows is what a command line writes.
func (c *cluster) shows(on string, args ...string) string {
	c.t.Helper()
	out, _, _ := c.ask(on, args...)
	return out
}

// warmboot is run for a command line that has to succeed.
func (c *cluster) warmboot(on string, args ...string) string {
	c.t.Helper()
	out, errOut, code := c.run(on, args...)
	if code != 0 {
		c.t.Fatalf("warmboot %s: exit code %d: %s", strings.Join(args, " "), code, errOut)
	}
	return strings.TrimSpace(out)
}

func (c *cluster) container(on, name string) api.Container {
	c.t.Helper()
	var found []api.Container
	out, errOut, _ := c.ask(on, "inspect", "--type", "container", name)
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		c.t.Fatal(err, errOut)
	}
	return found[0]
}

// TestCluster is two managers on one PostgreSQL and two hosts, with real microVMs, each machine in a network namespace of its own.
func TestCluster(t *testing.T) {
	pg, err := pgtest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cluster{t: t, net: newNetwork(t, "m1", "m2", "h1", "h2"), roots: map[string]string{}, uids: map[string]uint32{}}
	db := pg.Database(t)
	c.m1, c.m2 = c.startManager("m1", "10.213.0.1", db), c.startManager("m2", "10.213.0.2", db)
	c.registry = filepath.Join(t.TempDir(), "registry")
	if out, err := exec.Command("go", "build", "-o", c.registry, repo+"/test/registry").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.h1 = c.startAgent("h1", "--image-root", imageDir)
	c.h2 = c.startAgent("h2") // may not see the image's files: it has to fetch them
	await(t, time.Minute, "both hosts to be up", func() bool {
		return strings.Count(c.shows("m2", "host", "ls"), "Up ") == 2
	})

	t.Run("a snapshot reaches the host that lacks it", func(t *testing.T) {
		c.warmboot("m1", "image", "register", "runtime", "--kernel", filepath.Join(imageDir, "vmlinux"), "--initrd", filepath.Join(imageDir, "initrd.img"), "--rootfs", filepath.Join(imageDir, "rootfs.ext4"))
		c.warmboot("m2", "snapshot", "create")
		c.warmboot("m1", "run", "-d", "--name", "one", c.image(), "sleep", "100000")
		c.warmboot("m1", "host", "cordon", "h1")
		c.warmboot("m2", "run", "-d", "--name", "two", c.image(), "sleep", "100000")
		c.warmboot("m1", "host", "uncordon", "h1")
		for name, host := range map[string]string{"one": "h1", "two": "h2"} {
			if got := c.container("m2", name); got.Host != host || got.State != "running" || got.BootMethod == nil || *got.BootMethod != "warm" {
				t.Errorf("%+v", got)
			}
		}
		fetched := regexp.MustCompile(`(Runtime image|Snapshot) \S+ was fetched from another host in \S+`).FindAllString(c.h2.log.String(), -1)
		if len(fetched) != 2 {
			t.Errorf("h2 has fetched %q", fetched)
		}
		t.Log(fetched)
		for i, name := range []string{"one", "two"} {
			if got := c.warmboot("m"+strconv.Itoa(i+1), "exec", name, "hostname"); got != name {
				t.Errorf("its host name is %q", got)
			}
		}
	})
	if t.Failed() {
		return
	}

	t.Run("a manager dies in the middle of a create", func(t *testing.T) {
		created := make(chan struct{})
		go func() {
			defer close(created)
			c.run("m1", "run", "-d", "--name", "three", "--cold", c.image(), "sleep", "100000") // its manager will die under it
		}()
		await(t, time.Minute, "the create to have begun", func() bool { return strings.Contains(c.shows("m2", "ps", "-a"), "Creating") })
		c.m1.kill()
		died := time.Now()
		c.m2.log.await(t, regexp.MustCompile(`Container \S+ is creating and nobody sees to it: it is taken over`), 10*time.Second)
		t.Logf("taken over after %s", time.Since(died))
		<-created
		await(t, 2*time.Minute, "the container to run", func() bool { return c.container("m2", "three").State == "running" })
		c.m1.start()
		c.m1.log.await(t, regexp.MustCompile(`serves http://127.0.0.1:18080`), time.Minute)
	})

	t.Run("an agent is killed while containers run", func(t *testing.T) {
		before := c.container("m2", "one")
		c.h1.kill()
		c.h1.start()
		c.h1.log.await(t, regexp.MustCompile(`runs microVMs for`), time.Minute)
		await(t, 30*time.Second, "the container to answer again", func() bool {
			_, _, code := c.ask("m1", "exec", "one", "true")
			return code == 0
		})
		if after := c.container("m1", "one"); after.VMID != before.VMID || !after.StartedAt.Equal(*before.StartedAt) || after.State != "running" {
			t.Errorf("it was %+v, it is %+v", before, after)
		}
	})

	t.Run("a host is cut off and comes back", func(t *testing.T) {
		before := c.container("m1", "two")
		c.net.plug("h2", false)
		await(t, time.Minute, "h2 to be down", func() bool { return strings.Contains(c.shows("m1", "ps"), "(host h2 is down)") })
		if got := c.container("m2", "two"); got.State != "running" || got.HostState != "down" {
			t.Errorf("%+v", got)
		}
		if _, errOut, code := c.run("m1", "stop", "two"); code != 8 || !strings.Contains(errOut, "h2 is down") {
			t.Errorf("stop: %d, %s", code, errOut)
		}
		c.net.plug("h2", true)
		await(t, time.Minute, "h2 to be up", func() bool { return !strings.Contains(c.shows("m1", "ps"), "is down") })
		if after := c.container("m1", "two"); after.VMID != before.VMID || after.State != "running" {
			t.Errorf("%+v", after)
		}
		if got := c.warmboot("m1", "exec", "two", "hostname"); got != "two" {
			t.Errorf("its host name is %q", got)
		}
	})

	t.Run("drained, nothing is left", func(t *testing.T) {
		c.warmboot("m1", "host", "drain", "-t", "1", "h1", "h2")
		c.warmboot("m2", "rm", "one", "two", "three")
		for name, uid := range c.uids {
			if pids := processesOf(t, uid); len(pids) != 0 {
				t.Errorf("%s still has VMMs %v", name, pids)
			}
			if rest := left(t, c.roots[name]); len(rest) != 0 {
				t.Errorf("left on %s: %v", name, rest)
			}
		}
	})
}

// image is the small image that each host's own registry has.
func (c *cluster) image() string { return "127.0.0.1:5055/" + strings.SplitN(open.Image, "/", 2)[1] }
