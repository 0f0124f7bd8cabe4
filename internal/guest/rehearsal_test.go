package guest

import (
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"warmboot/internal/programtest"
)

// The program of the rehearsal's image is one, and ends well. That Docker takes the image is for tests with a Docker.
func TestTheRehearsalsProgramRuns(t *testing.T) {
	t.Parallel()
	if runtime.GOARCH != "amd64" {
		t.Skipf("SKIPPED: runs a program for x86-64, as runtime images are; this is %s", runtime.GOARCH)
	}
	program, err := exitProgram()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), programName)
	if err := programtest.Write(path, program); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v, it says %q", err, out)
	}
}
