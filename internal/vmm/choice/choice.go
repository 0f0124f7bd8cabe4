// Package choice decides which VMM the new microVMs of a host run under, and says why.
//
// Firecracker is taken where it works: its binary is there, KVM boots a kernel under it, and the host can give it TAPs, without which it
// has no network. Where its release is known to keep machines from working, QEMU is taken if it has KVM. Everywhere else it is QEMU. What the other one has started
// before is not lost: its driver recovers it.
package choice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker"
	"warmboot/internal/vmm/qemu"
)

// The VMMs that can be asked for.
const (
	Auto        = "auto" // Firecracker where it works, else QEMU
	Firecracker = "firecracker"
	QEMU        = "qemu"
)

// Known reports whether there is such a VMM.
func Known(vmm string) bool { return vmm == Auto || vmm == Firecracker || vmm == QEMU }

// Config says what is wanted, and what there is to choose from. Every field may be zero.
type Config struct {
	Want string // Auto
	// Firecracker is its binary, a path or a name in PATH. If it is empty, Places are looked through and then PATH.
	Firecracker string
	Places      []string // paths at which a binary may be
	Jailer      string   // its jailer: beside the binary, or else in PATH
	Unjailed    bool     // without its jailer; for development
	QEMU        string   // its binary: "qemu-system-x86_64", in PATH
	// TAPs is why this host can give microVMs no TAPs, nil if it can. It is asked once everything else speaks for Firecracker. Nil: it can.
	TAPs func(context.Context) error
	// StateDir is where drivers remember what they have found out; empty: nowhere.
	StateDir string
	// ProbeKernel is what KVM is tried with: the newest kernel in /boot.
	ProbeKernel string
	Log         *slog.Logger
}

// Choice is what was decided.
type Choice struct {
	Driver vmm.Driver // of new machines
	Other  vmm.Driver // may have started machines that still run; it need not work here
	Found  vmm.Capabilities
	// Why tells in one line why not a better one: Firecracker, or QEMU with KVM. Empty if there is none.
	Why string
	// Warning is what is wrong with the choice all the same; mostly empty.
	Warning string
}

// UnjailedWarning is said wherever a warning can be said.
const UnjailedWarning = "FIRECRACKER RUNS WITHOUT ITS JAILER (--unsafe-no-jailer): between a guest that breaks out of it and this machine there is only an unprivileged user; for development only"

// fix is what brings Firecracker to a host.
const fix = "`warmboot doctor --fix` installs it, or name its binary with --firecracker (FIRECRACKER)"

// Make decides. It takes seconds the first time on a host, because kernels are booted, and is remembered in StateDir. It is an error if
// nothing works, or if what was asked for does not.
func Make(ctx context.Context, c Config) (*Choice, error) {
	h, err := newCandidates(c)
	if err != nil {
		return nil, err
	}
	return h.choose(ctx)
}

// Survey is what there is to choose from, each VMM with what it can do or why it can do nothing.
type Survey struct {
	Binary           string // Firecracker's; "" if there is none
	Firecracker      vmm.Capabilities
	FirecrackerError error // nil: it works, but for TAPs
	QEMU             vmm.Capabilities
	QEMUError        error
	Choice           *Choice // nil with an error
	Error            error
}

// Look tries every VMM, and decides as Make does.
func Look(ctx context.Context, c Config) (Survey, error) {
	h, err := newCandidates(c)
	if err != nil {
		return Survey{}, err
	}
	s := Survey{Binary: h.binary}
	s.Firecracker, s.FirecrackerError = h.firecracker(ctx)
	s.QEMU, s.QEMUError = h.qemu(ctx)
	s.Choice, s.Error = h.choose(ctx)
	return s, nil
}

// candidates are what a choice is made from.
type candidates struct {
	Config
	binary      string // Firecracker's
	fc          *firecracker.Driver
	q           *qemu.Driver
	firecracker func(context.Context) (vmm.Capabilities, error)
	qemu        func(context.Context) (vmm.Capabilities, error)
}

func newCandidates(c Config) (*candidates, error) {
	if c.Want == "" {
		c.Want = Auto
	}
	if !Known(c.Want) {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "%q is no VMM; use %s, %s or %s", c.Want, Auto, Firecracker, QEMU)
	}
	h := &candidates{Config: c, binary: c.find()}
	h.fc = firecracker.New(firecracker.Config{
		Binary: h.binary, Jailer: c.Jailer, Unjailed: c.Unjailed, StateDir: c.StateDir, ProbeKernel: c.ProbeKernel, Log: c.Log,
	})
	h.q = qemu.New(qemu.Config{Binary: c.QEMU, StateDir: c.StateDir, ProbeKernel: c.ProbeKernel, Log: c.Log})
	h.firecracker = once(func(ctx context.Context) (vmm.Capabilities, error) {
		if h.binary == "" {
			return vmm.Capabilities{}, warmboot.Errorf(warmboot.Unavailable, "find Firecracker", "Firecracker is not there; %s", fix)
		}
		return h.fc.Probe(ctx)
	})
	h.qemu = once(h.q.Probe)
	return h, nil
}

// once asks once only, failures included: each may have taken half a minute.
func once(probe func(context.Context) (vmm.Capabilities, error)) func(context.Context) (vmm.Capabilities, error) {
	var asked bool
	var found vmm.Capabilities
	var err error
	return func(ctx context.Context) (vmm.Capabilities, error) {
		if !asked {
			found, err = probe(ctx)
			asked = true
		}
		return found, err
	}
}

const op = "choose VMM"

func (h *candidates) choose(ctx context.Context) (*Choice, error) {
	if h.Want == QEMU {
		found, err := h.qemu(ctx)
		if err != nil {
			return nil, err
		}
		return &Choice{Driver: h.q, Other: h.fc, Found: found, Why: join("the configuration asks for it", found.AcceleratorWhy), Warning: found.Warning}, nil
	}
	found, fcErr := h.firecracker(ctx)
	if fcErr == nil {
		fcErr = h.needTAPs(ctx)
	}
	if fcErr == nil && found.Flawed && h.Want == Auto {
		if q, err := h.qemu(ctx); err == nil && q.Accelerator == "kvm" {
			return &Choice{Driver: h.q, Other: h.fc, Found: q, Why: found.Warning, Warning: q.Warning}, nil
		}
	}
	if fcErr == nil {
		choice := &Choice{Driver: h.fc, Other: h.q, Found: found, Warning: found.Warning}
		if h.Unjailed {
			choice.Warning = join(UnjailedWarning, found.Warning)
		}
		return choice, nil
	}
	if ctx.Err() != nil {
		return nil, warmboot.Errorf(warmboot.CodeOf(ctx.Err()), op, "%w", ctx.Err())
	}
	if h.Want == Firecracker {
		return nil, fcErr
	}
	found, err := h.qemu(ctx)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.CodeOf(err), Op: op, Msg: "no VMM can be used: neither Firecracker (" + Plain(fcErr) + ") nor QEMU", Err: err}
	}
	choice := &Choice{Driver: h.q, Other: h.fc, Found: found, Warning: found.Warning}
	switch why := Plain(fcErr); {
	case h.binary == "" && found.Accelerator != "kvm": // to install it would be no help
		choice.Why = "Firecracker needs KVM, and " + found.AcceleratorWhy
	case strings.Contains(why, "KVM"):
		choice.Why = why
	default:
		choice.Why = join(why, found.AcceleratorWhy)
	}
	return choice, nil
}

// needTAPs is why this host cannot connect Firecracker's machines.
func (h *candidates) needTAPs(ctx context.Context) error {
	if h.TAPs == nil {
		return nil
	}
	err := h.TAPs(ctx)
	if err == nil {
		return nil
	}
	return warmboot.Errorf(warmboot.Unavailable, "try Firecracker", "Firecracker needs TAPs, and there can be none here: %s", Plain(err))
}

// find returns Firecracker's binary, "" if nobody has named one and none is there.
func (c Config) find() string {
	if c.Firecracker != "" {
		return c.Firecracker
	}
	for _, name := range append(slices.Clone(c.Places), "firecracker") {
		if path, err := exec.LookPath(name); err == nil && filepath.IsAbs(path) {
			return path
		}
	}
	return ""
}

// Plain is an error's text without what was being done.
func Plain(err error) string {
	var e *warmboot.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	inner := *e
	inner.Op = ""
	if inner.Msg == "" && e.Err != nil {
		return Plain(e.Err)
	}
	return inner.Error()
}

// join makes one line of those that are not empty.
func join(lines ...string) string {
	var kept []string
	for _, l := range lines {
		if l != "" {
			kept = append(kept, l)
		}
	}
	return strings.Join(kept, "; ")
}

// Summary is one line: which VMM, with what, and why no better one.
func (c *Choice) Summary() string {
	name := "QEMU " + c.Found.Version
	if c.Found.Driver == Firecracker {
		name = "Firecracker v" + c.Found.Version
	}
	with := "KVM"
	if c.Found.Accelerator != "kvm" {
		with = "software emulation (TCG)"
	}
	text := fmt.Sprintf("%s with %s", name, with)
	if c.Why != "" {
		text += ": " + c.Why
	}
	return text
}
