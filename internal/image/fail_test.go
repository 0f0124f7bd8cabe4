package image

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/kernel/kerneltest"
)

// config is a build in an empty directory, with a program that stands in for the guest agent.
func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{dir, filepath.Dir(dir)} { // the other users as which an unprivileged mmdebstrap works must get through
		if err := os.Chmod(d, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	return Config{Dir: filepath.Join(dir, "images"), Suite: "trixie", GuestBinary: staticProgram(t, 1), Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

// withBase puts a base of the recipe of cfg in place that is tiny, but real: a file system with room for a guest agent.
func withBase(t *testing.T, cfg Config) (base string) {
	t.Helper()
	base = filepath.Join(cfg.Dir, "base-"+newRecipe(cfg.Suite, cfg.Mirror).digest()[:16])
	tree := filepath.Join(t.TempDir(), "tree")
	for _, d := range []string{filepath.Join(base, baseModules), filepath.Join(tree, "usr/sbin")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(base, baseKernel), kerneltest.ELF(100_000))
	write(t, filepath.Join(base, baseModules, "virtio_blk.ko"), []byte("module"))
	write(t, filepath.Join(base, baseModules, "warmboot.list"), []byte("/lib/modules/virtio_blk.ko\n"))
	write(t, filepath.Join(base, basePackages), []byte("docker.io 1\n"))
	mkfs(t, filepath.Join(base, baseRootfs), "16M", "-O", "^has_journal,^resize_inode", "-d", tree)
	return base
}

// left lists what is in the images directory but for the lock.
func left(t *testing.T, cfg Config) []string {
	t.Helper()
	entries, err := os.ReadDir(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != ".lock" {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestANewGuestAgentIsANewImageOnTheSameBase(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	withBase(t, cfg)
	crashed := filepath.Join(cfg.Dir, draftPrefix+"crashed", "out")
	if err := os.MkdirAll(crashed, 0o755); err != nil {
		t.Fatal(err)
	}
	first, err := Build(t.Context(), cfg)
	if err != nil || first.Cached {
		t.Fatalf("%+v, %v; want a new image", first, err)
	}
	checked, err := Inspect(t.Context(), first.Image, []string{cfg.Dir})
	if err != nil || checked.Digest != first.Image.Digest || checked.SizeBytes != first.Image.SizeBytes {
		t.Fatalf("Inspect: %+v, %v; Build said %+v", checked, err, first.Image)
	}
	for _, p := range []string{first.Image.KernelPath, first.Image.InitrdPath, first.Image.RootfsPath} {
		if st, err := os.Stat(p); err != nil || st.Mode().Perm() != 0o444 {
			t.Errorf("%s: %v, %v; want a file that everybody may read and nobody write", p, st.Mode(), err)
		}
	}
	if again, err := Build(t.Context(), cfg); err != nil || !again.Cached || again.Image.Digest != first.Image.Digest {
		t.Errorf("again: %+v, %v; want the same from the cache", again, err)
	}
	cfg.GuestBinary = staticProgram(t, 2)
	second, err := Build(t.Context(), cfg)
	if err != nil || second.Cached || second.Image.Digest == first.Image.Digest || second.Image.Recipe == first.Image.Recipe {
		t.Errorf("another agent: %+v, %v; want another image", second, err)
	}
	if err := os.Chmod(second.Image.RootfsPath, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(second.Image.RootfsPath, 1<<20); err != nil {
		t.Fatal(err)
	}
	repaired, err := Build(t.Context(), cfg)
	if err != nil || repaired.Cached || repaired.Image.SizeBytes != second.Image.SizeBytes {
		t.Errorf("damaged: %+v, %v; want it built again", repaired, err)
	}
	if got := left(t, cfg); len(got) != 3 {
		t.Errorf("there are %v; want a base and two images", got)
	}
}

func TestTwoBuildsOfOneImageAtOnceDoTheWorkOnce(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	withBase(t, cfg)
	var built [4]Built
	var all sync.WaitGroup
	for i := range built {
		all.Go(func() {
			var err error
			if built[i], err = Build(t.Context(), cfg); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	made := 0
	for _, b := range built {
		if !b.Cached {
			made++
		}
		if b.Image.Digest != built[0].Image.Digest {
			t.Errorf("digests differ: %s, %s", b.Image.Digest, built[0].Image.Digest)
		}
	}
	if made != 1 {
		t.Errorf("%d builds did the work", made)
	}
}

func TestABuildWaitsForAnotherNoLongerThanItsCaller(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	withBase(t, cfg)
	unlock, err := Lock(t.Context(), filepath.Join(cfg.Dir, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Progress = func(Progress) { cancel() }
	if _, err := Build(ctx, cfg); warmboot.CodeOf(err) != warmboot.Canceled {
		t.Errorf("got %v; want Canceled", err)
	}
	unlock()
	if _, err := Build(t.Context(), cfg); err != nil {
		t.Error(err)
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	good := config(t)
	text := filepath.Join(t.TempDir(), "text")
	write(t, text, []byte("#!/bin/sh\n"))
	for name, change := range map[string]func(*Config){
		"relative directory":       func(c *Config) { c.Dir = "images" },
		"option as suite":          func(c *Config) { c.Suite = "--setup-hook=id" },
		"no suite":                 func(c *Config) { c.Suite = "" },
		"option as mirror":         func(c *Config) { c.Mirror = "--setup-hook=id" },
		"source line as mirror":    func(c *Config) { c.Mirror = "deb http://example.invalid trixie main" },
		"missing guest agent":      func(c *Config) { c.GuestBinary = text + "-2" },
		"script as guest agent":    func(c *Config) { c.GuestBinary = text },
		"dynamic guest agent":      func(c *Config) { c.GuestBinary = "/bin/sh" },
		"directory as guest agent": func(c *Config) { c.GuestBinary = filepath.Dir(text) },
	} {
		c := good
		change(&c)
		if _, err := Build(t.Context(), c); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%s: %v; want Invalid", name, err)
		}
	}
	if _, err := os.Stat(good.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a refused build made its directory: %v", err)
	}
}

func TestAFullDiskLeavesNothing(t *testing.T) {
	t.Parallel()
	cfg := config(t)
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root, to mount a small tmpfs that can be filled")
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("warmboot-test", cfg.Dir, "tmpfs", 0, "size=14m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A process that was killed lets go of its files some time later, and no event tells when.
		err := syscall.Unmount(cfg.Dir, 0)
		for end := time.Now().Add(10 * time.Second); errors.Is(err, syscall.EBUSY) && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			err = syscall.Unmount(cfg.Dir, 0)
		}
		if err != nil {
			t.Errorf("unmount %s: %v", cfg.Dir, err)
		}
	})
	if _, err := Build(t.Context(), cfg); warmboot.CodeOf(err) != warmboot.Exhausted {
		t.Errorf("without room for a base: %v; want Exhausted", err)
	}
	if got := left(t, cfg); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	base := withBase(t, cfg) // its disk is sparse; the copy of it does not fit
	if _, err := Build(t.Context(), cfg); warmboot.CodeOf(err) != warmboot.Exhausted {
		t.Errorf("without room for an image: %v; want Exhausted", err)
	}
	if got := left(t, cfg); !slices.Equal(got, []string{filepath.Base(base)}) {
		t.Errorf("left behind: %v", got)
	}
}

// needMmdebstrap skips a test that runs the real mmdebstrap where it is missing.
func needMmdebstrap(t *testing.T) {
	t.Helper()
	if err := needTools(); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	if err := needSpace(t.TempDir(), baseSpace); err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
}

// nothingOf fails the test if a process works in dir, something is mounted there, or files of a build are left.
func nothingOf(t *testing.T, cfg Config) {
	t.Helper()
	if got := left(t, cfg); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	if mounts, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(mounts), cfg.Dir) {
		t.Errorf("something is mounted below %s:\n%s", cfg.Dir, mounts)
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		env, _ := os.ReadFile(filepath.Join(p, "environ"))
		if strings.Contains(string(env), "TMPDIR="+cfg.Dir) {
			command, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			t.Errorf("%s still runs: %q", p, command)
		}
	}
}

func TestACanceledInstallationLeavesNothing(t *testing.T) {
	t.Parallel()
	needMmdebstrap(t)
	cfg := config(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// A mirror that never answers: mmdebstrap is in the middle of its work when it is stopped.
	mirror := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	defer mirror.Close()
	cfg.Mirror = mirror.URL + "/debian"
	if _, err := Build(ctx, cfg); warmboot.CodeOf(err) != warmboot.Canceled {
		t.Errorf("got %v; want Canceled", err)
	}
	nothingOf(t, cfg)
}

// TestACrashedBuildIsSweptUp kills a process that builds, this test binary itself, in the middle of an installation.
func TestACrashedBuildIsSweptUp(t *testing.T) {
	t.Parallel()
	const dirVar, mirrorVar, agentVar = "WARMBOOT_TEST_CRASH_DIR", "WARMBOOT_TEST_CRASH_MIRROR", "WARMBOOT_TEST_CRASH_AGENT"
	if dir := os.Getenv(dirVar); dir != "" {
		_, err := Build(t.Context(), Config{Dir: dir, Suite: "trixie", Mirror: os.Getenv(mirrorVar), GuestBinary: os.Getenv(agentVar), Log: slog.New(slog.DiscardHandler)})
		t.Fatalf("the build ended before it was killed: %v", err)
	}
	needMmdebstrap(t)
	cfg := config(t)
	asked, hungUp := make(chan struct{}, 100), make(chan struct{}, 100)
	mirror := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
		hungUp <- struct{}{}
	}))
	defer mirror.Close()
	cfg.Mirror = mirror.URL + "/debian"
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestACrashedBuildIsSweptUp$")
	child.Env = append(os.Environ(), dirVar+"="+cfg.Dir, mirrorVar+"="+cfg.Mirror, agentVar+"="+cfg.GuestBinary)
	var said bytes.Buffer
	child.Stdout, child.Stderr = &said, &said
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan error, 1)
	go func() { gone <- child.Wait() }()
	select {
	case <-asked:
	case err := <-gone:
		t.Fatalf("the build ended before it was killed: %v\n%s", err, said.Bytes())
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-gone; err == nil {
		t.Fatal("the killed build succeeded")
	}
	<-hungUp // mmdebstrap and its helpers die with the build
	if got := left(t, cfg); len(got) != 1 {
		t.Errorf("a killed build left %v; this test wants a draft to be swept up", got)
	}
	base := withBase(t, cfg)
	if _, err := Build(t.Context(), cfg); err != nil {
		t.Error(err)
	}
	for _, name := range left(t, cfg) {
		if err := os.RemoveAll(filepath.Join(cfg.Dir, name)); err != nil || strings.HasPrefix(name, draftPrefix) {
			t.Errorf("%s is still there beside %s (%v)", name, base, err)
		}
	}
	nothingOf(t, cfg)
}

func TestAMirrorWithoutPackagesIsUnavailable(t *testing.T) {
	t.Parallel()
	needMmdebstrap(t)
	cfg := config(t)
	mirror := httptest.NewServer(http.NotFoundHandler())
	defer mirror.Close()
	cfg.Mirror = mirror.URL + "/debian"
	_, err := Build(t.Context(), cfg)
	if warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "mirror") {
		t.Errorf("got %v; want Unavailable, and what the mirror did", err)
	}
	nothingOf(t, cfg)
}
