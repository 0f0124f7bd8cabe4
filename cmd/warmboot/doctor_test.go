package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
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
	config := func(o cli.DoctorOptions) preflight.Config {
		c, err := preflightConfig(o)
		if err != nil {
			t.Error(err)
		}
		change(&c)
		return c
	}
	var i invocation
	var out, said bytes.Buffer
	i.code = cli.Run(t.Context(), cli.Config{
		In: strings.NewReader(""), Out: &out, Err: &said, Env: os.Getenv, Version: version, Signals: make(chan os.Signal),
		Doctor: func(ctx context.Context, o cli.DoctorOptions) []preflight.Check { return preflight.Run(ctx, config(o)) },
		Fix: func(ctx context.Context, o cli.DoctorOptions, progress cli.Progress) []preflight.Fixed {
			return preflight.Fix(ctx, config(o), func(step string, fraction float64) {
				i.fractions = append(i.fractions, fraction)
				progress(step, fraction)
			})
		},
	}, append([]string{"doctor", "--fix", "-o", "json", "--unsafe-no-jailer", "--storage-root", t.TempDir()}, args...))
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

// The whole way, as somebody goes it on a host where KVM works and an earlier warmboot has installed a release that turned out to have a fault.
func TestDoctorInstallsFirecracker(t *testing.T) {
	dir, err := os.MkdirTemp("", "warmboot-doctor-") // not t.TempDir: VMMs run as users who must get there
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	program, err := standin.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	archive, programs := pinned(t, program)
	kernel, qemu, places := filepath.Join(dir, "kernel"), filepath.Join(dir, "qemu"), filepath.Join(dir, "firecracker")
	faulty := filepath.Join(places, "v1.16.1", "firecracker")
	if err := errors.Join(
		os.Chmod(dir, 0o755), os.WriteFile(kernel, kerneltest.ELF(4096), 0o644),
		programtest.Write(qemu, []byte("#!/bin/sh\n[ \"$1\" = -version ] && echo 'QEMU emulator version 7.2.22'\n")),
		programtest.Write(filepath.Join(dir, "modprobe"), []byte("#!/bin/sh\nexit 1\n")), // the kernel is left alone
		os.Mkdir(places, 0o755), os.Rename(filepath.Dir(standin.InstallJailed(t, standin.Profile{Version: "1.16.1"}, program)), filepath.Dir(faulty)),
	); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for name, value := range map[string]string{"MANAGER_NETWORK": "tap", "MANAGER_LISTEN": "127.0.0.1:0", "MANAGER_NETWORK_CIDR": "", "CONTAINER_RUNTIME_ROOTFS": "", "MANAGER_VMM": "", "FIRECRACKER": "", "JAILER": ""} {
		t.Setenv(name, value)
	}

	var asked atomic.Int64
	var cut atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if cut.CompareAndSwap(true, false) {
			http.ServeContent(&cutWriter{w, len(archive) / 2}, r, "", time.Time{}, bytes.NewReader(archive))
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(archive))
	}))
	t.Cleanup(server.Close)
	sum := sha256.Sum256(archive)
	right := hex.EncodeToString(sum[:])
	from := func(sum string) func(*preflight.Config) {
		return func(c *preflight.Config) {
			c.VMM.Places, c.VMM.QEMU, c.VMM.ProbeKernel = install.Binaries(places), qemu, kernel
			c.Install = install.Config{Dir: places, URL: server.URL, SHA256: sum, Client: server.Client(), Retry: time.Millisecond}
		}
	}
	wantSaid := func(what, text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: it does not say %q:\n%s", what, w, text)
			}
		}
	}
	wantFiles := func(what string, want ...string) {
		t.Helper()
		var got []string
		entries, err := os.ReadDir(places)
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
	binary := filepath.Join(places, install.Version, "firecracker")
	const downloads = "Downloading Firecracker " + install.Version + "\n"

	named := doctorFix(t, from(right), "--firecracker", faulty)
	wantSaid("a binary is named", named.said, faulty+" is named (FIRECRACKER), so nothing is installed; it is v1.16.1")
	t.Setenv("FIRECRACKER", faulty)
	named = doctorFix(t, from(right))
	wantSaid("a binary is named by the variable", named.said, faulty+" is named (FIRECRACKER), so nothing is installed; it is v1.16.1")
	t.Setenv("FIRECRACKER", "")
	wantFiles("a binary is named", "v1.16.1")
	if n := asked.Load(); n > 0 {
		t.Errorf("a binary is named, and the server was asked %d times", n)
	}

	wrong := doctorFix(t, from(strings.Repeat("0", 64)))
	wantSaid("a wrong checksum", wrong.said, downloads, "is not the release that warmboot knows: its SHA-256 is not "+strings.Repeat("0", 64), "Nothing was installed")
	wantSaid("a wrong checksum", wrong.checks["Firecracker"].Detail, faulty, "v1.16.1")
	if wrong.code == 0 {
		t.Error("a wrong checksum: it exits with 0")
	}
	wantFiles("a wrong checksum", ".lock", "v1.16.1")

	cut.Store(true)
	before := asked.Load()
	fixed := doctorFix(t, from(right))
	wantSaid("the release", fixed.said, downloads, "Firecracker: "+install.Version+" was installed: "+binary+"; a server that runs takes it when it is started again, instead of "+faulty+"\n")
	wantFiles("the release", ".lock", install.Version, "v1.16.1")
	for name, want := range programs {
		if got, err := os.ReadFile(filepath.Join(places, install.Version, name)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the one in the archive (%v)", name, err)
		}
	}
	if n := asked.Load() - before; n != 2 {
		t.Errorf("the connection broke off once, and it asked %d times", n)
	}
	if f := fixed.fractions; !slices.IsSorted(f) || len(f) < 3 || f[0] != 0 || f[len(f)-1] != 1 {
		t.Errorf("the progress was %v", f)
	}
	// What it looks at afterwards is already what was installed.
	if c := fixed.checks["Firecracker"]; c.Status != preflight.OK || !strings.Contains(c.Detail, binary) {
		t.Errorf("%+v", c)
	}
	if c := fixed.checks["microVMs run under"]; c.Status != preflight.OK || c.Detail != "Firecracker "+install.Version+" with KVM" {
		t.Errorf("%+v", c)
	}
	var c preflight.Config
	from(right)(&c)
	c.VMM.Unjailed = true
	found, err := choice.Look(t.Context(), c.VMM)
	if err != nil || found.Error != nil {
		t.Fatal(err, found.Error)
	}
	if got := found.Choice; got.Driver.Name() != choice.Firecracker || got.Found.Binary != binary || "v"+got.Found.Version != install.Version {
		t.Errorf("%s is chosen: %+v", got.Driver.Name(), got.Found)
	}

	before = asked.Load()
	again := doctorFix(t, from(right))
	wantSaid("a second time", again.said, "Firecracker: "+install.Version+" is there already, and works: "+binary)
	if n := asked.Load() - before; n > 0 || strings.Contains(again.said, downloads) {
		t.Errorf("a second time, the server was asked %d times:\n%s", n, again.said)
	}
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
