package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"warmboot/api"
)

// systemdImageEnv names the directory of a runtime image that boots systemd; test/systemdimage makes it.
const systemdImageEnv = "WARMBOOT_TEST_SYSTEMD_IMAGE"

// doorPort is the port of a machine of that image at which whoever connects gets a root shell.
const doorPort = 2222

// TestSystemdImage is the day of an operator who has a runtime image of their own: another init, Docker as its distribution packages
// it, and the guest agent as one service among others.
func TestSystemdImage(t *testing.T) {
	dir := os.Getenv(systemdImageEnv)
	if dir == "" {
		t.Skip("SKIPPED: set " + systemdImageEnv + " to the directory of a runtime image with systemd: $(go run ./test/systemdimage bin/warmboot-guest)")
	}
	s := startServer(t, "--image-root", dir, "--log-level", "debug")
	s.must("image", "register", "own", "--kernel", filepath.Join(dir, "vmlinuz"), "--initrd", filepath.Join(dir, "initrd.img"), "--rootfs", filepath.Join(dir, "rootfs.ext4"))
	// This one boots from the kernel and the initrd that `warmboot image build` makes.
	s.must("image", "register", "idle", "--kernel", runtimeImg.KernelPath, "--initrd", runtimeImg.InitrdPath, "--rootfs", withDockerDisabled(t, s, dir))
	img, err := s.api.Image(t.Context(), "own")
	if err != nil {
		t.Fatal(err)
	}
	s.day(t, img, []step{
		{"one image is frozen, one that does not start Docker is refused", ownSnapshots},
		{"clones are not twins", ownTwins},
		{"the agent is killed", agentKilled},
		{"Docker is killed in one, the other is stopped and started", dockerKilled},
		{"Docker is gone for good", dockerGone},
		{"nothing is left", nothingLeft},
	})
}

// withDockerDisabled is a copy of an image's root disk on which `systemctl disable docker.service` was run. Docker comes up all the same,
// when the agent asks for it at docker.socket.
func withDockerDisabled(t *testing.T, s *server, dir string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(s.root, "images"), 0o755); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(s.root, "images", "idle.ext4")
	for _, argv := range [][]string{
		{"cp", "--sparse=always", filepath.Join(dir, "rootfs.ext4"), disk},
		{"/usr/sbin/debugfs", "-w", "-R", "rm /etc/systemd/system/multi-user.target.wants/docker.service", disk},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	return disk
}

// ownSnapshots boots both images at once, because that is what costs time.
func ownSnapshots(t *testing.T, s *server, img api.Image) {
	var refused api.Snapshot
	var refusedErr error
	var other sync.WaitGroup
	other.Go(func() {
		var idle api.Image
		if idle, refusedErr = s.api.Image(t.Context(), "idle"); refusedErr == nil {
			refused, refusedErr = build(t.Context(), s, idle)
		}
	})
	snap, err := build(t.Context(), s, img)
	if err != nil || snap.State != "ready" || snap.Metadata.DockerVersion == "" {
		t.Errorf("snapshot is %s: %q, %v", snap.State, snap.Metadata.Error, err)
	}
	t.Logf("snapshot: cold boot %.1fs, pause to artifact %.3fs, %d MiB on disk", snap.Metadata.ColdBootSeconds, snap.Metadata.PauseSeconds, snap.Metadata.SizeBytes>>20)
	for _, step := range []string{`boot: systemd says \\"running\\"`, `is docker\.service, which systemd says is enabled`} {
		s.log.await(t, regexp.MustCompile(`DEBUG Quiesced .*`+step), time.Second)
	}
	other.Wait()
	if refusedErr != nil || refused.State != "unhealthy" || !strings.Contains(refused.Metadata.Error, "is docker.service, which systemd says is disabled; enable its service in the image") {
		t.Errorf("an image that does not start Docker: %s: %q, %v", refused.State, refused.Metadata.Error, refusedErr)
	}
}

// build builds a snapshot of an image, to whatever end.
func build(ctx context.Context, s *server, img api.Image) (api.Snapshot, error) {
	id, err := s.api.CreateSnapshot(ctx, img.ID)
	if err != nil {
		return api.Snapshot{}, err
	}
	snap, err := s.api.Snapshot(ctx, id)
	for err == nil && snap.State == "creating" {
		snap, err = s.api.WaitSnapshot(ctx, id, snap.Metadata.Step)
	}
	return snap, err
}

// knock runs a script as root in a container's machine and returns what it wrote.
func knock(t *testing.T, c api.Container, script string) string {
	t.Helper()
	conn, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", c.PortMappings[0].HostPort))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, script+"\nexit\n"); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("%s: %v after %q", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

// askDocker prints the id that Docker itself answers.
const askDocker = `perl -MIO::Socket -e '$s = IO::Socket::UNIX->new("/run/docker.sock"); print $s "GET /info HTTP/1.0\r\n\r\n"; print join("", <$s>) =~ /"ID":"([^"]+)"/, "\n"'`

// ownTwins leaves two containers, own1 and own2.
func ownTwins(t *testing.T, s *server, img api.Image) {
	facts := []struct{ what, script string }{
		{"hostname", "cat /proc/sys/kernel/hostname"},
		{"hostname in its file", "cat /etc/hostname"},
		{"machine-id", "cat /etc/machine-id"},
		{"machine-id in the journal", `journalctl --sync; journalctl --lines=1 --output=json --output-fields=_MACHINE_ID | sed 's/.*"_MACHINE_ID":"\([^"]*\)".*/\1/'`},
		{"engine id in its file", "cat /var/lib/docker/engine-id; echo"},
		{"engine id", askDocker},
		{"MAC", "cat /sys/class/net/eth0/address"},
		{"address", "hostname --all-ip-addresses"},
		{"name server", "cat /etc/resolv.conf"},
		{"random", "od -An -N16 -tx1 /dev/urandom"},
		{"clock", "date +%s"},
		{"boot", "systemctl is-system-running; systemctl list-units --failed --no-legend"},
	}
	var script strings.Builder
	for _, f := range facts {
		script.WriteString(f.script + "\n")
	}
	names, ids := []string{"own1", "own2"}, make([]string, 2)
	var both sync.WaitGroup
	for i := range names {
		both.Go(func() {
			var err error
			ids[i], err = s.api.CreateContainer(t.Context(), api.CreateContainer{Name: names[i], Image: open.Image, RuntimeImageID: img.ID, PortMappings: []api.PortMapping{{ContainerPort: doorPort}},
				Args: []string{"sh", "-c", `echo run >> /runs; cat /runs; trap "exit 5" TERM; while true; do sleep 1; done`}})
			if err == nil {
				_, err = s.api.WaitContainer(t.Context(), ids[i], "started")
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	both.Wait()
	seen := map[string]string{}
	for i, name := range names {
		c := container(t, s, name)
		if c.State != "running" || *c.BootMethod != "warm" {
			t.Fatalf("container is %+v", c)
		}
		wantPhases(t, c, "disk", "vmm", "restore", "reidentify", "docker", "pull", "start")
		before := time.Now().Unix()
		lines := strings.Split(knock(t, c, script.String()), "\n")
		after := time.Now().Unix()
		if len(lines) != len(facts) {
			t.Fatalf("%s said %q", name, lines)
		}
		got := map[string]string{}
		for i, f := range facts {
			got[f.what] = strings.TrimSpace(lines[i])
		}
		for what, want := range map[string]string{
			"hostname": name, "hostname in its file": name, "boot": "running",
			"machine-id": strings.ReplaceAll(ids[i], "-", ""), "machine-id in the journal": got["machine-id"], "engine id in its file": got["engine id"],
		} {
			if got[what] != want {
				t.Errorf("%s: %s is %q, want %q", name, what, got[what], want)
			}
		}
		if now, err := strconv.ParseInt(got["clock"], 10, 64); err != nil || now < before-1 || now > after+1 {
			t.Errorf("%s: its clock says %q, the host's %d to %d", name, got["clock"], before, after)
		}
		for what, value := range got {
			if other, ok := seen[what+value]; value == "" || ok && what != "clock" && what != "boot" {
				t.Errorf("%s and %s have the same %s: %s", other, name, what, value)
			}
			seen[what+value] = name
		}
	}
}

// agentKilled kills the guest agent under a container, which must not notice.
func agentKilled(t *testing.T, s *server, _ api.Image) {
	c := container(t, s, "own1")
	mounts := knock(t, c, "kill -9 $(systemctl show -P MainPID warmboot-guest); grep -c . /proc/mounts")
	s.log.await(t, regexp.MustCompile(`WARN Container `+shortID(c.ID)+`: the connection to its Docker was lost`), 30*time.Second)
	// Not after the host has connected again: this has to wait for it.
	if out := s.must("exec", "own1", "sh", "-c", "cat /runs; hostname"); out != "run\nown1" {
		t.Errorf("exec printed %q", out)
	}
	s.log.await(t, regexp.MustCompile(`INFO Container `+shortID(c.ID)+`: its Docker answers again`), 30*time.Second)
	if out := s.must("logs", "own1"); out != "run" {
		t.Errorf("logs are %q", out)
	}
	if got := knock(t, c, "systemctl show -P NRestarts warmboot-guest; grep -c . /proc/mounts"); got != "1\n"+mounts {
		t.Errorf("restarts of the agent, and mounts: %q; there were %s mounts before", got, mounts)
	}
	if c := container(t, s, "own1"); c.State != "running" {
		t.Errorf("container is %+v", c)
	}
}

// dockerKilled kills dockerd in one machine and meanwhile stops and starts the other one's container. systemd starts dockerd again,
// and that ends its containers, as Docker does unless told otherwise; so the container has ended by itself, and its machine is shut
// down.
func dockerKilled(t *testing.T, s *server, _ api.Image) {
	c := container(t, s, "own1")
	knock(t, c, "systemctl kill --kill-whom=main --signal=KILL docker.service")
	stopAndStartOwn(t, s)
	c, err := s.api.WaitContainer(t.Context(), "own1", "stopped")
	// Ended by its trap, or killed if that took it too long.
	if err != nil || c.State != "stopped" || c.ExitCode == nil || *c.ExitCode != 5 && *c.ExitCode != 137 || c.Error != "" {
		t.Errorf("container is %+v, %v", c, err)
	}
	if out := s.must("logs", "own1"); out != "run" {
		t.Errorf("logs are %q", out)
	}
	inGoodOrder(t, s, c)
	s.must("rm", "own1")
}

// inGoodOrder checks that a container's machine was not just cut off: its data disk was unmounted.
func inGoodOrder(t *testing.T, s *server, c api.Container) {
	t.Helper()
	if log := s.log.String(); strings.Contains(log, "in good order") {
		t.Errorf("something was not ended in good order:\n%s", log)
	}
	raw := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-O", "raw", filepath.Join(s.root, "containers", c.ID, "data.disk"), raw).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	out, err := exec.CommandContext(t.Context(), "/usr/sbin/dumpe2fs", "-h", raw).Output()
	if err != nil || strings.Contains(string(out), "needs_recovery") {
		t.Errorf("the data disk was not unmounted (%v):\n%s", err, out)
	}
}

// stopAndStartOwn starts a container again whose disk, as after a crash of its clone, still has the engine id of the snapshot.
func stopAndStartOwn(t *testing.T, s *server) {
	t.Helper()
	c := container(t, s, "own2")
	id := knock(t, c, "cat /var/lib/docker/engine-id; echo 00000000-0000-4000-8000-000000000000 > /var/lib/docker/engine-id")
	s.must("stop", "own2")
	if c = container(t, s, "own2"); c.State != "stopped" || c.ExitCode == nil || *c.ExitCode != 5 {
		t.Errorf("container is %+v", c)
	}
	inGoodOrder(t, s, c)
	s.must("start", "own2")
	c, err := s.api.WaitContainer(t.Context(), "own2", "started")
	if err != nil || c.State != "running" || *c.BootMethod != "cold" {
		t.Fatalf("container is %+v, %v", c, err)
	}
	wantPhases(t, c, "disk", "vmm", "boot", "reidentify", "docker", "start")
	// First the line of the first run, then both of the second, which found the first on its disk.
	if out := awaitLogs(t, s, "own2", 3); out != "run\nrun\nrun\n" {
		t.Errorf("logs are %q", out)
	}
	if got := knock(t, c, "systemctl is-system-running --wait; systemctl list-units --failed --no-legend; hostname; cat /var/lib/docker/engine-id; echo; "+askDocker); got != "running\nown2\n"+id+"\n"+id {
		t.Errorf("after a cold boot: %q, want engine id %s", got, id)
	}
}

// dockerGone takes Docker away: nothing will start it again, and nobody waits for it until the time is over.
func dockerGone(t *testing.T, s *server, _ api.Image) {
	c := container(t, s, "own2")
	knock(t, c, `systemctl --quiet disable docker.socket docker.service
		mkdir -p /run/systemd/system/docker.service.d
		printf '[Service]\nRestart=no\n' > /run/systemd/system/docker.service.d/once.conf
		systemctl daemon-reload
		rm /run/docker.sock
		systemctl kill --kill-whom=main --signal=KILL docker.service`)
	c, err := s.api.WaitContainer(t.Context(), "own2", "stopped")
	if err != nil || c.State != "stopped" || !strings.Contains(c.Error, "Docker is not set to start by itself") || !strings.Contains(c.Error, "docker.service is disabled") {
		t.Errorf("container is %+v, %v", c, err)
	}
	s.must("rm", "own2")
}
