package probe

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/vmm"
)

func TestAnswersAreKeptUntilSomethingChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	binary, file := filepath.Join(dir, "vmm"), filepath.Join(dir, "state", "answer.json")
	if err := os.WriteFile(binary, []byte("binary"), 0o755); err != nil {
		t.Fatal(err)
	}
	stamp := func(more ...any) string {
		t.Helper()
		s, err := Stamp("probe", binary, more...)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	want := Answer{Stamp: stamp("a", 1), Found: vmm.Capabilities{Driver: "x", Version: "1"}, Why: "because"}
	if _, ok := Recall(file, want.Stamp); ok {
		t.Error("there is an answer before one was kept")
	}
	Keep(t.Context(), slog.New(slog.DiscardHandler), file, want)
	if got, ok := Recall(file, stamp("a", 1)); !ok || got != want {
		t.Errorf("recalled %+v, %v", got, ok)
	}
	if _, ok := Recall(file, stamp("a", 2)); ok {
		t.Error("the answer is to something else")
	}
	// Another of the same size and age, in the same place. (The kernel's clock for files ticks every few milliseconds.)
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Second); stamp("a", 1) == want.Stamp && time.Now().Before(deadline); {
		if err := errors.Join(os.WriteFile(binary, []byte("BINARY"), 0o755), os.Chtimes(binary, info.ModTime(), info.ModTime())); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := Recall(file, stamp("a", 1)); ok {
		t.Error("the answer is about another binary")
	}
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := Recall(file, want.Stamp); ok {
		t.Error("a damaged answer was recalled")
	}
	if _, err := Stamp("probe", filepath.Join(dir, "no-such")); warmboot.CodeOf(err) != warmboot.NotFound {
		t.Errorf("a binary that is not there: %v", err)
	}
}

func TestHostFacts(t *testing.T) {
	t.Parallel()
	var caps vmm.Capabilities
	if err := SetKVM("probe", &caps); err != nil {
		t.Fatal(err)
	}
	if parts := strings.Split(caps.CPUModel, "/"); len(parts) != 4 || parts[0] == "" || parts[1] == "" {
		t.Errorf("the CPU is %q, want vendor/family/model/stepping", caps.CPUModel)
	}
	if caps.Accelerator != "kvm" || caps.KernelRelease == "" || strings.ContainsAny(caps.KernelRelease, " \n") {
		t.Errorf("found %+v", caps)
	}
}
