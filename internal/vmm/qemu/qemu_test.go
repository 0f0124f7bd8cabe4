package qemu

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/process"
	"warmboot/internal/vmm/vmmtest"
)

// The tests with machines take turns: an emulated CPU keeps a real one busy.

// owner is a user that nothing else runs as.
var owner = vmm.Owner{UID: 1_900_099_001, GID: 1_900_099_001, Readers: 1_900_099_000}

func TestConformance(t *testing.T) {
	kernel := vmmtest.Kernel(t)
	dir := shared(t)
	initrd := vmmtest.Initrd(t, dir)
	root := filepath.Join(dir, "root.img")
	if err := os.WriteFile(root, make([]byte, 1<<20), 0o444); err != nil {
		t.Fatal(err)
	}
	state := t.TempDir()
	if want := os.Getenv(vmmtest.AcceleratorVar); want != "" {
		caps, err := New(Config{StateDir: state}).Probe(t.Context())
		if err != nil || caps.Accelerator != want {
			t.Fatalf("machines are to run on %s here, and the driver finds %+v, %v", want, caps, err)
		}
	}
	var log process.Tail
	defer func() {
		if strings.Contains(log.String(), "deprecated") {
			t.Errorf("QEMU will soon refuse what we ask of it:\n%s", log.String())
		}
	}()
	vmmtest.Run(t, vmmtest.Suite{
		New: func(*testing.T) vmm.Driver {
			return New(Config{StateDir: state, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
		},
		Again: func(*testing.T, vmm.Driver) vmm.Driver { return New(Config{StateDir: state}) },
		Spec: func(*testing.T) vmm.Spec {
			return vmm.Spec{
				VCPUs: 1, MemoryMiB: 128, Kernel: kernel, Initrd: initrd, RootDisk: vmm.Disk{Path: root, Format: vmm.Raw},
				Network: vmm.Network{Subnet: netip.MustParsePrefix("100.64.7.0/24")}, Owner: owner,
			}
		},
		Kill: func(t *testing.T, _ vmm.Driver, m vmm.Machine) {
			if err := syscall.Kill(m.Handle().PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		Alive: func(t *testing.T, _ vmm.Driver, id string) bool { return find(t, id) != 0 },
	})
}

// machineFor is a machine that need not get anywhere.
func machineFor(t *testing.T, id, kernel string) vmm.Spec {
	t.Helper()
	return vmm.Spec{
		ID: id + "-" + strconv.Itoa(os.Getpid()), Dir: t.TempDir(), VCPUs: 1, MemoryMiB: 128, Kernel: kernel,
		Network: vmm.Network{Subnet: netip.MustParsePrefix("100.64.8.0/24")}, Owner: owner,
	}
}

// accelerator is what machines run on that no probe decides about: emulation works everywhere.
func accelerator() string { return cmp.Or(os.Getenv(vmmtest.AcceleratorVar), "tcg") }

func create(t *testing.T, spec vmm.Spec) *machine {
	t.Helper()
	m, err := New(Config{Accelerator: accelerator()}).Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
		if pid := find(t, spec.ID); pid != 0 {
			t.Errorf("process %d is left", pid)
		}
	})
	return m.(*machine)
}

// A VMM is where a guest would break out to, so it has nothing to offer there.
func TestConfinement(t *testing.T) {
	kernel := vmmtest.Kernel(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can give machines users of their own")
	}
	for name, c := range map[string]struct {
		port uint16
		caps string
	}{
		"plain":           {8080, "0000000000000000"},
		"privileged port": {80, "0000000000000400"}, // CAP_NET_BIND_SERVICE
	} {
		t.Run(name, func(t *testing.T) {
			spec := machineFor(t, "confined-"+c.caps[12:], kernel)
			spec.Network.Forwards = []vmm.Forward{{
				Protocol: warmboot.TCP, HostIP: netip.MustParseAddr("127.77.66.55"), HostPort: c.port, GuestPort: 80}}
			m := create(t, spec)
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.handle.PID))
			if err != nil {
				t.Fatal(err)
			}
			status := map[string]string{}
			for line := range strings.Lines(string(text)) {
				k, v, _ := strings.Cut(line, ":")
				status[k] = strings.Join(strings.Fields(v), " ")
			}
			uid, gid := fmt.Sprint(owner.UID), fmt.Sprint(owner.GID)
			groups, err := process.KVMGroup() // and of all groups, that one and the one for snapshots
			if err != nil {
				t.Fatal(err)
			}
			for k, want := range map[string]string{
				"Uid": strings.Join([]string{uid, uid, uid, uid}, " "), "Gid": strings.Join([]string{gid, gid, gid, gid}, " "),
				"Groups": strings.Trim(fmt.Sprint(append(groups, owner.Groups()...)), "[]"), "CapEff": c.caps, "CapPrm": c.caps, "CapInh": c.caps, "CapAmb": c.caps, "NoNewPrivs": "1", "Seccomp": "2",
			} {
				if status[k] != want {
					t.Errorf("%s is %q, want %q", k, status[k], want)
				}
			}
			if pid, err := unix.Getsid(m.handle.PID); err != nil || pid != m.handle.PID {
				t.Errorf("it is in session %d (%v), not in one of its own", pid, err)
			}
			files, err := os.ReadDir(spec.Dir)
			if err != nil || len(files) == 0 {
				t.Fatal(files, err)
			}
			for _, f := range files {
				info, err := f.Info()
				if err != nil {
					t.Fatal(err)
				}
				if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 || info.Mode().Perm() != 0o600 {
					t.Errorf("%s belongs to %d and has mode %v", f.Name(), st.Uid, info.Mode())
				}
			}
			conn, err := net.Dial("tcp", fmt.Sprintf("127.77.66.55:%d", c.port))
			if err != nil {
				t.Fatalf("the published port does not answer: %v", err)
			}
			conn.Close()
		})
	}
}

// A kernel without a root file system panics: the machine ends, and one can read why.
func TestPanicEndsTheMachineAndIsReadable(t *testing.T) {
	m := create(t, machineFor(t, "panic", vmmtest.Kernel(t)))
	select {
	case <-m.Done():
	case <-time.After(time.Minute):
		t.Error("the machine goes on")
	}
	if !strings.Contains(m.Console(), "Kernel panic - not syncing: VFS") {
		t.Errorf("the console says %q", m.Console())
	}
}

// A kernel with two CPUs patches its own code while both run it. Under QEMU 7.2's emulation with a thread for each CPU none of five survived: three were to take
// 60 of these rounds, two ten.
func TestKernelPatchesItself(t *testing.T) {
	spec := machineFor(t, "patches", vmmtest.Kernel(t))
	dir := shared(t)
	spec.VCPUs, spec.Initrd = 2, vmmtest.Initrd(t, dir)
	m := create(t, spec)
	if answer, err := ask(t, m, "patch 20"); answer != "ok" {
		t.Errorf("the guest answers %q, %v; its console says:\n%s", answer, err, m.Console())
	}
}

// ask gives the guest one command.
func ask(t *testing.T, m vmm.Machine, command string) (string, error) {
	t.Helper()
	conn, err := m.DialGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * time.Minute))
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(answer), err
}

// find returns the QEMU process of a machine, or 0.
func find(t *testing.T, id string) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(text), "\x00warmboot-"+id+"\x00") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			return pid
		}
	}
	return 0
}

// shared is a temporary directory that others may read.
func shared(t *testing.T) string {
	t.Helper()
	d, err := os.MkdirTemp("", "qemutest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(d) })
	if err := os.Chmod(d, 0o755); err != nil {
		t.Fatal(err)
	}
	return d
}

// helperVar, set to a directory, makes this test binary start a machine there and end.
const helperVar = "WARMBOOT_TEST_QEMU_HELPER"

// A machine goes on when the process that started it ends, and nothing of that process is missed: neither the reader of
// its console nor that of its own messages.
func TestMachineOutlivesUs(t *testing.T) {
	kernel := vmmtest.Kernel(t)
	if dir := os.Getenv(helperVar); dir != "" {
		spec := machineFor(t, "outlives", kernel)
		spec.Dir, spec.Initrd = dir, filepath.Join(filepath.Dir(dir), "initrd.img")
		spec.KernelArgs = []string{"ignore_loglevel"} // all the time something is printed
		m, err := New(Config{Accelerator: accelerator()}).Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(m.Handle())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("%s\n", text)
		os.Exit(0) // and no clean-up
	}
	dir := shared(t)
	vmmtest.Initrd(t, dir)
	at := filepath.Join(dir, "machine")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	helper := exec.Command(os.Args[0], "-test.run=^TestMachineOutlivesUs$")
	helper.Env = append(os.Environ(), helperVar+"="+at, "TMPDIR="+dir)
	out, err := helper.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var h vmm.Handle
	if err := json.Unmarshal(out, &h); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	m, err := New(Config{Accelerator: accelerator()}).Recover(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := m.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
	}()
	if answer, err := ask(t, m, "ping"); answer != "pong" {
		t.Errorf("the guest answers %q, %v", answer, err)
	}
}
