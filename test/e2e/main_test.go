package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"warmboot"
	"warmboot/internal/image"
	"warmboot/internal/localregistry"
)

// lockedPassword is no word that could stand in a database for another reason.
const lockedPassword = "pa55-0f-tester"

// binVar names the environment variable with the directory of warmboot's programs, for where there is no checkout.
const binVar = "WARMBOOT_TEST_BIN"

// What all tests share: built once, never changed.
var (
	repo       string // the checkout; empty if binVar is set
	bin        string // the directory of warmboot's programs
	runtimeImg warmboot.Image
	imageDir   string
	open       *localregistry.Registry // asks for no login
	locked     *localregistry.Registry // asks for user "tester" and lockedPassword
)

func TestMain(m *testing.M) {
	if os.Getenv("WARMBOOT_E2E") != "1" {
		fmt.Println("SKIPPED: the end-to-end suite boots real microVMs; it needs root, QEMU and some minutes: run `make vm`")
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
	if os.Getenv(ownNetworkVar) != "" {
		if err := prepareNetwork(); err != nil {
			return 1, err
		}
	}
	if bin = os.Getenv(binVar); bin == "" {
		out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
		if err != nil {
			return 1, err
		}
		repo = string(out[:len(out)-1])
		bin = filepath.Join(repo, "bin")
	}
	if err := underWhat(); err != nil {
		return 1, err
	}
	if err := inspectImage(context.Background()); err != nil {
		return 1, err
	}
	if open, err = localregistry.Serve(context.Background(), localregistry.Config{}); err != nil {
		return 1, err
	}
	defer open.Close()
	if locked, err = localregistry.Serve(context.Background(), localregistry.Config{Username: "tester", Password: lockedPassword}); err != nil {
		return 1, err
	}
	defer locked.Close()
	return m.Run(), nil
}

// inspectImage takes the runtime image that `make vm` has built.
func inspectImage(ctx context.Context) (err error) {
	imageDir = os.Getenv("WARMBOOT_TEST_IMAGE")
	runtimeImg, err = image.Inspect(ctx, warmboot.Image{
		KernelPath: filepath.Join(imageDir, "vmlinux"), InitrdPath: filepath.Join(imageDir, "initrd.img"), RootfsPath: filepath.Join(imageDir, "rootfs.ext4"),
	}, []string{imageDir})
	if err != nil {
		return fmt.Errorf("WARMBOOT_TEST_IMAGE must be the directory of a runtime image: %w", err)
	}
	return nil
}
