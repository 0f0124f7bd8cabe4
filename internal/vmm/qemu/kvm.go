package qemu

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/probe"
	"warmboot/internal/vmm/process"
)

// How long a kernel may be silent while KVM is tried, and how long it may take altogether. It takes about a second where KVM works;
// on a busy host, or in a machine that is itself virtual, it is slow, but goes on.
const (
	kvmSilence = 10 * time.Second
	kvmLimit   = 30 * time.Second
)

// kvmVerbosity makes the kernel print a line now and then. Every character costs several exits to QEMU, so it is not told to print
// everything.
const kvmVerbosity = "loglevel=6" // up to KERN_NOTICE

// tryKVM boots a kernel under KVM, which is the only proof: there are hosts where the device opens, a machine is
// created, and the first real kernel brings it down. It returns why KVM cannot be used, or "", and whether that is certain.
func (d *Driver) tryKVM(ctx context.Context, caps vmm.Capabilities) (why string, certain bool) {
	f, err := os.OpenFile(process.KVMDevice, os.O_RDWR, 0)
	if err != nil {
		return fmt.Sprintf("KVM cannot be used: %v", err), true
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && os.Geteuid() == 0 {
		if group, err := process.KVMGroup(); err == nil && group == nil && info.Mode().Perm()&0o006 != 0o006 {
			return fmt.Sprintf("KVM cannot be used: only root may open %s, and VMMs do not run as root; give it to a group: `chgrp kvm %[1]s && chmod 660 %[1]s`", process.KVMDevice), true
		}
	}
	kernel := d.ProbeKernel
	if kernel == "" {
		if kernel = probe.NewestKernel(); kernel == "" {
			return "KVM was not tried: there is no kernel in /boot to try it with", false
		}
	}
	if err := d.bootUnderKVM(ctx, caps, kernel); err != nil {
		return fmt.Sprintf("KVM does not work: %v", err), warmboot.CodeOf(err) == warmboot.Incompatible
	}
	return "", true
}

// bootUnderKVM boots a kernel. Only a machine that ran it and ended by itself is an Incompatible error. The others say what may be another next time: the
// host had too little time, memory or disk.
func (d *Driver) bootUnderKVM(ctx context.Context, caps vmm.Capabilities, kernel string) error {
	const op = "boot a kernel"
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
		ID: "kvm-probe", Dir: dir, VCPUs: 1, MemoryMiB: 256, Kernel: filepath.Join(dir, "kernel"), KernelArgs: []string{kvmVerbosity},
		Network: vmm.Network{Subnet: netip.MustParsePrefix("100.64.0.0/24")}, Owner: probe.Nobody,
	}
	// A copy, because a distribution's kernel may be readable by root alone.
	if err := probe.CopyFile(spec.Kernel, kernel); err != nil {
		return err
	}
	m, err := d.launch(ctx, op, caps, spec, false, func(context.Context, *qmp) error { return nil })
	if err != nil {
		return err
	}
	undo.Push("start machine", func() error { return m.Stop(context.WithoutCancel(ctx), 0) })
	ctx, cancel := context.WithTimeout(ctx, kvmLimit)
	defer cancel()
	silence := time.NewTimer(kvmSilence)
	defer silence.Stop()
	for {
		text, more := m.console.Watch()
		if probe.Booted.MatchString(text) {
			return nil
		}
		select {
		case <-more:
			silence.Reset(kvmSilence)
			continue
		case <-m.Done():
			// The last lines may have come together with the end.
			if probe.Booted.MatchString(m.console.String()) {
				return nil
			}
			code := warmboot.Incompatible
			if process.Killed(m.process.State()) {
				code = warmboot.Unavailable
			}
			return warmboot.Errorf(code, op, "QEMU ended before the kernel was up: %s", process.Lines(m.said.String(), 2))
		case <-silence.C:
		case <-ctx.Done():
		}
		said := process.Lines(m.said.String(), 1)
		if said == "" {
			said = fmt.Sprintf("the kernel's last words: %.200q", process.Lines(text, 1))
		}
		return warmboot.Errorf(warmboot.Timeout, op, "a stock kernel was silent for %v, or not up after %v; %s", kvmSilence, kvmLimit, said)
	}
}
