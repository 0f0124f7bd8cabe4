package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"warmboot"
	"warmboot/internal/vmm"
)

// probeFile in Config.StateDir holds an answer.
const probeFile = "qemu-probe.json"

// answer is what Probe found out, and what it depends on.
type answer struct {
	Stamp string           `json:"stamp"`
	Found vmm.Capabilities `json:"found"`
}

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
	if caps, ok := d.remembered(stamp); ok {
		d.found = &caps
		return caps, nil
	}
	caps, tried, err := d.probe(ctx, binary)
	if err != nil {
		return vmm.Capabilities{}, err
	}
	d.found = &caps
	if tried {
		d.keep(ctx, answer{stamp, caps})
	}
	return caps, nil
}

// stamp changes whenever what Probe found out may have.
func (d *Driver) stamp() (stamp, binary string, err error) {
	const op = "probe QEMU"
	if binary, err = exec.LookPath(d.Binary); err != nil {
		return "", "", warmboot.Errorf(warmboot.Unavailable, op, "%s was not found; install it with `apt-get install qemu-system-x86`", d.Binary)
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return "", "", warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", "", warmboot.Errorf(warmboot.Internal, op, "%w", err)
	}
	info, err := os.Stat(binary)
	if err != nil {
		return "", "", fileError(op, err)
	}
	device := "no KVM"
	if kvm, err := os.Stat(kvmDevice); err == nil {
		device = fmt.Sprint(kvm.Mode(), kvm.Sys().(*syscall.Stat_t).Gid)
	}
	return fmt.Sprintf("3 %s %s %d %d %d %q %s %s", strings.TrimSpace(string(boot)), binary, info.Sys().(*syscall.Stat_t).Ino,
		info.Size(), info.ModTime().UnixNano(), d.Accelerator, device, firmware()), binary, nil
}

func (d *Driver) remembered(stamp string) (vmm.Capabilities, bool) {
	if d.StateDir == "" {
		return vmm.Capabilities{}, false
	}
	var a answer
	text, err := os.ReadFile(filepath.Join(d.StateDir, probeFile))
	if err != nil || json.Unmarshal(text, &a) != nil || a.Stamp != stamp {
		return vmm.Capabilities{}, false
	}
	return a.Found, true
}

// keep remembers an answer. That it cannot costs time at the next start, and nothing else.
func (d *Driver) keep(ctx context.Context, a answer) {
	if d.StateDir == "" {
		return
	}
	text, err := json.MarshalIndent(a, "", "  ")
	path := filepath.Join(d.StateDir, probeFile)
	if err == nil {
		err = os.MkdirAll(d.StateDir, 0o700)
	}
	if err == nil {
		err = os.WriteFile(path+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		d.Log.WarnContext(ctx, "what was found out about QEMU could not be written down", "error", err)
	}
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
	digest, err := fileDigest(binary)
	if err != nil {
		return caps, false, fileError(op, err)
	}
	caps = vmm.Capabilities{
		Driver: driverName, Version: string(v[1]), Binary: binary, BinaryDigest: digest, SnapshotVersion: string(v[1]),
		MachineType: fmt.Sprintf("pc-q35-%s.%s%s", v[2], v[3], firmware()), Arch: "x86_64",
		WritableMemoryFile: !atLeast(string(v[1]), 8, 2), // see memory
	}
	setKVM := func() error {
		release, err := os.ReadFile("/proc/sys/kernel/osrelease")
		if err != nil {
			return warmboot.Errorf(warmboot.Internal, op, "%w", err)
		}
		caps.Accelerator, caps.KernelRelease = "kvm", strings.TrimSpace(string(release))
		if caps.CPUModel, err = hostCPU(); err != nil {
			return warmboot.Errorf(warmboot.Internal, op, "%w", err)
		}
		return nil
	}
	switch d.Accelerator {
	case "tcg":
		caps.AcceleratorWhy = "the configuration asks for emulation"
	case "kvm":
		return caps, true, setKVM()
	case "":
		if err := setKVM(); err != nil {
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

// hostCPU tells apart processors between which a snapshot must not be moved.
func hostCPU() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if strings.TrimSpace(line) == "" {
			break // the first processor's lines end here
		}
		if k, v, ok := strings.Cut(line, ":"); ok {
			fields[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return strings.Join([]string{fields["vendor_id"], fields["cpu family"], fields["model"], fields["stepping"]}, "/"), nil
}

func fileDigest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
