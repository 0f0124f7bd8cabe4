package nestedhost_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"warmboot/api"
	"warmboot/test/nestedhost"
)

// faulty are the releases that doctor warns of, which are replaced where there is a network to get another by.
var faulty = map[string]bool{"v1.16.0": true, "v1.16.1": true}

// TestFirecrackerComesAndGoes is a host that gets Firecracker while containers run, and loses it again: nothing of them is lost.
func TestFirecrackerComesAndGoes(t *testing.T) {
	m := bootWithFirecracker(t)
	version := strings.Fields(sh(t, m, "firecracker --version"))[1]
	installed := "/usr/local/lib/warmboot/firecracker/" + version // where `warmboot doctor --fix` puts it, and serve finds it
	sh(t, m, "mkdir -p /root/fc; mv /usr/local/bin/firecracker /usr/local/bin/jailer /root/fc/")
	install(t, m)
	logIfFailed(t, m)

	// KVM works, so it is worth having; there is no network to get it by.
	doctor := sh(t, m, "warmboot doctor || true")
	t.Logf("$ warmboot doctor\n%s", doctor)
	for _, want := range []string{"a kernel boots under QEMU with it", "! Firecracker          not there; microVMs run under QEMU", "`warmboot doctor --fix`"} {
		if !strings.Contains(doctor, want) {
			t.Errorf("doctor does not say %q", want)
		}
	}
	offline := sh(t, m, "warmboot doctor --fix 2>&1 >/dev/null || echo exit $?")
	t.Logf("$ warmboot doctor --fix\n%s", offline)
	if !strings.Contains(offline, "FIRECRACKER=") || !strings.Contains(offline, "exit 8") {
		t.Error("without a network doctor --fix does not say what to do")
	}

	serve := func(vmm string) {
		t.Helper()
		must(t, m, "systemctl", "restart", "warmboot")
		sh(t, m, "for try in $(seq 600); do warmboot version >/dev/null 2>&1 && exit; sleep 0.2; done; exit 1")
		isUnder(t, m, vmm)
	}
	run := func(name string) {
		t.Helper()
		must(t, m, "warmboot", "run", "-d", "--name", name, busybox, "sh", "-c", "test -e /kept || hostname >/kept; exec sleep 10000")
	}
	kept := map[string]string{}
	// has checks that what a container once wrote is there, and under which VMM it runs.
	has := func(name, vmm string) {
		t.Helper()
		got := must(t, m, "warmboot", "exec", name, "cat", "/kept")
		if kept[name] == "" {
			kept[name] = got
		}
		if got == "" || got != kept[name] {
			t.Errorf("%s has %q, and had %q", name, got, kept[name])
		}
		if record := sh(t, m, "cat /srv/fc/containers/"+inspect(t, m, name).ID+"/record.json"); !strings.Contains(record, `"driver": "`+vmm+`"`) {
			t.Errorf("%s does not run under %s: %s", name, vmm, record)
		}
	}

	serve("qemu")
	must(t, m, "warmboot", "image", "register", "trixie",
		"--kernel", productImage+"/vmlinux", "--initrd", productImage+"/initrd.img", "--rootfs", productImage+"/rootfs.ext4")
	must(t, m, "warmboot", "snapshot", "create")
	for _, name := range []string{"goes-on", "stopped"} {
		run(name)
		has(name, "qemu")
		wantWarm(t, inspect(t, m, name))
	}
	must(t, m, "warmboot", "stop", "stopped")

	// Firecracker is there.
	sh(t, m, "mkdir -p "+installed+"; cp /root/fc/* "+installed)
	serve("firecracker")
	has("goes-on", "qemu")
	doctor = sh(t, m, "warmboot doctor --fix 2>&1 || echo exit $?")
	t.Logf("$ warmboot doctor --fix\n%s", doctor)
	wanted := []string{
		"✓ KVM                  a kernel boots under Firecracker with it", "✓ jailer               " + version + ", " + installed + "/jailer",
		"✓ microVMs run under   Firecracker " + version + " with KVM",
	}
	if faulty[version] {
		wanted = append(wanted, "! Firecracker          "+version+", snapshots of format ", "exit 8")
	} else {
		wanted = append(wanted, "✓ Firecracker          "+version+", snapshots of format ", "Firecracker: "+version+" is there already, and works: "+installed)
	}
	for _, want := range wanted {
		if !strings.Contains(doctor, want) {
			t.Errorf("doctor does not say %q", want)
		}
	}
	begin := time.Now()
	must(t, m, "warmboot", "start", "stopped")
	t.Logf("a container that QEMU has run is up under Firecracker after %.1fs", time.Since(begin).Seconds())
	has("stopped", "firecracker")
	run("first")
	has("first", "firecracker")
	if c := inspect(t, m, "first"); *c.BootMethod != "cold" || !strings.Contains(c.BootReason, "snapshot has qemu") {
		t.Errorf("the first container under Firecracker came up %s: %s", *c.BootMethod, c.BootReason)
	}
	awaitSnapshotOf(t, m, version)
	run("second")
	has("second", "firecracker")
	wantWarm(t, inspect(t, m, "second"))
	log := sh(t, m, "journalctl -u warmboot --no-pager -o cat")
	for _, want := range []string{"A container's microVM goes on under another VMM", "A container's disk was converted"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q", want)
		}
	}

	// And gone again.
	sh(t, m, "rm -r "+installed)
	serve("qemu")
	has("goes-on", "qemu")
	has("first", "firecracker")
	has("second", "firecracker")
	must(t, m, "warmboot", "stop", "second")
	must(t, m, "warmboot", "start", "second")
	has("second", "qemu")
	run("third") // it finds that the snapshot does not fit
	has("third", "qemu")
	awaitSnapshotOf(t, m, "qemu-")

	must(t, m, "warmboot", "rm", "-f", "goes-on", "stopped", "first", "second", "third")
	must(t, m, "systemctl", "stop", "warmboot")
	if left := sh(t, m, "pgrep -a 'qemu|firecracker|jailer' || true; ls /sys/fs/cgroup/warmboot 2>/dev/null | grep ^vm- || true; nft list tables; ls /srv/fc/containers"); left != "" {
		t.Errorf("at the end there is left: %s", left)
	}
}

func inspect(t *testing.T, m *nestedhost.Machine, name string) api.Container {
	t.Helper()
	var all []api.Container
	if err := json.Unmarshal([]byte(must(t, m, "warmboot", "inspect", name)), &all); err != nil || len(all) != 1 || all[0].BootMethod == nil {
		t.Fatalf("inspect %s: %v, %+v", name, err, all)
	}
	return all[0]
}

// awaitSnapshotOf waits until there is a ready snapshot of a VMM.
func awaitSnapshotOf(t *testing.T, m *nestedhost.Machine, vmm string) {
	t.Helper()
	sh(t, m, fmt.Sprintf(`for try in $(seq 600); do warmboot snapshot ls -o json | tr -d ' \n' | tr '}' '\n' | grep '"fc_version":"%s' | grep -q '"state":"ready"' && exit; sleep 0.5; done; warmboot snapshot ls; exit 1`, vmm))
}
