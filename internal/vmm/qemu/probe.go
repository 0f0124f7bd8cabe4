package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/probe"
)

// probeFile in Config.StateDir holds an answer.
const probeFile = "qemu-probe.json"

// versionLine is the first line of `qemu-system-x86_64 -version`.
var versionLine = regexp.MustCompile(`version ((\d+)\.(\d+)[0-9.]*)`)

// Probe finds out what QEMU can do here.
func (d *Driver) Probe(ctx context.Context) (vmm.Capabilities, error) {
	d.probing.Lock()
	defer d.probing.Unlock()
	if d.found != nil {
		return *d.found, nil
	}
	stamp, binary, err := d.stamp()
	if err != nil {
		return vmm.Capabilities{}, err
	}
	file := filepath.Join(d.StateDir, probeFile)
	if d.StateDir != "" {
		if a, ok := probe.Recall(file, stamp); ok {
			d.found = &a.Found
			return a.Found, nil
		}
	}
	caps, tried, err := d.probe(ctx, binary)
	if err != nil {
		return vmm.Capabilities{}, err
	}
	d.found = &caps
	if tried && d.StateDir != "" {
		probe.Keep(ctx, d.Log, file, probe.Answer{Stamp: stamp, Found: caps})
	}
	return caps, nil
}

// stamp changes whenever what Probe found out may have.
func (d *Driver) stamp() (stamp, binary string, err error) {
	const op = "probe QEMU"
	if binary, err = probe.Binary(op, d.Binary, "install it with `apt-get install qemu-system-x86`"); err != nil {
		return "", "", err
	}
	stamp, err = probe.Stamp(op, binary, "4", d.Accelerator, firmware())
	return stamp, binary, err
}

// probe finds out everything anew. tried is false when there was nothing to try KVM with, so that the answer may be
// another one next time.
func (d *Driver) probe(ctx context.Context, binary string) (caps vmm.Capabilities, tried bool, err error) {
	const op = "probe QEMU"
	out, err := exec.CommandContext(ctx, binary, "-version").Output()
	if err != nil {
		return caps, false, warmboot.Errorf(warmboot.Unavailable, op, "%s -version failed: %w", binary, err)
	}
	v := versionLine.FindSubmatch(out)
	if v == nil {
		return caps, false, warmboot.Errorf(warmboot.Unavailable, op, "%s does not say its version as QEMU does: %q", binary, out)
	}
	digest, err := probe.FileDigest(binary)
	if err != nil {
		return caps, false, vmm.FileError(op, err)
	}
	caps = vmm.Capabilities{
		Driver: driverName, Version: string(v[1]), Binary: binary, BinaryDigest: digest, SnapshotVersion: string(v[1]),
		MachineType: fmt.Sprintf("pc-q35-%s.%s%s", v[2], v[3], firmware()), Arch: "x86_64",
		WritableMemoryFile: !atLeast(string(v[1]), 8, 2), // see memory
	}
	switch d.Accelerator {
	case "tcg":
		caps.AcceleratorWhy = "the configuration asks for emulation"
	case "kvm":
		return caps, true, probe.SetKVM(op, &caps)
	case "":
		if err := probe.SetKVM(op, &caps); err != nil {
			return caps, false, err
		}
		if caps.AcceleratorWhy, tried = d.tryKVM(ctx, caps); caps.AcceleratorWhy == "" {
			return caps, true, nil
		}
		if ctx.Err() != nil {
			return caps, false, warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%w", ctx.Err())
		}
	default:
		return caps, false, warmboot.Errorf(warmboot.Invalid, op, "%q is not an accelerator; choose kvm or tcg", d.Accelerator)
	}
	caps.Accelerator, caps.CPUModel, caps.KernelRelease = "tcg", "max", ""
	return caps, tried || d.Accelerator == "tcg", nil
}

// firmware is what follows the machine type: which firmware there is decides what a machine looks like, so it belongs to
// what a snapshot must match. qboot does only what a Linux kernel needs, and saves a quarter of a second under TCG.
func firmware() string {
	for _, dir := range []string{"/usr/share/qemu", "/usr/local/share/qemu"} {
		if _, err := os.Stat(filepath.Join(dir, "qboot.rom")); err == nil {
			return "+qboot"
		}
	}
	return ""
}
