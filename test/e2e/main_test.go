// Package e2e uses warmboot as its users do: real microVMs under QEMU, a real Docker in each, images pulled from a real registry,
// failures that really happen. `make e2e` runs it; without WARMBOOT_E2E=1 it says that it did not run.
package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/image"
	"warmboot/internal/localregistry"
)

// What all tests share: built once, never changed.
var (
	repo       string // the checkout
	runtimeImg warmboot.Image
	imageDir   string
	open       *localregistry.Registry // asks for no login
	locked     *localregistry.Registry // asks for user "tester", password "secret"
)

func TestMain(m *testing.M) {
	if os.Getenv("WARMBOOT_E2E") != "1" {
		fmt.Println("SKIPPED: the end-to-end suite boots real microVMs; it needs root, QEMU and some minutes: run `make e2e`")
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, fmt.Errorf("the suite must run as root: it gives every VMM a user of its own")
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return 1, err
	}
	repo = string(out[:len(out)-1])
	if err := prepareImage(context.Background()); err != nil {
		return 1, err
	}
	if open, err = localregistry.Serve(context.Background(), localregistry.Config{}); err != nil {
		return 1, err
	}
	defer open.Close()
	if locked, err = localregistry.Serve(context.Background(), localregistry.Config{Username: "tester", Password: "secret"}); err != nil {
		return 1, err
	}
	defer locked.Close()
	return m.Run(), nil
}

// prepareImage builds the runtime image, or takes the one that an earlier run left in the cache. The cache must be where the VMMs'
// users can reach it, which a checkout in somebody's home is not.
func prepareImage(ctx context.Context) error {
	cache := os.Getenv("WARMBOOT_E2E_CACHE")
	if cache == "" {
		cache = "/var/tmp/warmboot-e2e-cache"
	}
	imageDir = filepath.Join(cache, "images")
	start, last := time.Now(), ""
	built, err := image.Build(ctx, image.Config{
		Dir: imageDir, Suite: "trixie", GuestBinary: filepath.Join(repo, "bin", "warmboot-guest"),
		Log: slog.New(slog.DiscardHandler),
		Progress: func(p image.Progress) {
			if p.Step != last {
				last = p.Step
				fmt.Printf("image build %5.1fs: %s\n", time.Since(start).Seconds(), p.Step)
			}
		},
	})
	if err != nil {
		return err
	}
	fmt.Printf("runtime image: %d MiB, cached: %v, %.1fs\n", built.Image.SizeBytes>>20, built.Cached, time.Since(start).Seconds())
	runtimeImg = built.Image
	return nil
}
