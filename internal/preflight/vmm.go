package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"warmboot/internal/hostnet"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/install"
	"warmboot/internal/vmm/probe"
	"warmboot/internal/vmm/process"
)

// installs is what brings Firecracker to a host.
const installs = "`warmboot doctor --fix` as root installs Firecracker " + install.Version

// What there is without KVM: microVMs that are slow, or, if QEMU is not there either, none.
const (
	slow = "microVMs run in software emulation (TCG): it works, but user code is slow"
	none = "without KVM only QEMU runs microVMs, and it does not work here"
)

// tried is what came of trying the VMMs. They are tried once, for all checks that ask.
type tried struct {
	choice.Survey
	kvm    kvmFacts
	cgroup Check
	held   held // zero if Firecracker works
}

// try lets every VMM boot a kernel, and decides as serve would.
func try(ctx context.Context, c Config) (tried, error) {
	survey, err := choice.Look(ctx, c.VMM)
	if err != nil {
		return tried{}, err
	}
	t := tried{Survey: survey}
	f, err := os.OpenFile(process.KVMDevice, os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
	}
	t.kvm.open, t.kvm.kernel = err, c.VMM.ProbeKernel
	if t.kvm.kernel == "" {
		t.kvm.kernel = probe.NewestKernel()
	}
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo") // a host without has no KVM either
	t.kvm.cpuinfo = string(cpuinfo)
	t.kvm.alone = survey.QEMUError != nil
	switch {
	case survey.FirecrackerError == nil:
		t.kvm.under = "Firecracker"
	case survey.QEMUError == nil && survey.QEMU.Accelerator == "kvm":
		t.kvm.under = "QEMU"
	case survey.QEMUError == nil:
		t.kvm.why = survey.QEMU.AcceleratorWhy
	case survey.Binary == "":
		t.kvm.why = noVMM
	case triedKVM(survey.FirecrackerError):
		t.kvm.why = choice.Plain(survey.FirecrackerError)
	default:
		t.kvm.why = notStarted
	}
	t.cgroup = checkCgroup(ctx, c)
	if why := cannotLimit(survey.FirecrackerError); why != "" && t.cgroup.Status == OK {
		t.cgroup = Check{cgroupName, Warn, why + "; " + unlimited, cgroupFix} // its driver has tried, which says more
	}
	if survey.FirecrackerError != nil {
		t.held = t.hold(ctx, c)
	}
	return t, nil
}

// triedKVM reports whether Firecracker has come as far as to try KVM. (Of its driver's errors only those that are about KVM begin with these words.)
func triedKVM(err error) bool {
	why := choice.Plain(err)
	return strings.HasPrefix(why, "Firecracker needs KVM") || strings.HasPrefix(why, "KVM was not tried")
}

// held is what keeps Firecracker from working here, whatever its binary is, and what to do about it. KVM is looked at by itself.
type held struct {
	why, fix string
	failed   bool // it is what Firecracker has failed for
}

func (t tried) hold(ctx context.Context, c Config) held {
	switch {
	case os.Geteuid() != 0 && t.Binary == "": // --fix would have to be run as root anyway
		return held{}
	case os.Geteuid() != 0 && !c.VMM.Unjailed:
		return held{"only root can jail machines", "run as root", true}
	case t.cgroup.Status != OK && !c.VMM.Unjailed:
		return held{cgroupName + ": " + t.cgroup.Detail, t.cgroup.Fix, cannotLimit(t.FirecrackerError) != ""}
	case c.VMM.TAPs == nil || !t.kvm.works() && !t.kvm.untried():
		return held{}
	}
	const needed = "it needs TAPs, and there can be none here: "
	err := c.VMM.TAPs(ctx)
	var o *hostnet.Obstacle
	switch {
	case err == nil:
		return held{}
	case errors.As(err, &o):
		return held{needed + found(o), o.Fix, false}
	case c.Network == string(hostnet.User):
		return held{needed + choice.Plain(err), "set MANAGER_NETWORK to auto or tap", false}
	}
	return held{needed + choice.Plain(err), "see network slots", false}
}

// Why nothing is known of KVM.
const (
	noVMM      = "KVM was not tried: there is no VMM to try it with"
	notStarted = "KVM was not tried: Firecracker cannot be started"
)

// kvmFacts is all that is known of KVM here.
type kvmFacts struct {
	open    error  // of the device
	cpuinfo string // the text of /proc/cpuinfo
	kernel  string // to try it with; "" if there is none
	under   string // the VMM that has booted a kernel; "" if none has
	why     string // none has
	alone   bool   // QEMU, which can do without it, does not work
}

// works reports whether KVM runs kernels.
func (k kvmFacts) works() bool { return k.under != "" }

// untried reports whether nobody knows.
func (k kvmFacts) untried() bool { return k.open == nil && (k.why == noVMM || k.why == notStarted) }

// kvm judges by whether a kernel was booted. That the device opens proves nothing.
func kvm(k kvmFacts) Check {
	const name = "KVM"
	warn := func(detail, fix string) Check {
		if k.alone {
			return Check{name, Warn, detail + "; " + none, fix}
		}
		return Check{name, Warn, detail + "; " + slow, fix}
	}
	switch {
	case k.works():
		return Check{name, OK, "a kernel boots under " + k.under + " with it", ""}
	case errors.Is(k.open, fs.ErrNotExist):
		return warn("there is no "+process.KVMDevice, "on bare metal: `modprobe kvm_intel` or `modprobe kvm_amd`, and switch virtualization on in the firmware; in a VM: switch nested virtualization on")
	case k.open != nil:
		return warn(fmt.Sprintf("%s cannot be opened (%v)", process.KVMDevice, k.open), "run as root, or `usermod -aG kvm $USER` and log in again")
	case strings.Contains(k.why, "chgrp"):
		why, _, _ := strings.Cut(k.why, "; give it to a group")
		return warn(why, fmt.Sprintf("`chgrp kvm %[1]s && chmod 660 %[1]s`; a udev rule keeps it so: KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"", process.KVMDevice))
	case k.why == noVMM:
		return warn(k.why, "apt-get install qemu-system-x86")
	case k.why == notStarted:
		return warn(k.why, "see Firecracker; or apt-get install qemu-system-x86")
	case k.kernel == "":
		return warn(k.why, "put a kernel into /boot, as with `apt-get install linux-image-amd64`; it is only tried with")
	case !hasVirtualization(k.cpuinfo):
		return warn(k.why, "the CPU has neither vmx nor svm, so a stock kernel hardly runs in it: run on bare metal, or in a VM with nested virtualization")
	}
	return warn(k.why, "`dmesg` may say more; if this machine is a VM itself, its host may not support what the kernel does")
}

// spared makes a check of what only QEMU needs less grave where microVMs do not run under it.
func (t tried) spared(c Check) Check {
	if c.Status == Fail && t.Choice != nil && t.Choice.Found.Driver != choice.QEMU {
		c.Status, c.Detail = Warn, c.Detail+"; microVMs run under Firecracker here"
	}
	return c
}

// firecracker judges what there is of it. named is what somebody has asked to use.
func (t tried) firecracker(named string) Check {
	const name = "Firecracker"
	instead := installs
	switch {
	case named != "":
		instead = "name another binary, or none (FIRECRACKER); then " + installs
	case newer(t.Firecracker):
		instead = "name another binary (FIRECRACKER), or remove this one; then " + installs
	}
	if newer(t.Firecracker) {
		instead = "if it does not work, " + instead
	}
	switch found := t.Firecracker; {
	case t.Binary == "" && !t.kvm.works():
		return Check{name, OK, "not there; it would need KVM", ""}
	case t.Binary == "" && t.held.why != "":
		return Check{name, Warn, "not there, and it could not be used: " + t.held.why, t.held.fix}
	case t.held.failed:
		return Check{name, Warn, t.Binary + ": " + t.held.why, t.held.fix}
	case t.held.why != "":
		return Check{name, Warn, t.Binary + ": " + choice.Plain(t.FirecrackerError) + "; besides: " + t.held.why, t.held.fix}
	case t.Binary == "":
		return Check{name, Warn, "not there; microVMs run under QEMU", installs + "; or name a binary with FIRECRACKER"}
	case t.FirecrackerError != nil:
		if !t.kvm.works() && triedKVM(t.FirecrackerError) {
			instead = "see KVM"
		}
		return Check{name, Warn, t.Binary + ": " + choice.Plain(t.FirecrackerError), instead}
	case found.Warning != "":
		return Check{name, Warn, fmt.Sprintf("v%s, snapshots of format %s, %s; %s", found.Version, found.SnapshotVersion, found.Binary, found.Warning), instead}
	default:
		return Check{name, OK, fmt.Sprintf("v%s, snapshots of format %s, %s", found.Version, found.SnapshotVersion, found.Binary), ""}
	}
}

// newer reports whether what is to be said against a release is only that its driver does not know it yet.
func newer(found vmm.Capabilities) bool { return strings.Contains(found.Warning, "is newer than") }

var jailerVersion = regexp.MustCompile(`(?m)^Jailer v(\S+)`)

// jailer looks for the jailer where the driver does.
func (t tried) jailer(ctx context.Context, c Config) Check {
	const name = "jailer"
	if c.VMM.Unjailed {
		return Check{name, Warn, choice.UnjailedWarning, "leave out --unsafe-no-jailer"}
	}
	if t.Binary == "" {
		return Check{name, OK, "comes with Firecracker", ""}
	}
	candidates := []string{c.VMM.Jailer}
	if c.VMM.Jailer == "" {
		candidates = []string{filepath.Join(filepath.Dir(t.Binary), "jailer"), "jailer"}
	}
	for _, candidate := range candidates {
		path, err := exec.LookPath(candidate)
		if err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		m := jailerVersion.FindSubmatch(out)
		if err != nil || m == nil {
			return Check{name, Warn, fmt.Sprintf("%s does not tell its version (%v, %.80q)", path, err, out), installs}
		}
		if v := string(m[1]); t.Firecracker.Version != "" && v != t.Firecracker.Version {
			return Check{name, Warn, fmt.Sprintf("%s is of v%s, and Firecracker is v%s", path, v, t.Firecracker.Version), "use both of one release; " + installs}
		}
		return Check{name, OK, fmt.Sprintf("v%s, %s", m[1], path), ""}
	}
	return Check{name, Warn, fmt.Sprintf("%s was not found, and without it Firecracker is not started", candidates[0]), "put it beside " + t.Binary + ", or name it with JAILER; it comes with each release. Or: " + installs}
}

// chosen says what serve would choose. What is wrong with it is said where it is looked at by itself.
func (t tried) chosen(want string) Check {
	const name = "microVMs run under"
	switch {
	case t.Error != nil && want == choice.Firecracker:
		return Check{name, Fail, choice.Plain(t.Error), "see Firecracker and network slots; or set MANAGER_VMM to auto: then it is QEMU until that works"}
	case t.Error != nil:
		return Check{name, Fail, choice.Plain(t.Error), "apt-get install qemu-system-x86"}
	}
	return Check{name, OK, t.Choice.Summary(), ""}
}
