package firecracker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync/atomic"
	"syscall"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/probe"
	"warmboot/internal/vmm/process"
)

// probeFile in Config.StateDir holds an answer.
const probeFile = "firecracker-probe.json"

// kvmLimit is how long a kernel may take to boot while KVM is tried. It takes a fraction of a second on real hardware, and seconds in
// a machine whose virtualization is itself emulated.
const kvmLimit = 30 * time.Second

// askLimit is how long the binary may take to say its version.
const askLimit = 10 * time.Second

var (
	versionLine  = regexp.MustCompile(`(?m)^Firecracker (v\S+)`)
	snapshotLine = regexp.MustCompile(`(?m)^v?(\d+\.\d+\.\d+)\s*$`)
)

// Probe finds out what Firecracker can do here. Without KVM it can do nothing, and Probe is an Unavailable error that says why.
func (d *Driver) Probe(ctx context.Context) (vmm.Capabilities, error) {
	f, err := d.probe(ctx)
	if err != nil {
		return vmm.Capabilities{}, err
	}
	return f.caps, nil
}

func (d *Driver) probe(ctx context.Context) (*found, error) {
	const op = "probe Firecracker"
	d.probing.Lock()
	defer d.probing.Unlock()
	if d.found != nil {
		return d.found, d.found.check(op)
	}
	binary, err := probe.Binary(op, d.Binary, "install it from https://github.com/firecracker-microvm/firecracker/releases")
	if err != nil {
		return nil, err
	}
	if !d.Unjailed {
		if err := d.jail.check(op, binary); err != nil {
			return nil, err
		}
	}
	now, err := identify(binary) // before it is asked: whatever is put in its place meanwhile is noticed
	if err != nil {
		return nil, vmm.FileError(op, err)
	}
	stamp, err := probe.Stamp(op, binary, "3", layout, d.Unjailed)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(d.StateDir, probeFile)
	a, known := probe.Answer{}, false
	if d.StateDir != "" {
		a, known = probe.Recall(file, stamp)
	}
	if !known {
		a = probe.Answer{Stamp: stamp}
		var certain bool
		if a.Found, a.Why, certain, err = d.ask(ctx, op, binary); err != nil {
			return nil, err
		}
		if certain && d.StateDir != "" {
			probe.Keep(ctx, d.Log, file, a)
		}
	}
	if a.Why != "" {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "%s", a.Why)
	}
	release, err := ParseRelease(a.Found.Version)
	if err != nil {
		return nil, err
	}
	d.found = &found{a.Found, release, now}
	return d.found, nil
}

// identity is another after every change of a file.
type identity struct {
	device, inode     uint64
	size              int64
	modified, changed syscall.Timespec
}

func identify(path string) (identity, error) {
	info, err := os.Stat(path)
	if err != nil {
		return identity{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return identity{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, nil
}

// check sees that the binary is still what was found. Whoever uses the driver judges snapshots by what Probe has told, so a binary that has come
// in its place is not started under its name.
func (f *found) check(op string) error {
	binary := f.caps.Binary
	now, err := identify(binary)
	if err != nil {
		return warmboot.Errorf(warmboot.Unavailable, op, "Firecracker is gone from where it was found: %w; put %s back, or restart warmboot, which looks for another", err, f.release)
	}
	if now == f.file {
		return nil
	}
	digest, err := probe.FileDigest(binary)
	if err != nil {
		return warmboot.Errorf(warmboot.Unavailable, op, "%w", err)
	}
	if digest != f.caps.BinaryDigest {
		return warmboot.Errorf(warmboot.Unavailable, op, "%s is not the Firecracker %s any more that was there when warmboot started; restart warmboot, which rebuilds its snapshots if it must, or put the old one back", binary, f.release)
	}
	f.file = now // it has been linked, or the same has been installed again
	return nil
}

// ask finds out everything anew. why, unless empty, is why Firecracker cannot be used; certain is false if that may be another next time.
func (d *Driver) ask(ctx context.Context, op, binary string) (caps vmm.Capabilities, why string, certain bool, err error) {
	version, err := askBinary(ctx, op, binary, "--version", versionLine)
	if err != nil {
		return caps, "", false, err
	}
	release, err := ParseRelease(version)
	if err != nil {
		return caps, "", false, err
	}
	warning, f := release.advice()
	if f == unusable {
		return caps, warning, true, nil
	}
	format, err := askBinary(ctx, op, binary, "--snapshot-version", snapshotLine)
	if err != nil {
		return caps, "", false, err
	}
	digest, err := probe.FileDigest(binary)
	if err != nil {
		return caps, "", false, vmm.FileError(op, err)
	}
	caps = vmm.Capabilities{
		Driver: driverName, Version: version[1:], Binary: binary, BinaryDigest: digest, SnapshotVersion: format,
		MachineType: fmt.Sprintf("mmio-%d", layout), Arch: "x86_64", Warning: warning, Flawed: f == flawed,
	}
	if err := probe.SetKVM(op, &caps); err != nil {
		return caps, "", false, err
	}
	if why, certain = d.tryKVM(ctx, caps, release); ctx.Err() != nil {
		return caps, "", false, warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%w", ctx.Err())
	}
	return caps, why, certain, nil
}

// askBinary runs the binary with one argument and picks what it says.
func askBinary(ctx context.Context, op, binary, argument string, line *regexp.Regexp) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, argument).Output()
	if ctx.Err() != nil {
		return "", warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%s %s has not answered: %w", binary, argument, ctx.Err())
	}
	if err != nil {
		return "", warmboot.Errorf(warmboot.Unavailable, op, "%s %s failed: %w", binary, argument, err)
	}
	m := line.FindSubmatch(out)
	if m == nil {
		return "", warmboot.Errorf(warmboot.Unavailable, op, "%s %s does not say what Firecracker says: %.200q", binary, argument, out)
	}
	return string(m[1]), nil
}

// tryKVM boots a kernel, which is the only proof: there are hosts where the device opens, a machine is created, and the first real
// kernel brings it down. It returns why KVM cannot be used, or "", and whether that is certain.
func (d *Driver) tryKVM(ctx context.Context, caps vmm.Capabilities, release Release) (why string, certain bool) {
	kernel := d.ProbeKernel
	if kernel == "" {
		if kernel = probe.NewestKernel(); kernel == "" {
			return "KVM was not tried: there is no kernel in /boot to try it with; install one, as with `apt-get install linux-image-amd64`", false
		}
	}
	if err := d.bootOnce(ctx, &found{caps: caps, release: release}, kernel); err != nil {
		return fmt.Sprintf("Firecracker needs KVM, and KVM does not work here: %v", err), warmboot.CodeOf(err) == warmboot.Incompatible
	}
	return "", true
}

// probes counts them: there may be several drivers.
var probes atomic.Int64

// bootOnce boots a kernel that finds no root file system. It is as quiet as others, because each character on the serial port costs an exit to
// Firecracker; the panic that it ends with is printed all the same. Only a machine that ran the kernel and ended by itself is an Incompatible error. The others
// say what may be another next time: the host had too little time, memory or disk.
func (d *Driver) bootOnce(ctx context.Context, f *found, kernel string) error {
	const op = "boot a kernel"
	ctx, cancel := context.WithTimeout(ctx, kvmLimit)
	defer cancel()
	var undo rollback.Stack
	defer undo.Unwind()
	dir, err := os.MkdirTemp("", "warmboot-kvm-")
	if err != nil {
		return err
	}
	undo.Push("make directory", func() error { return os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		return err
	}
	spec := vmm.Spec{
		ID: fmt.Sprintf("kvm-probe-%d-%d", os.Getpid(), probes.Add(1)), Dir: dir, VCPUs: 1, MemoryMiB: 256, Kernel: filepath.Join(dir, "kernel"), Owner: probe.Nobody,
	}
	packed, err := isPacked(kernel)
	if err == nil && packed {
		err = unpack(ctx, op, kernel, spec.Kernel)
	} else if err == nil {
		err = probe.CopyFile(spec.Kernel, kernel)
	}
	if err != nil {
		return err
	}
	m, err := d.create(ctx, op, f, spec)
	if err != nil {
		return err
	}
	undo.Push("start machine", func() error { return m.Stop(context.WithoutCancel(ctx), 0) })
	for {
		text, more := m.console.Watch()
		if probe.Booted.MatchString(text) {
			return nil
		}
		select {
		case <-more:
		case <-m.Done():
			m.drain()
			if probe.Booted.MatchString(m.console.String()) {
				return nil
			}
			code := warmboot.Incompatible
			if process.Killed(m.process.State()) {
				code = warmboot.Unavailable
			}
			return warmboot.Errorf(code, op, "Firecracker ended before the kernel was up: %s; %s", ending(m.process.State()), process.Lines(m.console.String()+"\n"+m.said.String(), 2))
		case <-ctx.Done():
			return warmboot.Errorf(warmboot.Timeout, op, "a stock kernel was not up after %v; its last words: %q", kvmLimit, process.Lines(text, 1))
		}
	}
}
