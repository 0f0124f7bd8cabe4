package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warmboot/internal/agent"
	"warmboot/internal/cli"
	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/standin"
)

// A server that runs Firecracker without its jailer says so where its operator looks.
func TestServeWarnsOfAMissingJail(t *testing.T) {
	dir := t.TempDir()
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, kerneltest.ELF(4096), 0o644); err != nil {
		t.Fatal(err)
	}
	program, err := standin.Build(dir)
	if err != nil {
		t.Fatal(err)
	}
	config := vmmConfig(cli.VMMOptions{Want: choice.Firecracker, Firecracker: standin.InstallJailed(t, standin.Profile{Version: "1.15.1"}, program), NoJailer: true})
	config.ProbeKernel = kernel
	chosen, err := choice.Make(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	var c agent.Config
	takeVMM(chosen, &c, slog.New(slog.NewTextHandler(&log, nil)))
	if said := log.String(); !strings.Contains(said, "level=WARN") || !strings.Contains(said, "FIRECRACKER RUNS WITHOUT ITS JAILER") || !strings.Contains(c.VMMWarning, "--unsafe-no-jailer") {
		t.Errorf("its log says %q, and its host %q", said, c.VMMWarning)
	}
}
