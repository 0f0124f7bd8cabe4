package guest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/vsock"

	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guest"
	"warmboot/internal/guestrpc"
)

// vsockEnv demands TestVsock.
const vsockEnv = "WARMBOOT_TEST_VSOCK"

// The addresses of the machine that is frozen and of its clone: the host knows every machine by another one.
const (
	firstCID = 4242
	cloneCID = 4343
)

// vsockDevice is QEMU's argument for a vsock device, which the host's kernel serves.
func vsockDevice(cid uint32) []string {
	return []string{"-device", fmt.Sprint("vhost-vsock-pci,guest-cid=", cid)}
}

func dialVsock(cid uint32) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) { return vsock.Dial(cid, guest.VsockPort, nil) }
}

func connectVsock(t *testing.T, ctx context.Context, cid uint32) *guestrpc.Client {
	t.Helper()
	c, err := guestrpc.Connect(ctx, dialVsock(cid))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestVsock does over vsock what TestMachine does over virtio-serial.
func TestVsock(t *testing.T) {
	image := os.Getenv(imageEnv)
	_, err := os.Stat("/dev/vhost-vsock")
	if os.Getenv(vsockEnv) == "1" && (image == "" || err != nil) {
		t.Fatalf("%s is set, but %s is %q, and: %v", vsockEnv, imageEnv, image, err)
	}
	if image == "" || err != nil {
		t.Skipf("SKIPPED: needs /dev/vhost-vsock and %s, the directory of a built runtime image; test/nestedhost has both", imageEnv)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	dir := t.TempDir()
	ram, disk, state := filepath.Join(dir, "ram"), filepath.Join(dir, "data"), filepath.Join(dir, "state")
	makeDisk(t, disk)

	begin := time.Now()
	m := startVM(t, "first", ram, disk, "", vsockDevice(firstCID)...)
	c := connectVsock(t, ctx, firstCID)
	t.Logf("cold: agent after %v", time.Since(begin))
	first := identity("first", "01")
	if _, err := c.Reidentify(ctx, first); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitDocker(ctx, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	t.Logf("cold: Docker after %v", time.Since(begin))
	if h, err := c.Health(ctx); err != nil || len(h.Services) != 2 {
		t.Errorf("health: %v, %v", h, err)
	}
	if info := dockerInfo(t, ctx, c); info.ID != first.Identity.EngineId {
		t.Errorf("through the tunnel Docker calls itself %q, not %q", info.ID, first.Identity.EngineId)
	}
	testExec(t, ctx, c)
	begin = time.Now()
	testIntruders(t, ctx, c)
	t.Logf("intruders: %v", time.Since(begin))

	// A conversation that is going on when the machine is frozen, with a process that lives as long as it does.
	if _, err := c.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"sleep", "54321"}}); err != nil {
		t.Fatal(err)
	}
	const sleeping = `grep -l -z -x 5432[1] /proc/[0-9]*/cmdline || true`
	if got := sh(t, ctx, c, sleeping); got == "" {
		t.Fatal("the process that is to be looked for cannot be found")
	}
	if q, err := c.Quiesce(ctx); err != nil || q.EngineId != first.Identity.EngineId {
		t.Fatalf("quiesce: %v, %v", q, err)
	}
	m.freeze(state)
	select {
	case <-c.Done():
	case <-ctx.Done():
		t.Error("the conversation with a machine that is gone goes on")
	}

	begin = time.Now()
	m = startVM(t, "clone", ram, disk, state, vsockDevice(cloneCID)...)
	c = connectVsock(t, ctx, cloneCID)
	t.Logf("clone: agent after %v", time.Since(begin))
	clone := identity("clone", "02")
	if _, err := c.Reidentify(ctx, clone); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WaitDocker(ctx, 10*time.Second); err != nil {
		t.Fatal(err)
	}
	t.Logf("clone: Docker after %v", time.Since(begin))
	if info := dockerInfo(t, ctx, c); info.ID != clone.Identity.EngineId {
		t.Errorf("Docker in the clone calls itself %q, not %q", info.ID, clone.Identity.EngineId)
	}
	if got := sh(t, ctx, c, sleeping); got != "" {
		t.Errorf("the conversation before the snapshot goes on in the clone: %s", got)
	}
	// The other channel is served at the same time.
	if h, err := m.connect(ctx).Health(ctx); err != nil || h.GetIdentity().GetHostname() != "clone" {
		t.Errorf("health over virtio-serial: %v, %v", h, err)
	}
	if err := c.Shutdown(ctx, time.Second); err != nil {
		t.Error(err)
	}
	select {
	case <-m.done:
	case <-time.After(20 * time.Second):
		t.Error("the machine has not powered off")
	}
}

// testIntruders lets a process of the machine and one in a container without a seccomp filter try to use the API.
func testIntruders(t *testing.T, ctx context.Context, c *guestrpc.Client) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.Exec(ctx, &guestv1.ExecRequest{Argv: []string{"sh", "-c", "cat >/tmp/intruder; chmod 755 /tmp/intruder; modprobe vsock_loopback"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Stdin.Write(binary); err != nil {
		t.Fatal(err)
	}
	p.Stdin.Close()
	if code, err := p.Wait(); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	const role = "WARMBOOT_GUEST_TEST_ROLE=intruder"
	args := fmt.Sprint("1 ", firstCID)
	check := func(who, said string) {
		t.Logf("%s:\n%s", who, said)
		if !strings.HasPrefix(said, "loopback works\n1 no answer") || !strings.Contains(said, "as the host: ") || strings.Contains(said, "ANSWERED") || strings.Contains(said, "BOUND") {
			t.Errorf("%s can use the guest API, or could not try", who)
		}
	}
	check("a process", sh(t, ctx, c, role+" /tmp/intruder "+args))

	var image bytes.Buffer
	w := tar.NewWriter(&image)
	w.WriteHeader(&tar.Header{Name: "intruder", Mode: 0o755, Size: int64(len(binary))})
	w.Write(binary)
	w.Close()
	config := fmt.Sprintf(`{"Image": "intruder:v1", "Cmd": ["/intruder", "1", "%d"], "Env": [%q], "HostConfig": {"NetworkMode": "host", "SecurityOpt": ["seccomp=unconfined"]}}`, firstCID, role)
	check("a container", runContainer(t, ctx, c, "intruder", &image, config))
	sh(t, ctx, c, "rm /tmp/intruder")
}

// runContainer runs a container of an image that has the files of a tar archive, and returns what it said.
func runContainer(t *testing.T, ctx context.Context, c *guestrpc.Client, name string, archive io.Reader, config string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return c.DialDocker(ctx) }}}
	do := func(method, path, contentType string, body io.Reader) []byte {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", contentType)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode >= 300 {
			t.Fatalf("%s: %s %s %v", path, resp.Status, text, err)
		}
		return text
	}
	do("POST", "/images/create?fromSrc=-&repo="+name+"&tag=v1", "application/x-tar", archive)
	do("POST", "/containers/create?name="+name, "application/json", strings.NewReader(config))
	do("POST", "/containers/"+name+"/start", "", nil)
	var end struct{ StatusCode int }
	if err := json.Unmarshal(do("POST", "/containers/"+name+"/wait", "", nil), &end); err != nil || end.StatusCode != 0 {
		t.Errorf("the container %s ended with %d (%v)", name, end.StatusCode, err)
	}
	log := do("GET", "/containers/"+name+"/logs?stdout=1&stderr=1", "", nil)
	do("DELETE", "/containers/"+name+"?force=1", "", nil)
	// Docker puts a header of 8 bytes before each piece: the stream, three zeros, the length.
	var said strings.Builder
	for len(log) >= 8 {
		n := int(log[4])<<24 | int(log[5])<<16 | int(log[6])<<8 | int(log[7])
		said.Write(log[8 : 8+n])
		log = log[8+n:]
	}
	return said.String()
}
