package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
)

const (
	// imageEnv names the directory of a built runtime image: vmlinux or vmlinuz, initrd.img, rootfs.ext4.
	imageEnv = "WARMBOOT_TEST_IMAGE"
	// acceleratorEnv is what the machines run on: "kvm", or "tcg", the default.
	acceleratorEnv = "WARMBOOT_TEST_ACCELERATOR"
)

// vm is a machine under QEMU, started by hand: these tests are about the guest, so they do without the drivers.
type vm struct {
	t       *testing.T
	dir     string
	console string
	cmd     *exec.Cmd
	done    chan struct{}
}

// startVM starts a machine whose memory is in the file ram. A restored one reads state into a private mapping of it. more are arguments
// of QEMU for the test's own devices.
func startVM(t *testing.T, name, ram, disk, state string, more ...string) *vm {
	t.Helper()
	image := os.Getenv(imageEnv)
	kernel := filepath.Join(image, "vmlinux")
	if _, err := os.Stat(kernel); err != nil {
		kernel = filepath.Join(image, "vmlinuz")
	}
	share := "on"
	if state != "" {
		share = "off"
	}
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m := &vm{t: t, dir: dir, console: filepath.Join(dir, "console"), done: make(chan struct{})}
	accelerator, cpu := "tcg,thread=multi", "max"
	if os.Getenv(acceleratorEnv) == "kvm" {
		accelerator, cpu = "kvm", "host"
	}
	args := []string{
		"-M", "q35,memory-backend=ram", "-accel", accelerator, "-cpu", cpu, "-m", "512", "-smp", "1",
		"-object", "memory-backend-file,id=ram,size=512M,mem-path=" + ram + ",share=" + share,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", filepath.Join(image, "initrd.img"),
		"-append", "console=ttyS0 quiet panic=-1 init=/usr/sbin/warmboot-guest",
		"-drive", "if=none,id=root,format=raw,readonly=on,file=" + filepath.Join(image, "rootfs.ext4"),
		"-device", "virtio-blk-pci,drive=root,romfile=",
		"-drive", "if=none,id=data,format=raw,discard=unmap,file=" + disk,
		"-device", "virtio-blk-pci,drive=data,romfile=",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + filepath.Join(dir, "agent.sock"),
		"-device", "virtserialport,chardev=agent,name=org.warmboot.agent.0",
		"-netdev", "user,id=net,net=100.64.7.0/24,host=100.64.7.2,dns=100.64.7.3",
		"-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci",
		"-serial", "file:" + m.console,
		"-qmp", "unix:" + filepath.Join(dir, "qmp.sock") + ",server=on,wait=off",
	}
	args = append(args, more...)
	if state != "" {
		args = append(args, "-incoming", "defer")
	}
	m.cmd = exec.Command("qemu-system-x86_64", args...)
	m.cmd.Stderr = os.Stderr
	if err := m.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		m.cmd.Wait()
		close(m.done)
	}()
	t.Cleanup(func() {
		m.cmd.Process.Kill()
		<-m.done
		if t.Failed() {
			text, _ := os.ReadFile(m.console)
			t.Logf("console of %s:\n%s", name, text)
		}
	})
	if state != "" {
		m.qmp("migrate-set-capabilities", ignoreShared)
		m.qmp("migrate-incoming", map[string]any{"uri": "exec:cat " + state})
		m.migrated()
		m.qmp("cont", nil)
	}
	return m
}

var ignoreShared = map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}}

// qmp runs one command on a connection of its own.
func (m *vm) qmp(command string, args map[string]any) json.RawMessage {
	m.t.Helper()
	var conn net.Conn
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		var err error
		if conn, err = net.Dial("unix", filepath.Join(m.dir, "qmp.sock")); err == nil {
			break
		}
		if time.Now().After(end) {
			m.t.Fatal(err)
		}
	}
	defer conn.Close()
	in := json.NewDecoder(conn)
	out := json.NewEncoder(conn)
	var greeting map[string]any
	in.Decode(&greeting)
	var result struct {
		Return json.RawMessage
		Error  *struct{ Desc string }
		Event  string
	}
	for _, c := range []map[string]any{{"execute": "qmp_capabilities"}, {"execute": command, "arguments": args}} {
		if c["arguments"] == nil || args == nil {
			delete(c, "arguments")
		}
		out.Encode(c)
		for {
			result.Return, result.Error, result.Event = nil, nil, ""
			if err := in.Decode(&result); err != nil {
				m.t.Fatalf("%s: %v", command, err)
			}
			if result.Event == "" {
				break
			}
		}
		if result.Error != nil {
			m.t.Fatalf("%s: %s", command, result.Error.Desc)
		}
	}
	return result.Return
}

func (m *vm) migrated() {
	m.t.Helper()
	for {
		var info struct{ Status, ErrorDesc string }
		json.Unmarshal(m.qmp("query-migrate", nil), &info)
		switch info.Status {
		case "completed":
			return
		case "failed":
			m.t.Fatal("migration failed: ", info.ErrorDesc)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (m *vm) connect(ctx context.Context) *guestrpc.Client {
	m.t.Helper()
	c, err := guestrpc.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(m.dir, "agent.sock"))
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

func sh(t *testing.T, ctx context.Context, c *guestrpc.Client, script string) string {
	t.Helper()
	p, err := c.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	p.Output(func(stdout, stderr []byte) { out.Write(stdout); out.Write(stderr) })
	code, err := p.Wait()
	if err != nil || code != 0 {
		t.Fatalf("%s: code %d, %v: %s", script, code, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func dockerInfo(t *testing.T, ctx context.Context, c *guestrpc.Client) (info struct {
	ID, Name           string
	Containers, Images int
	RegistryConfig     struct {
		IndexConfigs map[string]struct{ Secure bool }
	}
}) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.DialDocker(ctx) }}}
	resp, err := client.Get("http://docker/info")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&info); err != nil {
		t.Fatal(err)
	}
	return info
}

func identity(name, last string) *guestv1.ReidentifyRequest {
	return &guestv1.ReidentifyRequest{
		Identity: &guestv1.Identity{
			Hostname: name, MachineId: strings.ReplaceAll(string(warmboot.NewID()), "-", ""), EngineId: string(warmboot.NewID()),
			Mac: "02:00:00:00:00:" + last, Address: "100.64.7.15/24",
		},
		Gateway: "100.64.7.2", Dns: "100.64.7.3", Seed: []byte(strings.Repeat(name, 32)), UnixNanos: time.Now().UnixNano(),
	}
}

// makeDisk makes an empty data disk.
func makeDisk(t *testing.T, disk string) {
	t.Helper()
	if out, err := exec.Command("truncate", "-s", "2G", disk).CombinedOutput(); err != nil {
		t.Fatal(string(out), err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", disk).CombinedOutput(); err != nil {
		t.Fatal(string(out), err)
	}
}

// freeze stops a machine, saves its state and ends it.
func (m *vm) freeze(state string) {
	m.t.Helper()
	m.qmp("stop", nil)
	m.qmp("migrate-set-capabilities", ignoreShared)
	m.qmp("migrate", map[string]any{"uri": "exec:cat > " + state})
	m.migrated()
	m.cmd.Process.Kill()
	<-m.done
}

// TestMachine boots a machine, freezes it and brings two clones of it to life.
func TestMachine(t *testing.T) {
	image := os.Getenv(imageEnv)
	if image == "" {
		t.Skip("SKIPPED: boots machines; set " + imageEnv + " to the directory of a built runtime image, and have qemu-system-x86_64 and mkfs.ext4")
	}
	if _, err := os.Stat(filepath.Join(image, "rootfs.ext4")); err != nil {
		t.Fatal(err)
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	dir := t.TempDir()
	ram, disk, state := filepath.Join(dir, "ram"), filepath.Join(dir, "data"), filepath.Join(dir, "state")
	makeDisk(t, disk)

	begin := time.Now()
	m := startVM(t, "first", ram, disk, "")
	c := m.connect(ctx)
	t.Logf("cold: agent after %v", time.Since(begin))
	first := identity("first", "01")
	if _, err := c.Reidentify(ctx, first); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitDocker(ctx, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("cold: Docker after %v", time.Since(begin))
	if got := sh(t, ctx, c, "ls /dev/vsock 2>/dev/null; grep vsock /proc/modules || true"); got != "" {
		t.Errorf("a machine without a vsock device has loaded drivers for one: %s", got)
	}
	// A machine whose Docker answers and can do nothing is not frozen.
	sh(t, ctx, c, "mount --bind /dev/null /usr/sbin/runc")
	if _, err := c.Quiesce(ctx); warmboot.CodeOf(err) != warmboot.Incompatible || !strings.Contains(err.Error(), "cannot run a container") {
		t.Errorf("quiesce without runc: %v", err)
	}
	sh(t, ctx, c, "umount /usr/sbin/runc")
	begin = time.Now()
	q, err := c.Quiesce(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("quiesce %v:\n  %s", time.Since(begin), strings.Join(q.Steps, "\n  "))
	for _, what := range []string{"has nothing left", "docker: has run a container", "started by init"} {
		if !strings.Contains(strings.Join(q.Steps, "\n"), what) {
			t.Errorf("quiesce does not tell %q", what)
		}
	}
	if !q.DockerAutostart || q.DockerVersion == "" || q.EngineId != first.Identity.EngineId {
		t.Errorf("quiesce: %v", q)
	}
	c.Close()
	m.freeze(state)

	var ids []string
	for i := range 2 {
		clone := filepath.Join(dir, fmt.Sprint("clone", i))
		if out, err := exec.Command("cp", "--sparse=always", disk, clone).CombinedOutput(); err != nil {
			t.Fatal(string(out), err)
		}
		ids = append(ids, testClone(t, ctx, i, ram, clone, state))
	}
	if ids[0] == ids[1] || ids[0] == "" {
		t.Errorf("the clones drew the same random numbers: %q", ids)
	}
}

// testClone restores a machine, checks that it is itself, and shuts it down. It returns random bytes of its kernel.
func testClone(t *testing.T, ctx context.Context, i int, ram, disk, state string) string {
	name := fmt.Sprint("clone-", i)
	begin := time.Now()
	m := startVM(t, name, ram, disk, state)
	lap := func(what string) {
		t.Logf("%s: %s %v", name, what, time.Since(begin))
		begin = time.Now()
	}
	lap("vmm and restore")
	c := m.connect(ctx)
	lap("connect")
	req := identity(name, fmt.Sprintf("%02x", 0x10+i))
	if _, err := c.Reidentify(ctx, req); err != nil {
		t.Fatal(err)
	}
	lap("re-identify")
	if _, err := c.WaitDocker(ctx, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	lap("docker")
	h, err := c.Health(ctx)
	if err != nil || h.Quiesced || len(h.Services) != 2 || h.Services[1].Restarts != 0 {
		t.Errorf("health: %v, %v", h, err)
	}
	if h.GetIdentity().GetEngineId() != req.Identity.EngineId {
		t.Errorf("engine id in its file: %q", h.GetIdentity().GetEngineId())
	}
	lap("health")
	info := dockerInfo(t, ctx, c)
	if info.ID != req.Identity.EngineId || info.Name != name {
		t.Errorf("Docker calls itself %v; it was to be %v", info, req.Identity)
	}
	if info.Containers != 0 || info.Images != 0 {
		t.Errorf("Docker has %d containers and %d images of the time before", info.Containers, info.Images)
	}
	lap("docker info through the tunnel")
	if got := sh(t, ctx, c, "hostname; cat /etc/machine-id /etc/hostname; cat /sys/class/net/eth0/address"); got != fmt.Sprintf("%s\n%s\n%s\n%s", name, req.Identity.MachineId, name, req.Identity.Mac) {
		t.Errorf("identity in the machine: %q", got)
	}
	lap("exec")
	random := sh(t, ctx, c, "od -An -N16 -tx1 /dev/urandom")

	// A registry on this machine's loopback is reachable at the same port of the guest's.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }))
	if err := c.Registry(ctx, l.Addr().String(), true); err != nil {
		t.Fatal(err)
	}
	port := strings.TrimPrefix(l.Addr().String(), "127.0.0.1:")
	if got := sh(t, ctx, c, `bash -c 'exec 3<>/dev/tcp/127.0.0.1/`+port+`; printf "GET / HTTP/1.0\r\n\r\n" >&3; cat <&3'`); !strings.HasSuffix(got, "hello") {
		t.Errorf("registry on the host: %q", got)
	}
	if err := c.Registry(ctx, "registry.example:5000", true); err != nil {
		t.Error(err)
	}
	if index, ok := dockerInfo(t, ctx, c).RegistryConfig.IndexConfigs["registry.example:5000"]; !ok || index.Secure {
		t.Error("Docker still insists on TLS for registry.example:5000")
	}
	lap("registries")
	testExec(t, ctx, c)
	if i == 0 {
		testContainer(t, ctx, c)
		lap("container")
	}

	// dockerd is started again when it dies, with the new identity.
	sh(t, ctx, c, "kill -9 $(cat /run/docker.pid); while [ -e /proc/$(cat /run/docker.pid) ]; do :; done")
	if _, err := c.WaitDocker(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	if got := dockerInfo(t, ctx, c).ID; got != req.Identity.EngineId {
		t.Errorf("engine id after a restart of Docker: %q, want %q", got, req.Identity.EngineId)
	}
	lap("restart of Docker")
	if err := c.Shutdown(ctx, time.Second); err != nil {
		t.Error(err)
	}
	select {
	case <-m.done:
	case <-time.After(20 * time.Second):
		t.Error("the machine has not powered off")
	}
	lap("shutdown")
	if out, err := exec.Command("e2fsck", "-fn", disk).CombinedOutput(); err != nil {
		t.Errorf("the data disk is not whole: %v\n%s", err, out)
	}
	return random
}

func testExec(t *testing.T, ctx context.Context, c *guestrpc.Client) {
	p, err := c.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"sh", "-c", "cat; echo $X >&2; exit 7"}, Env: []string{"X=err"}})
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(p.Stdin, bufio.NewReader(strings.NewReader("in")))
	p.Stdin.Close()
	var out, errOut string
	p.Output(func(o, e []byte) { out += string(o); errOut += string(e) })
	if code, err := p.Wait(); code != 7 || err != nil || out != "in" || errOut != "err\n" {
		t.Errorf("exec: %d %v %q %q", code, err, out, errOut)
	}
	if p, err = c.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	p.Signal(15)
	if code, err := p.Wait(); code != 143 || err != nil {
		t.Errorf("exec and SIGTERM: %d %v", code, err)
	}
	var e *warmboot.Error
	if _, err = c.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"no-such-program"}}); !errors.As(err, &e) || e.Code != warmboot.NotFound {
		t.Errorf("exec of nothing: %v", err)
	}
}

// testContainer runs a container of an image that is made of the agent alone, which says its version.
func testContainer(t *testing.T, ctx context.Context, c *guestrpc.Client) {
	p, err := c.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"tar", "-C", "/usr/sbin", "-c", "warmboot-guest"}})
	if err != nil {
		t.Fatal(err)
	}
	var image bytes.Buffer
	p.Output(func(stdout, _ []byte) { image.Write(stdout) })
	if code, err := p.Wait(); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	said := runContainer(t, ctx, c, "one", &image,
		`{"Image": "one:v1", "Cmd": ["/warmboot-guest", "version"], "HostConfig": {"NetworkMode": "host", "Memory": 100000000, "NanoCpus": 500000000}}`)
	if strings.TrimSpace(said) == "" {
		t.Error("the container said nothing")
	}
}
