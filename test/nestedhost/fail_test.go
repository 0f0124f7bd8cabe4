package nestedhost_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warmboot"
	"warmboot/internal/image"
	"warmboot/test/nestedhost"
)

func TestABuildThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "images")
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := image.Ready(filepath.Dir(dir)); err != nil {
		t.Skip("SKIPPED: ", err)
	}
	_, err := nestedhost.Build(t.Context(), nestedhost.BuildConfig{Dir: dir, Mirror: "http://127.0.0.1:9/debian"})
	if warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("a mirror that is not there gives %s: %v", warmboot.CodeOf(err), err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 || files[0].Name() != ".lock" {
		t.Errorf("there is left %v, %v", files, err)
	}
}

func TestABootThatFailsLeavesNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	_, err := nestedhost.Boot(t.Context(), nestedhost.Config{Image: nestedhost.Image{Dir: "/no-such-image"}, Agent: os.Args[0], Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "/no-such-image") {
		t.Errorf("an image that is not there gives %v", err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 0 {
		t.Errorf("there is left %v, %v", files, err)
	}
}
