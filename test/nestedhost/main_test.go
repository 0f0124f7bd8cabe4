package nestedhost_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"warmboot/test/nestedhost"
)

// nestedVar enables the tests: they boot whole machines, under emulation.
const nestedVar = "WARMBOOT_TEST_NESTED"

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// boot starts a machine for a test, at whose end nothing of it may be left.
func boot(t *testing.T, with ...func(*nestedhost.Config)) *nestedhost.Machine {
	t.Helper()
	if os.Getenv(nestedVar) != "1" {
		t.Skipf("SKIPPED: boots a whole machine under QEMU, whose root disk is made first (needs root, mmdebstrap, a Debian mirror, 3 GB of disk); set %s=1", nestedVar)
	}
	begin := time.Now()
	step := ""
	image, err := nestedhost.Build(t.Context(), nestedhost.BuildConfig{Progress: func(s, _ string) {
		if s != step {
			step = s
			t.Logf("image, %.1fs: %s", time.Since(begin).Seconds(), s)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("image after %.1fs, cached: %v", time.Since(begin).Seconds(), image.Cached)
	begin = time.Now()
	cfg := nestedhost.Config{Image: image}
	for _, f := range with {
		f(&cfg)
	}
	m, err := nestedhost.Boot(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("booted after %.1fs", time.Since(begin).Seconds())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", m.Console())
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		left(t)
	})
	return m
}

// left fails the test if anything of a machine of this process is there.
func left(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		stat, err := os.ReadFile(f)
		if err != nil || !strings.Contains(string(stat), "(qemu-system-x86") {
			continue
		}
		text, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "cmdline"))
		_, name, _ := strings.Cut(string(text), "\x00nestedhost-")
		name, _, _ = strings.Cut(name, "\x00")
		if name != "" && strings.Fields(string(stat[strings.LastIndex(string(stat), ")"):]))[2] == pid() {
			t.Errorf("QEMU %s is left", name)
		}
	}
}

func pid() string { link, _ := os.Readlink("/proc/self"); return link }

// must runs a command that has to succeed.
func must(t *testing.T, m *nestedhost.Machine, argv ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// sh is must for a line of shell.
func sh(t *testing.T, m *nestedhost.Machine, line string) string {
	t.Helper()
	return must(t, m, "sh", "-ec", line)
}

func within(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}
