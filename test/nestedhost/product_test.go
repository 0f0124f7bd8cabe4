package nestedhost_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warmboot/api"
	"warmboot/test/nestedhost"
)

// registry is where the machine's own registry listens, and the image that it has.
const (
	registry = "127.0.0.1:5055"
	busybox  = registry + "/busybox:latest"
)

// dropIn is what an administrator would add to the unit.
const dropIn = `[Service]
ExecStart=
ExecStart=/usr/local/bin/warmboot serve --plain-http-registry ` + registry + "\n"

// asAUser does what the README says, on a host with KVM: the unit, a runtime image, a snapshot, containers. vmm is the one that is expected.
func asAUser(t *testing.T, m *nestedhost.Machine, vmm string) {
	install(t, m)
	logIfFailed(t, m)
	doctor := sh(t, m, "warmboot doctor || true")
	t.Logf("$ warmboot doctor\n%s", doctor)
	wanted := []string{"✓ KVM                  a kernel boots under "}
	if vmm == "firecracker" {
		wanted = append(wanted, "✓ jailer  ", "✓ microVMs run under   Firecracker ", "✓ cgroup v2  ", "✓ runtime image  ", "✓ network slots        microVMs get TAPs")
	}
	if strings.Contains(doctor, "✗") {
		t.Error("doctor says that something fails")
	}
	for _, want := range wanted {
		if !strings.Contains(doctor, want) {
			t.Errorf("doctor does not say %q", want)
		}
	}

	must(t, m, "systemctl", "start", "warmboot")
	sh(t, m, "for try in $(seq 300); do warmboot version >/dev/null 2>&1 && exit; sleep 0.2; done; exit 1")
	t.Log(must(t, m, "warmboot", "version"))
	isUnder(t, m, vmm)
	must(t, m, "warmboot", "image", "register", "trixie",
		"--kernel", productImage+"/vmlinux", "--initrd", productImage+"/initrd.img", "--rootfs", productImage+"/rootfs.ext4")
	begin := time.Now()
	must(t, m, "warmboot", "snapshot", "create")
	t.Logf("a snapshot takes %.1fs", time.Since(begin).Seconds())

	names := []string{"cold"}
	must(t, m, "warmboot", "run", "-d", "--name", "cold", "--cold", busybox, "sleep", "1000")
	for n := range 3 {
		name := fmt.Sprint("warm", n+1)
		names = append(names, name)
		must(t, m, "warmboot", "run", "-d", "--name", name, "-p", fmt.Sprintf("%d:8080", 8081+n), busybox,
			"sh", "-c", "mkdir /www; hostname >/www/index.html; exec httpd -f -p 8080 -h /www")
	}
	boots(t, m, names)

	var hosts []string
	for n := range 3 {
		hosts = append(hosts, sh(t, m, fmt.Sprintf("for try in $(seq 100); do busybox wget -q -O - http://127.0.0.1:%d/ 2>/dev/null && exit; sleep 0.5; done; exit 1", 8081+n)))
	}
	if hosts[0] == hosts[1] || hosts[1] == hosts[2] || hosts[0] == "" {
		t.Errorf("the containers call themselves %q", hosts)
	}
	if got := must(t, m, "warmboot", "exec", "warm1", "cat", "/www/index.html"); got != hosts[0] {
		t.Errorf("exec says %q, the published port %q", got, hosts[0])
	}
	if tables := must(t, m, "nft", "list", "tables"); !strings.Contains(tables, "warmboot-") {
		t.Errorf("there is no rule that keeps guests off the host: %s", tables)
	}

	must(t, m, append([]string{"warmboot", "rm", "-f"}, names...)...)
	must(t, m, "systemctl", "stop", "warmboot")
	if left := sh(t, m, vmms+"; ls /sys/fs/cgroup/warmboot 2>/dev/null | grep ^vm- || true; nft list tables; ls /srv/fc/containers"); left != "" {
		t.Errorf("at the end there is left: %s", left)
	}
}

// systemdImageVar names the environment variable with the directory of a runtime image as an operator might have: with systemd, and the distribution's
// own kernel and initrd.
const systemdImageVar = "WARMBOOT_TEST_SYSTEMD_IMAGE"

// withOwnImage goes on where asAUser has ended, and tells the server of an image of the operator's own, as the README says.
func withOwnImage(t *testing.T, m *nestedhost.Machine) {
	logIfFailed(t, m)
	const dir = "/srv/own"
	if err := m.CopyIn(t.Context(), os.Getenv(systemdImageVar), dir); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "echo CONTAINER_RUNTIME_KERNEL="+dir+"/vmlinuz CONTAINER_RUNTIME_INITRD="+dir+"/initrd.img CONTAINER_RUNTIME_ROOTFS="+dir+"/rootfs.ext4 | tr ' ' '\n' >>/etc/warmboot/environment")
	must(t, m, "systemctl", "start", "warmboot")
	sh(t, m, "for try in $(seq 300); do warmboot version >/dev/null 2>&1 && exit; sleep 0.2; done; exit 1")
	const image = "container-runtime"
	must(t, m, "warmboot", "snapshot", "create", image)
	must(t, m, "warmboot", "run", "-d", "--name", "warm", "--runtime-image", image, busybox, "sleep", "1000")
	boots(t, m, []string{"warm"})
	if got := must(t, m, "warmboot", "exec", "warm", "hostname"); got != "warm" {
		t.Errorf("it calls itself %q", got)
	}
	must(t, m, "warmboot", "rm", "-f", "warm")
	must(t, m, "systemctl", "stop", "warmboot")
}

// logIfFailed keeps the server's log, and what there is of its machines, and prints the end of the log, if the test has failed when it ends.
func logIfFailed(t *testing.T, m *nestedhost.Machine) {
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // the test's own is over
		defer cancel()
		log, err := m.Run(ctx, "sh", "-c", "ls -laR /srv/fc/containers /srv/fc/builds /srv/fc/runtime-snapshots; journalctl -u warmboot --no-pager -o short-monotonic")
		if err != nil {
			t.Logf("log of serve: %v", err)
			return
		}
		file := filepath.Join(t.ArtifactDir(), "serve.log")
		if err := os.WriteFile(file, []byte(log), 0o644); err != nil {
			t.Error(err)
		}
		lines := strings.Split(log, "\n")
		t.Logf("log of serve, whole in %s:\n%s", file, strings.Join(lines[max(0, len(lines)-loggedLines):], "\n"))
	})
}

// loggedLines is few enough for what failed to be seen beside it.
const loggedLines = 15

// wantWarm fails the test unless a container came up from a snapshot.
func wantWarm(t *testing.T, c api.Container) {
	t.Helper()
	if c.BootMethod == nil || *c.BootMethod != "warm" {
		t.Errorf("%s came up %v: %s", c.Name, c.BootMethod, c.BootReason)
	}
}

// vmms lists the VMMs that run, in a machine without pgrep.
const vmms = "cat /proc/[0-9]*/comm 2>/dev/null | grep -x -E 'qemu.*|firecracker|jailer' || true"

// productImage is where a runtime image lies that `warmboot image build` has made.
const productImage = "/srv/fc/images/runtime"

// install puts the product into the machine, and a registry that is already there.
func install(t *testing.T, m *nestedhost.Machine) {
	t.Helper()
	for name, pkg := range map[string]string{"warmboot": "cmd/warmboot", "warmboot-guest": "cmd/warmboot-guest", "registry": "test/registry"} {
		compile(t, m, "/usr/local/bin/"+name, "build", "warmboot/"+pkg)
	}
	const units = "/etc/systemd/system/"
	if err := m.CopyIn(t.Context(), "../../deploy/systemd/warmboot.service", units+"warmboot.service"); err != nil {
		t.Fatal(err)
	}
	local := filepath.Join(t.TempDir(), "drop-in")
	if err := os.WriteFile(local, []byte(dropIn), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.CopyIn(t.Context(), local, units+"warmboot.service.d/registry.conf"); err != nil {
		t.Fatal(err)
	}
	sh(t, m, "mkdir -p -m 0711 /srv/fc; mkdir -p /srv/fc/images; mv "+remoteImage+" "+productImage+"; systemctl daemon-reload; systemd-run -q --unit=registry registry "+registry)
}

// boots checks and tells how the containers came up.
func boots(t *testing.T, m *nestedhost.Machine, names []string) {
	t.Helper()
	var all []api.Container
	if err := json.Unmarshal([]byte(must(t, m, append([]string{"warmboot", "inspect"}, names...)...)), &all); err != nil || len(all) != len(names) {
		t.Fatalf("inspect: %v, %d containers", err, len(all))
	}
	for _, c := range all {
		if c.BootMethod == nil || !strings.HasPrefix(c.Name, *c.BootMethod) {
			t.Errorf("%s came up %v: %s", c.Name, c.BootMethod, c.BootReason)
			continue
		}
		var toDocker float64
		var phases []string
		for _, p := range c.Phases {
			if p.Name != "pull" && p.Name != "start" {
				toDocker += p.Seconds
			}
			phases = append(phases, fmt.Sprintf("%s %.2f", p.Name, p.Seconds))
		}
		t.Logf("%s: %.2fs to Docker (%s)", c.Name, toDocker, strings.Join(phases, ", "))
	}
}
