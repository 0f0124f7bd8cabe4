package nestedhost_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"warmboot/api"
	"warmboot/test/nestedhost"
)

// TestFirecrackerOnABrokenHost breaks the host under a server and its microVMs, in all the ways in which hosts break that do not break for good.
// After each, no half snapshot is ready, no container is lost or doubled, restart policies are kept, and the server works.
func TestFirecrackerOnABrokenHost(t *testing.T) {
	m := bootWithFirecracker(t, func(c *nestedhost.Config) { c.MemoryMiB = 8 << 10 })
	h := &host{m}
	install(t, m)
	// Snapshots are built when the test says so. The registry is there again after a boot, and before the server.
	sh(t, m, "echo MANAGER_AUTO_SNAPSHOT=false >>/etc/warmboot/environment")
	writeIn(t, m, "/etc/systemd/system/busybox-registry.service", "[Service]\nType=exec\nExecStart=/usr/local/bin/registry "+registry+"\n[Install]\nWantedBy=multi-user.target\n")
	sh(t, m, "systemctl stop registry; systemctl daemon-reload; systemctl enable -q --now busybox-registry warmboot; sync")
	h.serves(t)
	isUnder(t, m, "firecracker")
	must(t, m, "warmboot", "image", "register", "trixie",
		"--kernel", productImage+"/vmlinux", "--initrd", productImage+"/initrd.img", "--rootfs", productImage+"/rootfs.ext4")
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"no power while the machine to freeze boots", func(t *testing.T) { h.downDuringBuild(t, "Booting", h.cut) }},
		{"no power while it is frozen", func(t *testing.T) { h.downDuringBuild(t, "Freezing", h.cut) }},
		{"a reboot while the machine to freeze boots", func(t *testing.T) { h.downDuringBuild(t, "Booting", h.reboot) }},
		{"no power while the artifact is stored", func(t *testing.T) { h.downDuringBuild(t, storing, h.cut) }},
		{"no power in the middle of 20 creates", func(t *testing.T) { h.downDuringCreates(t, h.cut) }},
		{"a reboot", func(t *testing.T) { h.comesBack(t, h.reboot) }},
		{"the disk is full", h.fullDisk},
		{"the clock is set back", func(t *testing.T) { h.clock(t, -time.Hour) }},
		{"the clock is set forward", func(t *testing.T) { h.clock(t, time.Hour) }},
		{"a reboot in the middle of 20 creates", func(t *testing.T) { h.downDuringCreates(t, h.reboot) }},
		{"nothing is left", h.nothingLeft},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			begin := time.Now()
			logIfFailed(t, m)
			step.run(t)
			t.Logf("took %.1fs", time.Since(begin).Seconds())
		}) {
			break // what follows builds on it
		}
	}
}

// writeIn writes a file in a machine.
func writeIn(t *testing.T, m *nestedhost.Machine, path, text string) {
	t.Helper()
	local := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(local, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := m.CopyIn(t.Context(), local, path); err != nil {
		t.Fatal(err)
	}
}

// host is a machine on which warmboot serves.
type host struct{ *nestedhost.Machine }

// serves waits until the server answers.
func (h *host) serves(t *testing.T) {
	t.Helper()
	sh(t, h.Machine, "for try in $(seq 600); do warmboot ps >/dev/null 2>&1 && exit; sleep 0.2; done; journalctl -u warmboot --no-pager | tail -n 30; exit 1")
}

// cut cuts the machine's power and gives it back.
func (h *host) cut(t *testing.T) {
	t.Helper()
	if err := h.PowerCut(); err != nil {
		t.Fatal(err)
	}
	if err := h.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.serves(t)
}

func (h *host) containers(t *testing.T) map[string]api.Container {
	t.Helper()
	var all []api.Container
	if err := json.Unmarshal([]byte(must(t, h.Machine, "warmboot", "ps", "-a", "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	byName := map[string]api.Container{}
	for _, c := range all {
		if _, twice := byName[c.Name]; twice {
			t.Errorf("there are two containers %s", c.Name)
		}
		byName[c.Name] = c
	}
	return byName
}

func (h *host) snapshots(t *testing.T) (all []api.Snapshot) {
	t.Helper()
	if err := json.Unmarshal([]byte(must(t, h.Machine, "warmboot", "snapshot", "ls", "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// eventually waits until a condition holds; until then it says what is wrong.
func eventually(t *testing.T, limit time.Duration, what string, wrong func() error) {
	t.Helper()
	start := time.Now()
	for {
		asked := time.Now()
		err := wrong()
		if err == nil {
			t.Logf("%s: after %.1fs", what, time.Since(start).Seconds())
			return
		}
		if time.Since(start) > limit {
			t.Fatalf("%s: after %v, %v", what, limit, err)
		}
		time.Sleep(max(time.Second, 4*time.Since(asked))) // what is waited for is to have four fifths of the machine
	}
}

// settled waits until nothing is on its way any more.
func (h *host) settled(t *testing.T, limit time.Duration) {
	t.Helper()
	eventually(t, limit, "all is settled", func() error {
		for name, c := range h.containers(t) {
			if c.State != "running" && c.State != "stopped" && c.State != "failed" {
				return fmt.Errorf("%s is %s", name, c.State)
			}
		}
		for _, s := range h.snapshots(t) {
			if s.State == "creating" {
				return fmt.Errorf("snapshot %s is being built: %s", s.ID, s.Metadata.Step)
			}
		}
		return nil
	})
}

// sound fails the test unless each ready snapshot is whole, there is as much of machines as of running containers, and nothing half made.
func (h *host) sound(t *testing.T) {
	t.Helper()
	for _, s := range h.snapshots(t) {
		if s.State != "ready" {
			continue
		}
		// Their digests are compared with the metadata at each warm boot, of which there is one after each of these, or at the beginning of the next.
		sh(t, h.Machine, `cd `+s.SnapshotPath+` && test -s metadata.json && for f in snapshot.mem snapshot.state data.ext4; do test -s $f; done`)
	}
	running := 0
	for _, c := range h.containers(t) {
		if c.State == "running" {
			running++
		}
	}
	if n := len(strings.Fields(sh(t, h.Machine, vmms))); n != running {
		t.Errorf("%d containers run, and %d VMMs", running, n)
	}
	for what, line := range map[string]string{
		"drafts, builds": "ls -d /srv/fc/runtime-snapshots/*/.draft-* /srv/fc/builds/* 2>/dev/null || true",
	} {
		if out := sh(t, h.Machine, line); out != "" {
			t.Errorf("there are %s: %s", what, out)
		}
	}
}

// run starts a container, in the background, and wants it up.
func (h *host) run(t *testing.T, name string, flags ...string) api.Container {
	t.Helper()
	argv := append([]string{"warmboot", "run", "-d", "--name", name}, flags...)
	must(t, h.Machine, append(argv, busybox, "sleep", "1000000")...)
	c := h.containers(t)[name]
	if c.State != "running" || c.BootMethod == nil {
		t.Fatalf("container is %+v", c)
	}
	return c
}

// storing is the last step of a build.
const storing = "Checking and storing"

// downDuringBuild lets the host go down and up once a build is at a step, and wants a snapshot to be ready afterwards, whoever builds it, and to work.
func (h *host) downDuringBuild(t *testing.T, step string, downAndUp func(*testing.T)) {
	before := h.snapshots(t)
	h.runByPolicy(t)
	r, w := io.Pipe()
	var over atomic.Bool
	var cutting sync.WaitGroup
	cutting.Go(func() {
		defer over.Store(true)
		_, err := h.Exec(within(t, 5*time.Minute), nestedhost.Command{Argv: []string{"warmboot", "snapshot", "create"}, Stdout: w, Stderr: w})
		w.CloseWithError(errors.Join(errors.New("the build is over"), err))
	})
	if err := waitFor(r, step); err != nil {
		t.Fatalf("the build did not come to %q: %v", step, err)
	}
	go io.Copy(io.Discard, r)
	if step == storing {
		// Writing it takes seconds; somewhere in them.
		time.Sleep(2 * time.Second)
	}
	if over.Load() {
		t.Fatal("the build was over before the host went down")
	}
	downAndUp(t)
	cutting.Wait()
	h.policiesKept(t)
	h.settled(t, 10*time.Minute)
	h.sound(t)
	ready := 0
	for _, s := range h.snapshots(t) {
		if !slices.ContainsFunc(before, func(old api.Snapshot) bool { return old.ID == s.ID }) {
			t.Logf("the snapshot that was being built is %s: %s", s.State, s.Metadata.Error)
		}
		if s.State == "ready" {
			ready++
		}
	}
	if ready == 0 {
		must(t, h.Machine, "warmboot", "snapshot", "create")
	}
	wantWarm(t, h.run(t, "after"))
	h.removeAll(t)
	for _, s := range h.snapshots(t) { // the next build is to be the only one
		if s.State != "deleted" && step != storing {
			must(t, h.Machine, "warmboot", "snapshot", "rm", s.ID)
		}
	}
}

// waitFor reads until a text comes.
func waitFor(r io.Reader, text string) error {
	var seen strings.Builder
	for b := make([]byte, 4096); ; {
		n, err := r.Read(b)
		seen.Write(b[:n])
		if strings.Contains(seen.String(), text) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w after %q", err, seen.String())
		}
	}
}

// downDuringCreates lets the host go down and up when some of 20 containers are up and some are not.
func (h *host) downDuringCreates(t *testing.T, downAndUp func(*testing.T)) {
	wantWarm(t, h.run(t, "always", "--restart", "always"))
	h.run(t, "unless-stopped", "--restart", "unless-stopped")
	h.run(t, "no")
	h.run(t, "stopped", "--restart", "unless-stopped")
	must(t, h.Machine, "warmboot", "stop", "stopped")

	const creates, upBefore = 20, 4
	const patient = 20 * time.Minute // all share one emulated processor, so that even the first take minutes
	policy := func(n int) string { return []string{"no", "always"}[n%2] }
	var mu sync.Mutex
	var up []string
	enough := make(chan bool)
	var goingDown atomic.Bool
	var all sync.WaitGroup
	for n := range creates {
		all.Go(func() {
			name := fmt.Sprint("create", n)
			var said strings.Builder
			code, err := h.Exec(within(t, 2*patient), nestedhost.Command{Argv: []string{"warmboot", "run", "-q", "-d", "--name", name, "--restart", policy(n), busybox, "sleep", "1000000"}, Stderr: &said})
			mu.Lock()
			defer mu.Unlock()
			if err == nil && code == 0 {
				if up = append(up, name); len(up) == upBefore {
					close(enough)
				}
			} else if err == nil && !goingDown.Load() {
				t.Errorf("%s: run ended with %d: %s", name, code, said.String())
			}
		})
	}
	begin := time.Now()
	select {
	case <-enough:
	case <-time.After(patient):
		t.Error("not enough containers came up")
	}
	t.Logf("%d of %d are up after %.1fs", upBefore, creates, time.Since(begin).Seconds())
	seen := h.containers(t)
	goingDown.Store(true)
	downAndUp(t)
	all.Wait()
	h.settled(t, 2*patient)
	// Those that are started again are "stopped" first.
	eventually(t, 10*time.Minute, "those that are to run again run", func() error {
		for name, c := range h.containers(t) {
			if c.RestartPolicy != "" && c.RestartPolicy != "no" && name != "stopped" && c.State != "running" {
				return fmt.Errorf("%s is %s: %s", name, c.State, c.Error)
			}
		}
		return nil
	})
	h.settled(t, 10*time.Minute)
	now := h.containers(t)
	t.Logf("%d containers had been accepted", len(seen))
	for name, c := range seen {
		if now[name].ID != c.ID {
			t.Errorf("%s (%s, %s) is lost: %+v", name, c.ID, c.State, now[name])
		}
	}
	for _, name := range up {
		if _, there := now[name]; !there {
			t.Errorf("%s, which was up, is lost", name)
		}
	}
	states := map[string]int{}
	for name, c := range now {
		states[c.State]++
		wasUp := slices.Contains(up, name)
		switch {
		case name == "no", wasUp && (c.RestartPolicy == "" || c.RestartPolicy == "no"):
			if c.State != "stopped" || !strings.Contains(c.Error, "its host was booted again") {
				t.Errorf("%s, which ran and is not to be started again, is %s: %q", name, c.State, c.Error)
			}
		case name == "stopped":
			if c.State != "stopped" {
				t.Errorf("%s, which was stopped by hand, is %s", name, c.State)
			}
		case c.State == "failed":
			t.Errorf("%s has failed: %s", name, c.Error)
		}
	}
	t.Logf("%d containers: %v", len(now), states)
	h.sound(t)
	h.removeAll(t)
}

// removeAll removes all containers.
func (h *host) removeAll(t *testing.T) {
	t.Helper()
	for name := range h.containers(t) {
		must(t, h.Machine, "warmboot", "rm", "-f", name)
	}
	h.sound(t)
	if out := sh(t, h.Machine, "ls /srv/fc/containers; ls -d /sys/fs/cgroup/warmboot/vm-* /sys/fs/cgroup/warmboot/build-* 2>/dev/null || true"); out != "" {
		t.Errorf("of containers that are gone there is left: %s", out)
	}
}

// reboot restarts the host as its administrator would.
func (h *host) reboot(t *testing.T) {
	t.Helper()
	if err := h.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.serves(t)
}

// comesBack lets the host go down and up, and wants what runs on it started again by its restart policy, with what it has written.
func (h *host) comesBack(t *testing.T, downAndUp func(*testing.T)) {
	wantWarm(t, h.runByPolicy(t))
	downAndUp(t)
	h.policiesKept(t)
	h.sound(t)
	h.removeAll(t)
}

// runByPolicy starts three containers that differ in what becomes of them when their host goes down and up, and returns the one that comes back.
func (h *host) runByPolicy(t *testing.T) api.Container {
	t.Helper()
	always := h.run(t, "always", "--restart", "always", "-p", "8080:80")
	h.run(t, "no")
	h.run(t, "stopped", "--restart", "unless-stopped")
	must(t, h.Machine, "warmboot", "stop", "stopped")
	must(t, h.Machine, "warmboot", "exec", "always", "sh", "-c", "echo kept >/kept; sync")
	return always
}

// policiesKept fails the test unless they are, once, what they are to be after their host has gone down and up.
func (h *host) policiesKept(t *testing.T) {
	t.Helper()
	eventually(t, 5*time.Minute, "the container that is to run again runs", func() error {
		if c := h.containers(t)["always"]; c.State != "running" || c.Restarts != 1 {
			return fmt.Errorf("it is %s: %s", c.State, c.Error)
		}
		return nil
	})
	if c := h.containers(t)["no"]; c.State != "stopped" || !strings.Contains(c.Error, "its host was booted again") {
		t.Errorf("the one without a policy is %s: %q", c.State, c.Error)
	}
	if c := h.containers(t)["stopped"]; c.State != "stopped" {
		t.Errorf("the one that was stopped by hand is %s", c.State)
	}
	if got := must(t, h.Machine, "warmboot", "exec", "always", "cat", "/kept"); got != "kept" {
		t.Errorf("on its disk is %q", got)
	}
}

// fullDisk fills the disk under a running server.
func (h *host) fullDisk(t *testing.T) {
	h.run(t, "before")
	victim := h.run(t, "always", "--restart", "always")
	server := sh(t, h.Machine, "systemctl show -P MainPID warmboot")
	const room = 64 << 20
	fill := func() {
		sh(t, h.Machine, fmt.Sprintf("sync; fallocate -l $(( $(df --output=avail -B1 / | tail -n 1) - %d )) /fill", room))
	}
	fillUp := func() { // the last blocks are the file system's own to give, one by one
		sh(t, h.Machine, "for again in 1 2 3; do cat /dev/zero >>/fill 2>/dev/null || true; sync; done")
	}
	noRoom := regexp.MustCompile("no space left|disk is full|MiB free|is free")
	refused := func(what string, argv ...string) {
		t.Helper()
		var out strings.Builder
		code, err := h.Exec(within(t, 5*time.Minute), nestedhost.Command{Argv: argv, Stdout: &out, Stderr: &out})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: exit code %d: %s", what, code, out.String())
		if code == 0 || !noRoom.MatchString(out.String()) {
			t.Errorf("%s on a full disk: exit code %d: %s", what, code, out.String())
		}
	}
	// With some room: for the database, not for what is asked for.
	fill()
	refused("a snapshot", "warmboot", "snapshot", "create")
	// With none at all.
	fillUp()
	refused("a container", "warmboot", "run", "-d", "--name", "during", busybox, "sleep", "1000000")
	if c := h.containers(t)["before"]; c.State != "running" {
		t.Errorf("the container from before is %+v", c)
	}
	// One that is to run always dies now. Whether it comes back before or after there is room again, it does.
	sh(t, h.Machine, "kill -9 "+sh(t, h.Machine, "grep -l -a -e '"+victim.VMID+"' $(grep -l -x firecracker /proc/[0-9]*/comm | sed 's/comm/cmdline/') | cut -d / -f 3"))
	sh(t, h.Machine, "rm /fill; sync")
	eventually(t, 5*time.Minute, "it runs again", func() error {
		if c := h.containers(t)["always"]; c.State != "running" || c.Restarts == 0 {
			return fmt.Errorf("it is %s: %s", c.State, c.Error)
		}
		return nil
	})
	if out := must(t, h.Machine, "warmboot", "exec", "before", "echo", "alive"); out != "alive" {
		t.Errorf("it says %q", out)
	}
	if now := sh(t, h.Machine, "systemctl show -P MainPID warmboot"); now != server {
		t.Errorf("the server did not survive it: it was process %s, and is %s", server, now)
	}
	h.settled(t, 5*time.Minute)
	for name, c := range h.containers(t) {
		if name != "before" && name != "always" && c.State != "failed" {
			t.Errorf("%s is %s", name, c.State)
		}
	}
	h.sound(t)
	wantWarm(t, h.run(t, "afterwards"))
	must(t, h.Machine, "warmboot", "snapshot", "create")
	h.removeAll(t)
}

// clock moves the host's clock under a running server.
func (h *host) clock(t *testing.T, by time.Duration) {
	before := h.run(t, "before", "--restart", "always")
	victim := h.run(t, "victim", "--restart", "always")
	now := sh(t, h.Machine, "date +%s")
	seconds, err := strconv.ParseInt(now, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	// A restart that is due in a second, by a clock that is about to be another.
	sh(t, h.Machine, "kill -9 $(grep -l -x firecracker /proc/[0-9]*/comm | tail -n 1 | cut -d / -f 3)")
	if err := h.SetClock(t.Context(), time.Unix(seconds, 0).Add(by)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, "the container whose machine was killed runs again", func() error {
		all := h.containers(t)
		if all["victim"].Restarts+all["before"].Restarts == 0 {
			return errors.New("none was started again")
		}
		for _, name := range []string{"victim", "before"} {
			if c := all[name]; c.State != "running" {
				return fmt.Errorf("%s is %s: %s", name, c.State, c.Error)
			}
		}
		return nil
	})
	if c := h.containers(t)["before"]; c.VMID != before.VMID && h.containers(t)["victim"].VMID != victim.VMID {
		t.Errorf("both were started again")
	}
	after := h.run(t, "after")
	wantWarm(t, after)
	// A guest's clock is its host's.
	var host, guest int64
	if _, err := fmt.Sscan(sh(t, h.Machine, "date +%s; warmboot exec after date +%s; date +%s"), &host, &guest, new(int64)); err != nil || guest < host-1 || guest > host+30 {
		t.Errorf("the host's clock says %d, the guest's %d (%v)", host, guest, err)
	}
	must(t, h.Machine, "warmboot", "snapshot", "create")
	h.settled(t, 5*time.Minute)
	h.sound(t)
	h.removeAll(t)
	if err := h.SetClock(t.Context(), time.Now()); err != nil {
		t.Fatal(err)
	}
}

// nothingLeft stops the server; then the host is as it was before it came.
func (h *host) nothingLeft(t *testing.T) {
	wantWarm(t, h.run(t, "last"))
	h.removeAll(t)
	for _, s := range h.snapshots(t) {
		if s.State != "deleted" {
			must(t, h.Machine, "warmboot", "snapshot", "rm", s.ID)
		}
	}
	eventually(t, time.Minute, "the snapshots' files are gone", func() error {
		if out := sh(t, h.Machine, "ls -d /srv/fc/runtime-snapshots/*/* 2>/dev/null || true"); out != "" {
			return errors.New(out)
		}
		return nil
	})
	must(t, h.Machine, "systemctl", "stop", "warmboot")
	for what, line := range map[string]string{
		"processes":          vmms,
		"network interfaces": "ip -o link | grep -v ' lo:' || true",
		"network namespaces": "lsns -n -t net -o NS,COMMAND | tail -n +2",
		"rules":              "nft list tables",
		"cgroups":            "ls -d /sys/fs/cgroup/warmboot/*/ 2>/dev/null || true",
		"mounts":             "grep -E 'srv/fc|jail' /proc/self/mountinfo || true",
		"files":              "ls -A /srv/fc/containers /srv/fc/builds | grep -v -e '^/' -e '^$' || true",
		"temporary files":    "ls -A /tmp /var/tmp | grep -i warmboot || true",
	} {
		if out := sh(t, h.Machine, line); out != "" {
			t.Errorf("there are left %s:\n%s", what, out)
		}
	}
}
