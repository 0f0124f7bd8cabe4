package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"

	"warmboot"
	"warmboot/internal/vmm/choice"
	"warmboot/internal/vmm/firecracker/install"
	"warmboot/internal/vmm/process"
)

// Fixed is what was done about something, or why nothing was.
type Fixed struct {
	Name   string
	Detail string
	Err    error // it could not be done
}

// Fix does what is safe to do without being asked about each: it loads the kernel's modules for TAPs and KVM, and installs Firecracker where that helps:
// KVM works, nobody has named a binary, the one that is there (if any) does not work or has a known fault, and nothing else keeps one from working.
// progress is told how a download goes on.
func Fix(ctx context.Context, c Config, progress func(step string, fraction float64)) []Fixed {
	c = c.withDefaults()
	var done []Fixed
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo") // a host without has no KVM
	for _, m := range []struct{ name, device, module string }{{"TAP devices", "/dev/net/tun", "tun"}, {"KVM", process.KVMDevice, kvmModule(string(cpuinfo))}} {
		if f, needed := loadModule(ctx, m.name, m.device, m.module); needed {
			done = append(done, f)
		}
	}
	tctx, cancel := context.WithTimeout(ctx, tryLimit)
	defer cancel()
	t, err := try(tctx, c)
	if err != nil {
		return append(done, Fixed{Name: "Firecracker", Err: err})
	}
	return append(done, t.install(ctx, c, progress))
}

// kvmModule is the processor's own module of KVM; "" if it has no virtualization.
func kvmModule(cpuinfo string) string {
	switch {
	case !hasVirtualization(cpuinfo):
		return ""
	case strings.Contains(cpuinfo, "svm"):
		return "kvm_amd"
	}
	return "kvm_intel"
}

// loadModule loads a kernel module whose device is missing. It is not needed where the device is there.
func loadModule(ctx context.Context, name, device, module string) (f Fixed, needed bool) {
	if _, err := os.Stat(device); !errors.Is(err, fs.ErrNotExist) || module == "" {
		return Fixed{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, checkLimit)
	defer cancel()
	f.Name = name
	modprobe, err := tool("modprobe")
	if err == nil {
		var out []byte
		if out, err = exec.CommandContext(ctx, modprobe, module).CombinedOutput(); err != nil {
			err = fmt.Errorf("modprobe %s: %w: %s", module, err, strings.TrimSpace(string(out)))
		}
	}
	if err == nil {
		if _, err = os.Stat(device); err != nil {
			err = fmt.Errorf("the module %s is loaded, and yet: %w", module, err)
		}
	}
	if err != nil {
		f.Err = &warmboot.Error{Code: warmboot.Unavailable, Op: "load kernel module", Err: err}
		return f, true
	}
	f.Detail = fmt.Sprintf("the kernel's module %s was loaded, and %s is there", module, device)
	return f, true
}

// install gets Firecracker if it would be of use.
func (t tried) install(ctx context.Context, c Config, progress func(step string, fraction float64)) Fixed {
	said := func(format string, args ...any) Fixed {
		return Fixed{Name: "Firecracker", Detail: fmt.Sprintf(format, args...)}
	}
	switch {
	case c.VMM.Firecracker != "" && t.FirecrackerError != nil:
		return said("%s is named (FIRECRACKER), so nothing is installed; but %s", c.VMM.Firecracker, choice.Plain(t.FirecrackerError))
	case c.VMM.Firecracker != "":
		return said("%s is named (FIRECRACKER), so nothing is installed; it is v%s", c.VMM.Firecracker, t.Firecracker.Version)
	case c.VMM.Want == choice.QEMU:
		return said("QEMU is asked for, so nothing is installed")
	case t.FirecrackerError == nil && t.Firecracker.Warning == "":
		return said("v%s is there already, and works: %s", t.Firecracker.Version, t.Firecracker.Binary)
	case t.FirecrackerError == nil && newer(t.Firecracker): // an older one would take its place, which nobody has asked for
		return said("v%s is there already, and works: %s; %s", t.Firecracker.Version, t.Firecracker.Binary, t.Firecracker.Warning)
	case t.held.why != "":
		return said("nothing is installed, as it could not be used: %s; %s", t.held.why, t.held.fix)
	case !t.kvm.works() && !t.kvm.untried():
		return said("nothing is installed: it needs KVM, and %s", t.kvm.reason())
	}
	c.Install.Progress = func(done, total int64) {
		fraction := -1.0
		if total > 0 {
			fraction = float64(done) / float64(total)
		}
		progress("Downloading Firecracker "+install.Version, fraction)
	}
	binary, already, err := install.Install(ctx, c.Install)
	switch {
	case err != nil:
		return Fixed{Name: "Firecracker", Err: err}
	case already && t.Binary == binary:
		return said("%s is installed already: %s; but %s", install.Version, binary, choice.Plain(t.FirecrackerError))
	case already:
		return said("%s is installed already: %s", install.Version, binary)
	}
	instead := ""
	if t.Binary != "" && t.Binary != binary {
		instead = ", instead of " + t.Binary
	}
	return said("%s was installed: %s; a server that runs takes it when it is started again%s", install.Version, binary, instead)
}

// reason is why KVM does not work.
func (k kvmFacts) reason() string {
	if k.open != nil {
		return k.open.Error()
	}
	return k.why
}
