package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/telemetry/otlptest"
	"warmboot/internal/telemetry/span"
)

// TestServe is one operator's day with one `warmboot serve`: in this order, because a microVM that boots is what costs time.
func TestServe(t *testing.T) {
	noTraces(t)
	s := startServer(t)
	registered := s.must("image", "register", "trixie", "--kernel", runtimeImg.KernelPath, "--initrd", runtimeImg.InitrdPath, "--rootfs", runtimeImg.RootfsPath)
	t.Log(registered)
	img, err := s.api.Image(t.Context(), "trixie")
	if err != nil {
		t.Fatal(err)
	}
	s.day(t, img, []step{
		{"a container without a snapshot boots cold", coldWithoutSnapshot},
		{"two requests build one snapshot", oneBuildForTwo},
		{"a container boots warm", warm},
		{"clones are not twins", notTwins},
		{"eight at once", eightAtOnce},
		{"a command that ends", endsAtOnce},
		{"stop and start keep the disk", stopAndStart},
		{"a container is changed", changed},
		{"registries", registries},
		{"the caller's mistakes", mistakes},
		{"a damaged snapshot falls back to a cold boot", damaged},
		{"containers outlive the server", outlive},
		{"a warm boot is one trace", traced},
		{"nothing is left", nothingLeft},
	})
}

// step is one thing that an operator does in a day.
type step struct {
	name string
	run  func(*testing.T, *server, api.Image)
}

// day takes the steps one after the other, as long as all is well: each builds on those before.
func (s *server) day(t *testing.T, img api.Image, steps []step) {
	defer func() { s.t = t }()
	for _, step := range steps {
		if !t.Run(step.name, func(t *testing.T) {
			s.t = t
			start := time.Now()
			step.run(t, s, img)
			t.Logf("took %.1fs", time.Since(start).Seconds())
		}) {
			return
		}
	}
}

func coldWithoutSnapshot(t *testing.T, s *server, _ api.Image) {
	id := s.must("run", "-d", "--name", "cold1", open.Image, "sleep", "1000")
	c := container(t, s, "cold1")
	if c.ID != strings.TrimSpace(id) || c.BootMethod == nil || *c.BootMethod != "cold" || c.BootReason != "No runtime snapshot available" || c.State != "running" {
		t.Errorf("container is %+v", c)
	}
	wantPhases(t, c, "disk", "vmm", "boot", "reidentify", "docker", "pull", "start")
	short := shortID(c.ID)
	s.log.await(t, regexp.MustCompile(`WARN Warm boot failed for container `+short+`, falling back to cold boot: No runtime snapshot available`), time.Second)
	s.log.await(t, regexp.MustCompile(`INFO Container `+short+` VM created: vm-[0-9a-f]{12} via cold boot in \d+\.\d\ds`), time.Second)
	s.log.await(t, regexp.MustCompile(`INFO Container `+short+` fully provisioned in \d+\.\d\ds via cold boot`), 5*time.Second)
	if out := s.must("exec", "cold1", "echo", "hello"); out != "hello" {
		t.Errorf("exec printed %q", out)
	}
	s.must("rm", "-f", "cold1")
	if pids := processesOf(t, s.uidBase); len(pids) != 0 {
		t.Errorf("VMMs %v are left after rm", pids)
	}
}

func oneBuildForTwo(t *testing.T, s *server, img api.Image) {
	var wg sync.WaitGroup
	ids := make([]string, 2)
	for i := range ids {
		wg.Go(func() {
			var err error
			if ids[i], err = s.api.CreateSnapshot(t.Context(), img.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() || ids[0] != ids[1] {
		t.Fatalf("two builds run: %v", ids)
	}
	if snap, err := s.api.Snapshot(t.Context(), ids[0]); err != nil || snap.State != "creating" {
		t.Errorf("snapshot is %+v, %v", snap, err)
	}
	// A container that is created meanwhile waits for it.
	s.must("run", "-d", "--name", "waited", open.Image, "sleep", "1000")
	if c := container(t, s, "waited"); *c.BootMethod != "warm" || c.SnapshotID != ids[0] {
		t.Errorf("a container created during the build came up %s (%s)", *c.BootMethod, c.BootReason)
	}
	s.must("rm", "-f", "waited")
	snap, err := s.api.Snapshot(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if snap.State != "ready" || snap.Metadata.MemSizeBytes != 512<<20 || snap.Metadata.SizeBytes == 0 || snap.SuccessCount != 1 || snap.LastUsedAt == nil ||
		!strings.HasPrefix(snap.FCVersion, snapshotOf()) || snap.SnapshotPath != filepath.Join(s.root, "runtime-snapshots", img.ID, snap.ID) {
		t.Errorf("snapshot is %+v", snap)
	}
	t.Logf("snapshot: built in %.1fs, cold boot %.1fs, pause to artifact %.3fs, %d MiB on disk", snap.Metadata.BuildSeconds, snap.Metadata.ColdBootSeconds, snap.Metadata.PauseSeconds, snap.Metadata.SizeBytes>>20)
	for _, f := range []string{"snapshot.mem", "snapshot.state", "rootfs.ext4", "data.ext4", "metadata.json"} {
		if !exists(filepath.Join(snap.SnapshotPath, f)) {
			t.Errorf("the artifact has no %s", f)
		}
	}
}

func warm(t *testing.T, s *server, _ api.Image) {
	out := s.must("run", "-d", "--name", "web", "-e", "GREETING=from the microVM", "-p", "8080", "--", open.Image,
		"sh", "-c", `mkdir -p /www; echo "$GREETING" > /www/index.html; echo started; echo oops >&2; exec httpd -f -p 8080 -h /www`)
	c := container(t, s, "web")
	if *c.BootMethod != "warm" || c.BootReason != "" || c.ID != out {
		t.Fatalf("container is %+v", c)
	}
	wantPhases(t, c, "disk", "vmm", "restore", "reidentify", "docker", "pull", "start")
	short := shortID(c.ID)
	s.log.await(t, regexp.MustCompile(`INFO Container `+short+` VM created: vm-[0-9a-f]{12} via warm boot in \d+\.\d\ds`), time.Second)
	s.log.await(t, regexp.MustCompile(`INFO Container `+short+` fully provisioned in \d+\.\d\ds via warm boot \(saved ~\d+s\)`), 5*time.Second)

	if len(c.PortMappings) != 1 || c.PortMappings[0].HostIP != "127.0.0.1" || c.PortMappings[0].HostPort == 0 {
		t.Fatalf("ports are %+v", c.PortMappings)
	}
	if got := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/", c.PortMappings[0].HostPort)); got != "from the microVM\n" {
		t.Errorf("the published port answered %q", got)
	}
	if got := s.must("exec", "-e", "X=1 2", "-w", "/www", "web", "sh", "-c", `echo $X; ls`); got != "1 2\nindex.html" {
		t.Errorf("exec printed %q", got)
	}
	if _, _, code := s.warmboot("exec", "web", "sh", "-c", "exit 7"); code != 7 {
		t.Errorf("exec ended with %d, the command with 7", code)
	}
	stdout, stderr, _ := s.warmboot("logs", "web")
	if stdout != "started\n" || stderr != "oops\n" {
		t.Errorf("logs are %q and %q", stdout, stderr)
	}
	var listed []api.Container
	if err := json.Unmarshal([]byte(s.must("ps", "-o", "json")), &listed); err != nil || len(listed) != 1 || listed[0].Name != "web" {
		t.Errorf("ps lists %+v, %v", listed, err)
	}
	// The guest's clock is the host's, not the snapshot's.
	var guest int64
	before := time.Now().Unix()
	fmt.Sscan(s.must("exec", "web", "date", "+%s"), &guest)
	if after := time.Now().Unix(); guest < before-1 || guest > after+1 {
		t.Errorf("the guest's clock says %d, the host's %d to %d", guest, before, after)
	}
	// The host's own services are out of reach, published ports of others and this API among them.
	if _, _, code := s.warmboot("exec", "web", "wget", "-q", "-T", "5", "-O", "-", "http://"+gateway(t, s, "web")+":"+strings.Split(s.addr, ":")[1]+"/healthz"); code == 0 {
		t.Error("a container reached the API on the host's loopback")
	}
	s.must("rm", "-f", "web")
}

func notTwins(t *testing.T, s *server, _ api.Image) {
	const n = 3
	ids := make([]string, n)
	var wg sync.WaitGroup
	for i := range ids {
		wg.Go(func() {
			var err error
			ids[i], err = s.api.CreateContainer(t.Context(), api.CreateContainer{Name: fmt.Sprintf("twin%d", i), Image: open.Image,
				Args: []string{"sh", "-c", "head -c 32 /dev/urandom | od -An -tx1; hostname; cat /sys/class/net/eth0/address; exec sleep 1000"}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string]string{}
	for _, id := range ids {
		c, err := s.api.WaitContainer(t.Context(), id, "started")
		if err != nil || c.State != "running" || *c.BootMethod != "warm" {
			t.Fatalf("container is %+v, %v", c, err)
		}
		fields := strings.Split(awaitLogs(t, s, c.Name, 4), "\n")
		what := map[string]string{"random": fields[0] + fields[1], "hostname": fields[2], "MAC": fields[3]}
		if onFirecracker {
			machine := inside(t, s, c.ID)
			what["engine id"], what["machine id"] = engineID(t, machine), runInside(t, machine, "cat", "/etc/machine-id")
			if name := runInside(t, machine, "hostname"); name != c.Name {
				t.Errorf("the machine of %s is called %q", c.Name, name)
			}
			t.Logf("%s: engine %s, machine %s", c.Name, what["engine id"], what["machine id"])
		}
		if fields[2] != c.Name {
			t.Errorf("container %s has host name %q", c.Name, fields[2])
		}
		for k, v := range what {
			if other, ok := seen[k+v]; ok {
				t.Errorf("%s and %s have the same %s: %s", other, c.Name, k, v)
			}
			seen[k+v] = c.Name
		}
	}
	for _, id := range ids {
		s.must("rm", "-f", id)
	}
}

func eightAtOnce(t *testing.T, s *server, _ api.Image) {
	n := 8
	if runtime.NumCPU() == 1 {
		n = 4 // each has 20 seconds
	}
	var wg sync.WaitGroup
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			id, err := s.api.CreateContainer(t.Context(), api.CreateContainer{Name: fmt.Sprintf("many%d", i), Image: open.Image, Args: []string{"sleep", "1000"}})
			if err != nil {
				t.Error(err)
				return
			}
			c, err := s.api.WaitContainer(t.Context(), id, "booted")
			if err != nil || c.BootMethod == nil || *c.BootMethod != "warm" {
				t.Errorf("container is %+v, %v", c, err)
			}
		})
	}
	wg.Wait()
	t.Logf("%d warm boots at once: all ready after %.2fs", n, time.Since(start).Seconds())
	for i := range n {
		s.must("rm", "-f", fmt.Sprintf("many%d", i))
	}
}

func endsAtOnce(t *testing.T, s *server, _ api.Image) {
	stdout, _, code := s.warmboot("run", "--name", "short", "--", open.Image, "sh", "-c", "echo done; exit 3")
	if stdout != "done\n" || code != 3 {
		t.Errorf("run printed %q and ended with %d", stdout, code)
	}
	c, err := s.api.WaitContainer(t.Context(), "short", "stopped")
	if err != nil || c.State != "stopped" || c.ExitCode == nil || *c.ExitCode != 3 || c.VMID != "" {
		t.Errorf("container is %+v, %v", c, err)
	}
	// Its microVM is gone, what it said is not.
	if pids := processesOf(t, s.uidBase); len(pids) != 0 {
		t.Errorf("VMMs %v are left", pids)
	}
	if out := s.must("logs", "short"); out != "done" {
		t.Errorf("logs are %q", out)
	}
	s.must("rm", "short")
	if _, stderr, code := s.warmboot("run", "--rm", open.Image, "/no/such/program"); code == 0 || !strings.Contains(stderr, "/no/such/program") {
		t.Errorf("a command that does not exist: exit code %d, %q", code, stderr)
	}
	for _, c := range containers(t, s) {
		s.must("rm", "-f", c.ID)
	}
}

func stopAndStart(t *testing.T, s *server, _ api.Image) {
	s.must("run", "-d", "--name", "keeper", "--", open.Image, "sh", "-c", `echo run >> /root/runs; cat /root/runs; trap "exit 5" TERM; while true; do sleep 1; done`)
	awaitLogs(t, s, "keeper", 1)
	if out := s.must("stop", "keeper"); out != "keeper" {
		t.Errorf("stop printed %q", out)
	}
	c := container(t, s, "keeper")
	if c.State != "stopped" || c.ExitCode == nil || *c.ExitCode != 5 {
		t.Errorf("container is %+v", c)
	}
	s.must("start", "keeper")
	c, err := s.api.WaitContainer(t.Context(), "keeper", "started")
	if err != nil || c.State != "running" || *c.BootMethod != "cold" || c.BootReason != "It was started again, from its own disk" {
		t.Errorf("container is %+v, %v", c, err)
	}
	// First the line of the first run, then both of the second, which found the first on its disk.
	if out := awaitLogs(t, s, "keeper", 3); out != "run\nrun\nrun\n" {
		t.Errorf("logs are %q", out)
	}
	s.must("rm", "-f", "keeper")
}

func changed(t *testing.T, s *server, _ api.Image) {
	s.must("run", "-d", "--name", "before", "-m", "128m", "--", open.Image, "sh", "-c",
		`hostname; cat /sys/fs/cgroup/memory.max; mkdir -p /www; hostname > /www/index.html; httpd -p 8080 -h /www; trap "exit 5" TERM; while true; do sleep 1; done`)
	if out := awaitLogs(t, s, "before", 2); out != "before\n134217728\n" {
		t.Errorf("the container says %q", out)
	}
	if _, stderr, code := s.warmboot("update", "-m", "768m", "before"); code != 5 || !strings.Contains(stderr, "stop") {
		t.Errorf("the memory of a running container: exit code %d, %q", code, stderr)
	}
	if _, stderr, _ := s.warmboot("rename", "before", "after"); stderr != "" {
		t.Errorf("rename printed %q", stderr)
	}
	s.must("stop", "after")
	port := strings.Split(freeAddr(t), ":")[1]
	if _, stderr, code := s.warmboot("update", "-m", "768m", "--cpus", "1.5", "-p", port+":8080", "after"); code != 0 || !strings.Contains(stderr, "from the next start on") {
		t.Errorf("update: exit code %d, %q", code, stderr)
	}
	s.must("start", "after")
	if out := awaitLogs(t, s, "after", 4); out != "before\n134217728\nafter\n805306368\n" {
		t.Errorf("the container says %q", out)
	}
	if got := fetch(t, "http://127.0.0.1:"+port+"/"); got != "after\n" {
		t.Errorf("the published port answered %q", got)
	}
	if out := s.must("exec", "after", "sh", "-c", "nproc; cat /sys/fs/cgroup/cpu.max; ping -c 1 -W 1 $(hostname) | grep -c from; cat /etc/hostname"); out != "2\n150000 100000\n1\nafter" {
		t.Errorf("the container says %q", out)
	}
	if onFirecracker { // which the host holds to it as well
		group := filepath.Join("/sys/fs/cgroup/warmboot", container(t, s, "after").VMID)
		limit := func(file string) string {
			text, err := os.ReadFile(filepath.Join(group, file))
			if err != nil {
				t.Error(err)
			}
			return strings.TrimSpace(string(text))
		}
		if got := limit("cpu.max"); got != "160000 100000" {
			t.Errorf("cpu.max is %q", got)
		}
		if got, err := strconv.Atoi(limit("memory.max")); err != nil || got < 768<<20 || got > 900<<20 { // its memory, and what Firecracker needs itself
			t.Errorf("memory.max is %d, %v", got, err)
		}
	}

	// Docker in the microVM is told of the restart policy while the container runs.
	s.must("update", "--restart", "always", "after")
	s.must("exec", "after", "sh", "-c", "kill -TERM 1")
	await(t, 20*time.Second, "Docker to start the command again", func() bool {
		return strings.HasSuffix(s.must("logs", "after"), "after\n805306368\nafter\n805306368")
	})
	if c := container(t, s, "after"); c.State != "running" || c.Restarts != 0 {
		t.Errorf("container is %+v", c)
	}
	// When its machine dies another one is booted, and the command does not start before that has its identity.
	for _, pid := range processesOf(t, s.uidBase) {
		syscall.Kill(pid, syscall.SIGKILL)
	}
	await(t, time.Minute, "the container to be started again", func() bool {
		c := container(t, s, "after")
		return c.State == "running" && c.Restarts == 1
	})
	if got := fetch(t, "http://127.0.0.1:"+port+"/"); got != "after\n" {
		t.Errorf("after the restart the published port answered %q", got)
	}

	// Limits that are taken away: all that the machine has.
	s.must("stop", "after")
	s.must("update", "-m", "0", "--cpus", "0", "-p", "none", "--restart", "no", "after")
	s.must("start", "after")
	await(t, 20*time.Second, "the command to say what its limit is", func() bool {
		return strings.HasSuffix(s.must("logs", "after"), "after\n"+strconv.Itoa(512<<20))
	})
	if c := container(t, s, "after"); len(c.PortMappings) != 0 || c.CPULimit != 0 || c.MemoryLimitMB != 0 {
		t.Errorf("container is %+v", c)
	}
	s.must("rm", "-f", "after")
}

func registries(t *testing.T, s *server, _ api.Image) {
	_, stderr, code := s.warmboot("run", "--name", "nowhere", open.Host+"/no/such:image", "true")
	if code == 0 || !strings.Contains(stderr, "pull image") || !strings.Contains(stderr, "check its name and tag") {
		t.Errorf("an image that is not there: exit code %d, %q", code, stderr)
	}
	if c := container(t, s, "nowhere"); c.State != "failed" || c.Error == "" {
		t.Errorf("container is %+v", c)
	}
	s.must("rm", "nowhere")
	create := func(name, password string) api.Container {
		id, err := s.api.CreateContainer(t.Context(), api.CreateContainer{Name: name, Image: locked.Image, Args: []string{"echo", "hi"},
			RegistryAuth: &api.RegistryAuth{Username: "tester", Password: password}})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.api.WaitContainer(t.Context(), id, "started")
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := create("wrong", "guess"); c.State != "failed" || !strings.Contains(c.Error, "did not accept the credentials") {
		t.Errorf("wrong credentials: %+v", c)
	}
	if c := create("right", lockedPassword); c.State == "failed" {
		t.Errorf("right credentials: %+v", c)
	}
	// They are not kept.
	for _, c := range containers(t, s) {
		s.must("rm", "-f", c.ID)
	}
	for _, file := range []string{"warmboot.db", "warmboot.db-wal"} {
		if db, err := os.ReadFile(filepath.Join(s.root, file)); err != nil || strings.Contains(string(db), lockedPassword) {
			t.Errorf("%s holds the password, or cannot be read: %v", file, err)
		}
	}
	_, stderr, code = s.warmboot("run", "--rm", "127.0.0.1:1/x", "true")
	if code == 0 || !strings.Contains(stderr, "--plain-http-registry 127.0.0.1:1") {
		t.Errorf("a loopback registry that is not listed: exit code %d, %q", code, stderr)
	}
	for _, c := range containers(t, s) {
		s.must("rm", "-f", c.ID)
	}
}

func mistakes(t *testing.T, s *server, img api.Image) {
	big := fmt.Sprintf(`{"image":%q}`, strings.Repeat("x", 2<<20))
	for _, tt := range []struct {
		name, method, path, body string
		status                   int
		code                     string
	}{
		{"unknown runtime image", "POST", "/v1/runtime-snapshots", `{"runtime_image_id":"00000000-0000-4000-8000-000000000000"}`, 404, "not_found"},
		{"malformed UUID", "POST", "/v1/runtime-snapshots", `{"runtime_image_id":"trixie"}`, 422, "invalid"},
		{"malformed UUID in a path", "GET", "/v1/runtime-snapshots/xyz", "", 422, "invalid"},
		{"wrong JSON type", "POST", "/v1/containers", `{"image":5}`, 422, "invalid"},
		{"not JSON", "POST", "/v1/containers", `{"image"`, 400, "invalid"},
		{"oversized body", "POST", "/v1/containers", big, 413, "too_large"},
		{"image path outside the allowed roots", "POST", "/v1/images", `{"name":"etc","kernel_path":"/etc/passwd","rootfs_path":"/etc/shadow"}`, 0, ""},
		{"missing kernel", "POST", "/v1/images", fmt.Sprintf(`{"name":"gone","kernel_path":"%s/gone","rootfs_path":%q}`, imageDir, img.RootfsPath), 0, ""},
	} {
		status, answer := s.do(tt.method, tt.path, tt.body)
		if tt.status == 0 && status >= 400 && status < 500 {
			t.Logf("%s: %d %v", tt.name, status, answer["detail"])
			continue
		}
		if status != tt.status || answer["code"] != tt.code || answer["detail"] == "" {
			t.Errorf("%s: %d %v, want %d %s", tt.name, status, answer, tt.status, tt.code)
		}
	}

	truncated := filepath.Join(s.root, "images", "truncated")
	if err := os.MkdirAll(truncated, 0o755); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{img.KernelPath: "kernel", img.RootfsPath: "rootfs"} {
		f, err := os.Open(from)
		if err != nil {
			t.Fatal(err)
		}
		half, err := io.ReadAll(io.LimitReader(f, 4<<20))
		f.Close()
		if err == nil {
			err = os.WriteFile(filepath.Join(truncated, to), half, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{"--kernel", filepath.Join(truncated, "kernel"), "--rootfs", img.RootfsPath},
		{"--kernel", img.KernelPath, "--rootfs", filepath.Join(truncated, "rootfs")},
	} {
		_, stderr, code := s.warmboot(append([]string{"image", "register", "broken"}, args...)...)
		if code == 0 || !strings.Contains(stderr, "truncated") {
			t.Errorf("register %v: exit code %d, %q", args, code, stderr)
		}
	}

	l := freeAddr(t)
	port := strings.Split(l, ":")[1]
	s.must("run", "-d", "--name", "first", "-p", port+":80", open.Image, "sleep", "1000")
	if _, stderr, code := s.warmboot("run", "-d", "--name", "first", open.Image, "sleep", "1"); code != 125 || !strings.Contains(stderr, "first") {
		t.Errorf("a taken name: exit code %d, %q", code, stderr)
	}
	if _, stderr, code := s.warmboot("run", "-d", "-p", port+":80", open.Image, "sleep", "1"); code != 125 || !strings.Contains(stderr, port) {
		t.Errorf("a published port: exit code %d, %q", code, stderr)
	}
	if _, _, code := s.warmboot("rm", "first"); code != 5 {
		t.Errorf("rm of a running container: exit code %d", code)
	}
	s.must("rm", "-f", "first")
	if _, _, code := s.warmboot("inspect", "first"); code != 4 {
		t.Errorf("inspect of nothing: exit code %d", code)
	}
}

func damaged(t *testing.T, s *server, img api.Image) {
	for _, tt := range []struct {
		name, file string
		spoil      func(good []byte) []byte
		reason     string
		counted    bool
	}{
		{"truncated", "snapshot.state", func(good []byte) []byte { return good[:len(good)/2] }, "truncated", true},
		{"corrupted", "snapshot.state", func(good []byte) []byte {
			bad := slices.Clone(good)
			bad[len(bad)/2] ^= 0x40
			return bad
		}, "is not what was written", true},
		{"fingerprint changed", "metadata.json", func(good []byte) []byte {
			return regexp.MustCompile(`"version": "[^"]*"`).ReplaceAll(good, []byte(`"version": "0.1"`))
		}, "VMM version: snapshot has 0.1", false},
	} {
		before := ready(t, s, img) // another one, if the daily look at all files has come in between and found the damage
		path := filepath.Join(before.SnapshotPath, tt.file)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		rewrite(t, path, tt.spoil(good))
		s.must("run", "-d", "--name", "fallback", open.Image, "sleep", "1000")
		c := container(t, s, "fallback")
		if c.State != "running" || *c.BootMethod != "cold" || !strings.Contains(c.BootReason, tt.reason) {
			t.Errorf("%s: container is %s, %s: %q", tt.name, c.State, *c.BootMethod, c.BootReason)
		}
		s.log.await(t, regexp.MustCompile(`WARN Warm boot failed for container `+shortID(c.ID)+`, falling back to cold boot: .*`+tt.reason), time.Second)
		s.must("rm", "-f", "fallback")
		if tt.counted {
			if exists(path) { // the daily look has not removed it
				rewrite(t, path, good)
			}
		} else {
			await(t, 4*time.Minute, "a snapshot that fits to take the place of the one that does not", func() bool {
				old, err := s.api.Snapshot(t.Context(), before.ID)
				return err == nil && old.State == "deleted"
			})
		}
		after, err := s.api.Snapshot(t.Context(), before.ID)
		if err != nil {
			t.Fatal(err)
		}
		if counted := after.FailureCount > before.FailureCount; counted != tt.counted {
			t.Errorf("%s: counted as a failure is %v, want %v", tt.name, counted, tt.counted)
		}
		s.must("run", "-d", "--name", "healed", open.Image, "sleep", "1000")
		if c := container(t, s, "healed"); *c.BootMethod != "warm" {
			t.Errorf("after the repair: %s: %s", *c.BootMethod, c.BootReason)
		}
		s.must("rm", "-f", "healed")
	}
}

func outlive(t *testing.T, s *server, _ api.Image) {
	s.must("run", "-d", "--name", "survivor", "-p", "8080", "--", open.Image, "sh", "-c", "echo here; mkdir /www; echo alive > /www/index.html; exec httpd -f -p 8080 -h /www")
	before := container(t, s, "survivor")
	up := uptime(t, s, "survivor")
	pids := processesOf(t, s.uidBase)
	s.stop()
	if now := processesOf(t, s.uidBase); len(pids) != 1 || !slices.Equal(now, pids) {
		t.Fatalf("VMMs were %v, are %v", pids, now)
	}
	// With a TAP it is not the host's network that it is in, and the wall around that is TestSlots' subject.
	if !onFirecracker && !hasRule(t, s.uidBase) {
		t.Error("a machine runs and nothing keeps it off the host")
	}
	// This time with an image of the operator's own.
	s.startWith([]string{"CONTAINER_RUNTIME_KERNEL=" + runtimeImg.KernelPath, "CONTAINER_RUNTIME_INITRD=" + runtimeImg.InitrdPath, "CONTAINER_RUNTIME_ROOTFS=" + runtimeImg.RootfsPath})
	if img, err := s.api.Image(t.Context(), "container-runtime"); err != nil || img.Digest != runtimeImg.Digest {
		t.Errorf("the image of the environment is %+v, %v", img, err)
	}
	// And once more, without a farewell.
	s.kill()
	s.start()
	c := container(t, s, "survivor")
	if c.State != "running" || c.VMID != before.VMID || c.StartedAt == nil || !c.StartedAt.Equal(*before.StartedAt) || c.Restarts != 0 {
		t.Fatalf("container is %+v, was %+v", c, before)
	}
	if now := uptime(t, s, "survivor"); now <= up {
		t.Errorf("the machine was up for %.2fs, and now for %.2fs", up, now)
	}
	if got := fetch(t, fmt.Sprintf("http://127.0.0.1:%d/", c.PortMappings[0].HostPort)); got != "alive\n" {
		t.Errorf("the published port answered %q", got)
	}
	if out := s.must("exec", "survivor", "echo", "yes"); out != "yes" {
		t.Errorf("exec printed %q", out)
	}
	if out := s.must("logs", "survivor"); out != "here" {
		t.Errorf("logs are %q", out)
	}
	s.must("rm", "-f", "survivor")
}

func traced(t *testing.T, s *server, img api.Image) {
	collector := otlptest.Start(t)
	s.stop()
	s.startWith([]string{"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_RESOURCE_ATTRIBUTES=deployment.environment.name=e2e"})
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	ctx := span.Remote(t.Context(), "00-"+trace+"-00f067aa0ba902b7-01")
	c, err := s.api.CreateContainerAndWait(ctx, api.CreateContainer{Name: "traced", RuntimeImageID: img.ID, Image: open.Image, Args: []string{"sleep", "1000"}}, client.Started)
	if err != nil || c.State != "running" || *c.BootMethod != "warm" {
		t.Fatalf("container is %+v, %v", c, err)
	}
	s.log.await(t, regexp.MustCompile(`Container `+shortID(c.ID)+` fully provisioned .*`+trace), 5*time.Second)
	s.must("rm", "-f", "traced")
	s.stop() // which sends what is left
	var spans []otlptest.Span
	for _, one := range collector.Spans() {
		if one.Trace == trace {
			spans = append(spans, one)
		}
	}
	const boot = "POST /v1/containers > create container > bring container up > boot > warm boot > "
	const start = "POST /v1/containers > create container > bring container up > start command > "
	paths := otlptest.Paths(spans)
	t.Log(strings.Join(paths, "\n"))
	for _, want := range []string{boot + "phase: disk", boot + "start VMM", boot + "phase: reidentify > guest: re-identify guest", boot + "phase: docker", start + "phase: pull", start + "phase: start"} {
		if !slices.Contains(paths, want) {
			t.Errorf("no span %s", want)
		}
	}
	for _, one := range spans {
		if one.Error != "" || one.Service != "warmboot" {
			t.Errorf("%+v", one)
		}
	}
	s.start()
}

func nothingLeft(t *testing.T, s *server, img api.Image) {
	snap := ready(t, s, img)
	s.must("snapshot", "rm", snap.ID)
	s.must("image", "ls")
	if got, err := s.api.Snapshot(t.Context(), snap.ID); err != nil || got.State != "deleted" {
		t.Errorf("snapshot is %+v, %v", got, err)
	}
	// Its files go in the background.
	await(t, 10*time.Second, "the snapshot's files to go", func() bool { return !exists(snap.SnapshotPath) && len(left(t, s.root)) == 0 })
	if pids := processesOf(t, s.uidBase); len(pids) != 0 {
		t.Errorf("VMMs %v are left", pids)
	}
}

// uptime is how long a container's machine has been running, in seconds.
func uptime(t *testing.T, s *server, name string) (seconds float64) {
	t.Helper()
	text := s.must("exec", name, "cat", "/proc/uptime")
	if _, err := fmt.Sscan(text, &seconds); err != nil {
		t.Fatalf("uptime is %q: %v", text, err)
	}
	return seconds
}

func container(t *testing.T, s *server, name string) api.Container {
	t.Helper()
	c, err := s.api.Container(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func containers(t *testing.T, s *server) []api.Container {
	t.Helper()
	all, err := s.api.Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ready returns the one snapshot that is ready.
func ready(t *testing.T, s *server, img api.Image) api.Snapshot {
	t.Helper()
	all, err := s.api.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, snap := range all {
		if snap.RuntimeImageID == img.ID && snap.State == "ready" {
			return snap
		}
	}
	t.Fatalf("no snapshot is ready: %+v", all)
	return api.Snapshot{}
}

func wantPhases(t *testing.T, c api.Container, want ...string) {
	t.Helper()
	var got, text []string
	for _, p := range c.Phases {
		got = append(got, p.Name)
		text = append(text, fmt.Sprintf("%s %.3fs", p.Name, p.Seconds))
	}
	t.Log(strings.Join(text, ", "))
	if !slices.Equal(got, want) {
		t.Errorf("phases are %v, want %v", got, want)
	}
}

// awaitLogs follows a container's output until it has n lines.
func awaitLogs(t *testing.T, s *server, name string, n int) string {
	t.Helper()
	logs, err := s.api.Logs(t.Context(), name, true, -1)
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	var text strings.Builder
	for range n {
		l, err := logs.Next()
		if err != nil {
			t.Fatalf("logs of %s: %v after %q", name, err, text.String())
		}
		text.WriteString(l.Text)
	}
	return text.String()
}

func gateway(t *testing.T, s *server, name string) string {
	t.Helper()
	// The third field of the default route is the gateway, in hexadecimal and the byte order of the machine.
	var b [4]byte
	route := strings.Fields(s.must("exec", name, "grep", "00000000", "/proc/net/route"))
	if _, err := fmt.Sscanf(route[2], "%02X%02X%02X%02X", &b[3], &b[2], &b[1], &b[0]); err != nil {
		t.Fatalf("route is %v: %v", route, err)
	}
	return fmt.Sprintf("%d.%d.%d.%d", b[0], b[1], b[2], b[3])
}

// fetch reads a published page. A container that runs may still be about to listen, and nothing tells when it does.
func fetch(t *testing.T, url string) (text string) {
	t.Helper()
	await(t, 20*time.Second, url+" to answer", func() bool {
		res, err := http.Get(url)
		if err != nil {
			return false
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		text = string(body)
		return err == nil
	})
	return text
}

// rewrite puts other bytes into a file that may be read-only, as a failing disk would.
func rewrite(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o440); err != nil {
		t.Fatal(err)
	}
}

func shortID(id string) string { return strings.ReplaceAll(id, "-", "")[:12] }
