package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"warmboot/internal/programtest"
	"warmboot/internal/vmm/process"
	"warmboot/internal/vmm/vmmtest"
)

// A host that had too little memory when KVM was tried may have enough next time.
func TestAnUncertainTryOfKVMIsNotRemembered(t *testing.T) {
	kernel := vmmtest.Kernel(t)
	f, err := os.OpenFile(process.KVMDevice, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("SKIPPED: needs a KVM to try: %v", err)
	}
	f.Close()
	if group, err := process.KVMGroup(); err != nil || group == nil && os.Geteuid() == 0 {
		t.Skipf("SKIPPED: needs a KVM that a group may use, and %s is not such (%v); the nested host's is", process.KVMDevice, err)
	}
	dir := shared(t)
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Fatal(err)
	}
	short := filepath.Join(dir, "short")
	c := Config{Binary: filepath.Join(dir, "qemu"), StateDir: filepath.Join(dir, "vmm"), ProbeKernel: kernel}
	script := fmt.Sprintf("#!/bin/sh\n[ ! -e %s ] || [ \"$1\" = -version ] || ulimit -v 300000\nexec %s \"$@\"\n", short, qemu)
	if err := errors.Join(programtest.Write(c.Binary, []byte(script)), os.WriteFile(short, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	const want = "too little memory"
	for range 2 {
		caps, err := New(c).Probe(t.Context())
		if err != nil || caps.Accelerator != "tcg" || !strings.Contains(caps.AcceleratorWhy, want) {
			t.Fatalf("with too little memory: %+v, %v", caps, err)
		}
		if _, err := os.Stat(filepath.Join(c.StateDir, probeFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it was written down: %v", err)
		}
	}
	if err := os.Remove(short); err != nil {
		t.Fatal(err)
	}
	caps, err := New(c).Probe(t.Context())
	if err != nil || strings.Contains(caps.AcceleratorWhy, want) {
		t.Errorf("with enough: %+v, %v", caps, err)
	}
	t.Logf("with enough: %s %s", caps.Accelerator, caps.AcceleratorWhy)
	if _, err := os.Stat(filepath.Join(c.StateDir, probeFile)); caps.Accelerator == "kvm" && err != nil {
		t.Errorf("that KVM works was not written down: %v", err)
	}
}
