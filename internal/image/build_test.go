package image

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

// TestBuildsARuntimeImage installs real packages, twice: from nothing, and with the base in the cache.
func TestBuildsARuntimeImage(t *testing.T) {
	t.Parallel()
	if os.Getenv("WARMBOOT_TEST_BUILD_IMAGE") != "1" {
		t.Skip("SKIPPED: set WARMBOOT_TEST_BUILD_IMAGE=1 to build a real runtime image (needs a Debian mirror, mmdebstrap, 2 GB of disk, a minute)")
	}
	dir := os.Getenv("WARMBOOT_TEST_IMAGE_OUT")
	if dir == "" {
		dir = t.TempDir()
	}
	last := -1.0
	cfg := Config{
		Dir: dir, Suite: "trixie", GuestBinary: os.Getenv("WARMBOOT_TEST_GUEST"), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Progress: func(p Progress) {
			if p.Fraction < last || p.Fraction > 1 {
				t.Errorf("progress went from %.3f to %.3f", last, p.Fraction)
			}
			if p.Fraction > last+0.02 {
				t.Logf("%3.0f%% %s: %s", p.Fraction*100, p.Step, p.Detail)
			}
			last = p.Fraction
		},
	}
	if cfg.GuestBinary == "" {
		cfg.GuestBinary = staticProgram(t, 1)
	}
	built, err := Build(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", built)
	if built.Image.SizeBytes > 400<<20 {
		t.Errorf("the image has %d MiB, more than 400", built.Image.SizeBytes>>20)
	}
	checked, err := Inspect(t.Context(), built.Image, []string{dir})
	if err != nil {
		t.Fatal(err)
	}
	if checked.Digest != built.Image.Digest || checked.SizeBytes != built.Image.SizeBytes {
		t.Errorf("Inspect found %s, %d bytes; Build said %s, %d bytes", checked.Digest, checked.SizeBytes, built.Image.Digest, built.Image.SizeBytes)
	}
	last = -1
	again, err := Build(t.Context(), cfg)
	if err != nil || !again.Cached || again.Image.Digest != built.Image.Digest {
		t.Errorf("second build: %+v, %v; want the first one from the cache", again, err)
	}
	drafts, _ := filepath.Glob(filepath.Join(dir, ".draft-*"))
	if len(drafts) > 0 {
		t.Errorf("left behind: %v", drafts)
	}
}
