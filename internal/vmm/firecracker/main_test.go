package firecracker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"warmboot/internal/vmm/firecracker/standin"
)

// keptDir is for what all tests share. Everyone may pass through and read.
var keptDir = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fctests-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	return dir, err
})

// program is the stand-in as a jail can hold it.
var program = sync.OnceValues(func() (string, error) {
	dir, err := keptDir()
	if err != nil {
		return "", err
	}
	return standin.Build(dir)
})

// TestMain fails if a test leaves a goroutine. The test binary is also the stand-in.
func TestMain(m *testing.M) {
	standin.Run()
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if dir, err := keptDir(); err == nil {
			os.RemoveAll(dir)
		}
		if root, err := hierarchy(); err == nil && root != "" && os.Getenv(cgroupVar) == "" {
			if err := os.Remove(filepath.Join(root, testCgroup())); err != nil && !errors.Is(err, os.ErrNotExist) {
				fmt.Fprintln(os.Stderr, "a cgroup is left:", err)
				code = 1
			}
		}
		os.Exit(code)
	}))
}
