package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"warmboot"
	"warmboot/internal/cli"
	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/preflight"
	"warmboot/internal/programtest"
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/install"
	"warmboot/internal/vmm/firecracker/standin"
)

// TestMain fails if a test leaves a goroutine.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// invocation is what came of a command.
type invocation struct {
	code      int
	said      string // on standard error
	checks    map[string]preflight.Check
	fractions []float64 // of the download
}

// doctorFix is `warmboot doctor --fix` as main has it, but for what change does: where Firecracker comes from, and to where.
func doctorFix(t *testing.T, change func(*preflight.Config), args ...string) invocation {
	t.Helper()
	var i invocation
	var out, said bytes.Buffer
	i.code, i.fractions = runDoctorFix(t, change, &out, &said, append([]string{"-o", "json"}, args...)...)
	i.said, i.checks = said.String(), map[string]preflight.Check{}
	var checks []preflight.Check
	if err := json.Unmarshal(out.Bytes(), &checks); err != nil {
		t.Fatalf("%v: %s%s", err, out.Bytes(), i.said)
	}
	for _, c := range checks {
		i.checks[c.Name] = c
	}
	return i
}

// runDoctorFix returns the exit code, and how the download went on.
func runDoctorFix(t *testing.T, change func(*preflight.Config), out, said io.Writer, args ...string) (code int, fractions []float64) {
	t.Helper()
	config := func(o cli.DoctorOptions) preflight.Config {
		c, err := preflightConfig(o)
		if err != nil {
			t.Error(err)
		}
		change(&c)
		return c
	}
	code = cli.Run(t.Context(), cli.Config{
		In: strings.NewReader(""), Out: out, Err: said, Env: os.Getenv, Version: version, Signals: make(chan os.Signal),
		Doctor: func(ctx context.Context, o cli.DoctorOptions) []preflight.Check { return preflight.Run(ctx, config(o)) },
		Fix: func(ctx context.Context, o cli.DoctorOptions, progress cli.Progress) []preflight.Fixed {
			return preflight.Fix(ctx, config(o), func(step string, fraction float64) {
				fractions = append(fractions, fraction)
				progress(step, fraction)
			})
		},
	}, append([]string{"doctor", "--fix", "--storage-root", t.TempDir()}, args...))
	return code, fractions
}

// pinned is an archive as the release's makers would have made it, with the stand-in in it, and what its programs are.
func pinned(t *testing.T, program string) (archive []byte, programs map[string][]byte) {
	t.Helper()
	dir := filepath.Dir(standin.InstallJailed(t, standin.Profile{Version: strings.TrimPrefix(install.Version, "v")}, program))
	programs = map[string][]byte{}
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	w := tar.NewWriter(z)
	release := "release-" + install.Version + "-x86_64/"
	add := func(kind byte, name string, content []byte) {
		t.Helper()
		if err := w.WriteHeader(&tar.Header{Typeflag: kind, Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.TypeDir, release, nil)
	add(tar.TypeReg, release+"LICENSE", []byte("free"))
	for _, name := range []string{"firecracker", "jailer"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		programs[name] = content
		add(tar.TypeReg, release+name+"-"+install.Version+"-x86_64", content)
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), programs
}

// unjailed is for hosts on which nothing can be jailed. What is installed is the same.
const unjailed = "--unsafe-no-jailer"

// doctorHost is a host where KVM works, and an earlier warmboot has installed a release that turned out to have a fault.
type doctorHost struct {
	archive  []byte            // from where its makers publish it
	programs map[string][]byte // that are in it
	url      string            // where that is
	asked    atomic.Int64      // how often somebody has
	cut      atomic.Bool       // the connection breaks off, once
	places   string            // where releases are installed
	faulty   string            // the binary that is there
	binary   string            // the one that will be
	qemu     string            // without KVM
	kernel   string            // to try KVM with
}

func newDoctorHost(t *testing.T) *doctorHost {
	t.Helper()
	dir, err := os.MkdirTemp("", "warmboot-doctor-") // not t.TempDir: VMMs run as users who must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := standin.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := &doctorHost{places: filepath.Join(dir, "firecracker"), qemu: filepath.Join(dir, "qemu"), kernel: filepath.Join(dir, "kernel")}
	h.faulty, h.binary = filepath.Join(h.places, "v1.16.1", "firecracker"), filepath.Join(h.places, install.Version, "firecracker")
	h.archive, h.programs = pinned(t, program)
	if err := errors.Join(
		os.Chmod(dir, 0o755), os.WriteFile(h.kernel, kerneltest.ELF(4096), 0o644),
		programtest.Write(h.qemu, []byte("#!/bin/sh\n[ \"$1\" = -version ] && echo 'QEMU emulator version 7.2.22'\n")),
		programtest.Write(filepath.Join(dir, "modprobe"), []byte("#!/bin/sh\nexit 1\n")), // the kernel is left alone
		os.Mkdir(h.places, 0o755), os.Rename(filepath.Dir(standin.InstallJailed(t, standin.Profile{Version: "1.16.1"}, program)), filepath.Dir(h.faulty)),
	); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for name, value := range map[string]string{
		"MANAGER_NETWORK": "tap", "MANAGER_LISTEN": "127.0.0.1:0", "MANAGER_NETWORK_CIDR": "", "CONTAINER_RUNTIME_ROOTFS": "", "MANAGER_VMM": "", "FIRECRACKER": "", "JAILER": "", "WARMBOOT_UID_BASE": "",
	} {
		t.Setenv(name, value)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if h.cut.CompareAndSwap(true, false) {
			w = &cutWriter{w, len(h.archive) / 2}
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(h.archive))
	}))
	t.Cleanup(server.Close)
	h.url = server.URL
	return h
}

// config has doctor look at the host.
func (h *doctorHost) config(c *preflight.Config) {
	h.use(&c.VMM)
	c.Install = install.Config{Dir: h.places, URL: h.url, SHA256: fmt.Sprintf("%x", sha256.Sum256(h.archive)), Retry: time.Millisecond}
}

// use has a choice made of what there is on the host.
func (h *doctorHost) use(c *choice.Config) {
	c.Places, c.QEMU, c.ProbeKernel = install.Binaries(h.places), h.qemu, h.kernel
}

// choose is what serve chooses there.
func (h *doctorHost) choose(t *testing.T, o cli.VMMOptions) *choice.Choice {
	t.Helper()
	c := vmmConfig(o)
	h.use(&c)
	chosen, err := choice.Make(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return chosen
}

func wantSaid(t *testing.T, what, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s: it does not say %q:\n%s", what, w, text)
		}
	}
}

// wantFiles is what must be below places.
func (h *doctorHost) wantFiles(t *testing.T, what string, want ...string) {
	t.Helper()
	var got []string
	entries, err := os.ReadDir(h.places)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("%s: there is %q, want %q", what, got, want)
	}
}

const downloads = "Downloading Firecracker " + install.Version + "\n"

// The whole way, as somebody goes it.
func TestDoctorInstallsFirecracker(t *testing.T) {
	h := newDoctorHost(t)
	named := doctorFix(t, h.config, unjailed, "--firecracker", h.faulty)
	wantSaid(t, "a binary is named", named.said, h.faulty+" is named (FIRECRACKER), so nothing is installed; it is v1.16.1")
	t.Setenv("FIRECRACKER", h.faulty)
	named = doctorFix(t, h.config, unjailed)
	wantSaid(t, "a binary is named by the variable", named.said, h.faulty+" is named (FIRECRACKER), so nothing is installed; it is v1.16.1")
	t.Setenv("FIRECRACKER", "")
	h.wantFiles(t, "a binary is named", "v1.16.1")
	if n := h.asked.Load(); n > 0 {
		t.Errorf("a binary is named, and the server was asked %d times", n)
	}

	wrong := doctorFix(t, func(c *preflight.Config) {
		h.config(c)
		c.Install.SHA256 = strings.Repeat("0", 64)
	}, unjailed)
	wantSaid(t, "a wrong checksum", wrong.said, downloads, "is not the release that warmboot knows: its SHA-256 is not "+strings.Repeat("0", 64), "Nothing was installed")
	wantSaid(t, "a wrong checksum", wrong.checks["Firecracker"].Detail, h.faulty, "v1.16.1")
	if wrong.code == 0 {
		t.Error("a wrong checksum: it exits with 0")
	}
	h.wantFiles(t, "a wrong checksum", ".lock", "v1.16.1")

	h.cut.Store(true)
	before := h.asked.Load()
	fixed := doctorFix(t, h.config, unjailed)
	wantSaid(t, "the release", fixed.said, downloads, "Firecracker: "+install.Version+" was installed: "+h.binary+"; a server that runs takes it when it is started again, instead of "+h.faulty+"\n")
	h.wantFiles(t, "the release", ".lock", install.Version, "v1.16.1")
	for name, want := range h.programs {
		if got, err := os.ReadFile(filepath.Join(h.places, install.Version, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the one in the archive (%v)", name, err)
		}
	}
	if n := h.asked.Load() - before; n != 2 {
		t.Errorf("the connection broke off once, and it asked %d times", n)
	}
	if f := fixed.fractions; !slices.IsSorted(f) || len(f) < 3 || f[0] != 0 || f[len(f)-1] != 1 {
		t.Errorf("the progress was %v", f)
	}
	// What it looks at afterwards is already what was installed.
	if c := fixed.checks["Firecracker"]; c.Status != preflight.OK || !strings.Contains(c.Detail, h.binary) {
		t.Errorf("%+v", c)
	}
	if c := fixed.checks["microVMs run under"]; c.Status != preflight.OK || c.Detail != "Firecracker "+install.Version+" with KVM" {
		t.Errorf("%+v", c)
	}
	if got := h.choose(t, cli.VMMOptions{NoJailer: true}); got.Driver.Name() != choice.Firecracker || got.Found.Binary != h.binary || "v"+got.Found.Version != install.Version {
		t.Errorf("%s is chosen: %+v", got.Driver.Name(), got.Found)
	}

	before = h.asked.Load()
	again := doctorFix(t, h.config, unjailed)
	wantSaid(t, "a second time", again.said, "Firecracker: "+install.Version+" is there already, and works: "+h.binary)
	if n := h.asked.Load() - before; n > 0 || strings.Contains(again.said, downloads) {
		t.Errorf("a second time, the server was asked %d times:\n%s", n, again.said)
	}
}

// What doctor installs, serve runs in jails, with the jailer of the same release. Where it could not, because the host limits no machines, nothing is got.
func TestDoctorInstallsFirecrackerWithItsJailer(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root can jail machines")
	}
	const parent = "/sys/fs/cgroup/warmboot" // of the machines' cgroups, which are gone when the machines are
	if _, err := os.Stat(parent); err != nil {
		t.Cleanup(func() { _ = os.Remove(parent) })
	}
	h := newDoctorHost(t)
	fixed := doctorFix(t, h.config)
	if controllers, _ := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); !strings.Contains(string(controllers), "memory") {
		wantSaid(t, "no cgroup v2", fixed.said, "Firecracker: nothing is installed, as it could not be used: cgroup v2: ", "; boot with systemd.unified_cgroup_hierarchy=1")
		h.wantFiles(t, "no cgroup v2", "v1.16.1")
		if got := h.choose(t, cli.VMMOptions{}); got.Driver.Name() != choice.QEMU || !strings.Contains(got.Why, "cgroup v2") {
			t.Errorf("no cgroup v2: %s is chosen: %s", got.Driver.Name(), got.Why)
		}
		t.Skip("SKIPPED: the rest needs cgroup v2 with the controllers cpu, memory and pids; TestFirecrackerInJails in test/nestedhost has it")
	}
	wantSaid(t, "the release", fixed.said, downloads, "Firecracker: "+install.Version+" was installed: "+h.binary)
	if c := fixed.checks["microVMs run under"]; c.Status != preflight.OK || c.Detail != "Firecracker "+install.Version+" with KVM" {
		t.Errorf("%+v", c)
	}
	if got := h.choose(t, cli.VMMOptions{}); got.Driver.Name() != choice.Firecracker || got.Found.Binary != h.binary || got.Warning != "" {
		t.Errorf("%s is chosen: %+v, %s", got.Driver.Name(), got.Found, got.Warning)
	}
	// It is this jailer without which nothing starts.
	jailer := filepath.Join(filepath.Dir(h.binary), "jailer")
	if err := standin.Change(jailer, standin.Profile{Version: strings.TrimPrefix(install.Version, "v"), Jailer: standin.JailerFaults{Says: "not today"}}); err != nil {
		t.Fatal(err)
	}
	if got := h.choose(t, cli.VMMOptions{}); got.Driver.Name() != choice.QEMU || !strings.Contains(got.Why, "not today") {
		t.Errorf("with a jailer that starts nothing %s is chosen: %s", got.Driver.Name(), got.Why)
	}
}

// Without a network there is no release to be had. It is said how to do it by hand, and what serve uses meanwhile.
func TestDoctorWithoutANetwork(t *testing.T) {
	h := newDoctorHost(t)
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.url = "http://" + closed.Addr().String() + "/firecracker.tgz"
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	var terminal bytes.Buffer // both, as somebody sees them
	code, _ := runDoctorFix(t, h.config, &terminal, &terminal, unjailed)
	said := terminal.String()
	wantSaid(t, "no network", said,
		"\n! Firecracker          v1.16.1, snapshots of format 10.0.0, "+h.faulty+"; after a pause without a snapshot Firecracker 1.16.1 does not reach the guest any more; ",
		"\n✓ microVMs run under   Firecracker v1.16.1 with KVM\n",
		"install Firecracker: "+h.url+" cannot be had: ", "connection refused. Try again where there is a network, or do it by hand: get https://", "FIRECRACKER=", "JAILER=",
	)
	if want := warmboot.Unavailable.Outcome().Exit; code != want || strings.Contains(said, "was installed") {
		t.Errorf("it exits with %d, want %d:\n%s", code, want, said)
	}
	h.wantFiles(t, "no network", ".firecracker-"+install.Version+".tgz.part", ".lock", "v1.16.1")
}

// Doctor looks at the user ids that serve would give to VMMs, and says where serve would not start for them.
func TestDoctorLooksAtTheUserIDsOfServe(t *testing.T) {
	for base, want := range map[string]preflight.Check{
		"":       {Status: preflight.OK, Detail: "1900000000 to 1900065535 are free for VMMs"},
		"200000": {Status: preflight.OK, Detail: "200000 to 265535 are free for VMMs"},
		"5":      {Status: preflight.Fail, Detail: "WARMBOOT_UID_BASE is \"5\"; it must be a user id from 100000 on"},
	} {
		t.Setenv("WARMBOOT_UID_BASE", base)
		o := cli.DoctorOptions{StorageRoot: t.TempDir(), VMM: cli.VMMOptions{Firecracker: "/no/such/firecracker"}}
		checks := doctor(t.Context(), o)
		i := slices.IndexFunc(checks, func(c preflight.Check) bool { return c.Name == "user ids" })
		if i < 0 || checks[i].Status != want.Status || checks[i].Detail != want.Detail || want.Status != preflight.OK && checks[i].Fix == "" {
			t.Errorf("WARMBOOT_UID_BASE=%s: %+v, want %+v", base, checks, want)
		}
		if base == "5" {
			if fixed := fix(t.Context(), o, func(string, float64) {}); len(fixed) != 1 || warmboot.CodeOf(fixed[0].Err) != warmboot.Invalid {
				t.Errorf("WARMBOOT_UID_BASE=%s: --fix says %+v", base, fixed)
			}
		}
	}
}

// cutWriter breaks the connection off after so many bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (w *cutWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		_, _ = w.ResponseWriter.Write(p[:w.left])
		w.ResponseWriter.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	w.left -= len(p)
	return w.ResponseWriter.Write(p)
}
