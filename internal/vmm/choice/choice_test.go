package choice

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warmboot"
	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/programtest"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
)

// host is a host with QEMU, but without a KVM that QEMU could use, and whatever Firecracker there is: one that boots kernels if works.
func host(t *testing.T, works bool, p standin.Profile) Config {
	t.Helper()
	dir := t.TempDir()
	// It says its version, and boots nothing.
	program(t, filepath.Join(dir, "qemu"), `[ "$1" = -version ] && echo "QEMU emulator version 7.2.22"`)
	kernel := filepath.Join(dir, "kernel")
	if err := os.WriteFile(kernel, kerneltest.ELF(4096), 0o644); err != nil {
		t.Fatal(err)
	}
	if !works {
		p.Faults.BootSays = "KVM: entry failed"
	}
	return Config{QEMU: filepath.Join(dir, "qemu"), Firecracker: standin.Install(t, p), Unjailed: true, ProbeKernel: kernel}
}

func program(t *testing.T, path, script string) {
	t.Helper()
	if err := programtest.Write(path, []byte("#!/bin/sh\n"+script+"\n")); err != nil {
		t.Fatal(err)
	}
}

func noTAPs(context.Context) error {
	return warmboot.Errorf(warmboot.Unavailable, "try network slots", "there are no TAP devices; `modprobe tun`")
}

func TestMake(t *testing.T) {
	t.Parallel()
	good := standin.Profile{Version: "1.15.1"}
	for name, c := range map[string]struct {
		profile         standin.Profile
		broken          bool
		set             func(*Config)
		driver, summary string
		why, warning    []string // what they must say
		code            warmboot.Code
	}{
		"everything works": {
			profile: good, driver: "firecracker", summary: "Firecracker v1.15.1 with KVM", warning: []string{"WITHOUT ITS JAILER", "--unsafe-no-jailer"},
		},
		"a release with a fault": {
			profile: standin.Profile{Version: "1.16.1"}, driver: "firecracker", warning: []string{"WITHOUT ITS JAILER", "Firecracker 1.16.1 does not reach the guest any more"},
		},
		"Firecracker is asked for": {profile: good, set: func(c *Config) { c.Want = Firecracker }, driver: "firecracker"},
		"QEMU is asked for": {
			profile: good, set: func(c *Config) { c.Want = QEMU }, driver: "qemu", summary: "QEMU 7.2.22 with software emulation (TCG): the configuration asks for it",
			why: []string{"the configuration asks for it", "KVM"},
		},
		"KVM does not work": {profile: good, broken: true, driver: "qemu", why: []string{"Firecracker needs KVM, and KVM does not work here", "KVM: entry failed"}},
		"KVM does not work, and Firecracker is asked for": {
			profile: good, broken: true, set: func(c *Config) { c.Want = Firecracker }, code: warmboot.Unavailable, why: []string{"KVM: entry failed"},
		},
		"an old release":     {profile: standin.Profile{Version: "1.4.0"}, driver: "qemu", why: []string{"Firecracker 1.4.0 is too old"}},
		"no TAPs":            {profile: good, set: func(c *Config) { c.TAPs = noTAPs }, driver: "qemu", why: []string{"Firecracker needs TAPs", "`modprobe tun`"}},
		"the binary is gone": {profile: good, set: func(c *Config) { c.Firecracker = "/no/such/firecracker" }, driver: "qemu", why: []string{"/no/such/firecracker was not found"}},
		"it is no Firecracker": {
			profile: good, set: func(c *Config) { c.Firecracker = "true" }, driver: "qemu", why: []string{"does not say what Firecracker says"},
		},
		"neither works": {
			profile: good, broken: true, set: func(c *Config) { c.QEMU = "/no/such/qemu" }, code: warmboot.Unavailable, why: []string{"KVM: entry failed", "apt-get install qemu-system-x86"},
		},
		"no jailer": {
			profile: good, set: func(c *Config) { c.Unjailed, c.Jailer = false, "/no/such/jailer" }, driver: "qemu", why: []string{"jailer"},
		},
		"a VMM that there is not": {profile: good, set: func(c *Config) { c.Want = "bochs" }, code: warmboot.Invalid, why: []string{"bochs"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := host(t, !c.broken, c.profile)
			if c.set != nil {
				c.set(&config)
			}
			got, err := Make(t.Context(), config)
			if c.code != "" {
				if warmboot.CodeOf(err) != c.code {
					t.Fatalf("the error is %v, want %s", err, c.code)
				}
				says(t, "the error", err.Error(), c.why)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got.Driver.Name() != c.driver || got.Found.Driver != c.driver || got.Other.Name() == c.driver {
				t.Errorf("%s is chosen, and %s the other one", got.Driver.Name(), got.Other.Name())
			}
			if c.summary != "" && !strings.HasPrefix(got.Summary(), c.summary) {
				t.Errorf("the summary is %q", got.Summary())
			}
			if c.driver == "firecracker" && got.Why != "" {
				t.Errorf("there is no better one, but it says %q", got.Why)
			}
			if c.driver == "qemu" && got.Warning != "" {
				t.Errorf("it warns: %s", got.Warning)
			}
			says(t, "why", got.Why, c.why)
			says(t, "the warning", got.Warning, c.warning)
		})
	}
}

// A release whose machines may not work is taken only where it is asked for, or where QEMU would have no KVM.
func TestAFlawedRelease(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		version, want, accelerator, driver string
	}{
		"QEMU has KVM":    {"1.7.0", Auto, "kvm", "qemu"},
		"and another":     {"1.16.0", Auto, "kvm", "qemu"},
		"it has none":     {"1.16.0", Auto, "tcg", "firecracker"},
		"it is asked for": {"1.16.0", Firecracker, "kvm", "firecracker"},
		"another one":     {"1.16.1", Auto, "kvm", "firecracker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config := host(t, true, standin.Profile{Version: c.version})
			config.Want = c.want
			h, err := newCandidates(config)
			if err != nil {
				t.Fatal(err)
			}
			h.qemu = func(context.Context) (vmm.Capabilities, error) {
				return vmm.Capabilities{Driver: QEMU, Version: "10.0.0", Accelerator: c.accelerator}, nil
			}
			got, err := h.choose(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if got.Found.Driver != c.driver || got.Driver.Name() != c.driver || got.Other.Name() == c.driver {
				t.Errorf("%s is chosen, and %s the other one", got.Driver.Name(), got.Other.Name())
			}
			tells := got.Warning
			if c.driver == QEMU {
				tells = got.Why
			}
			says(t, "the choice", tells, []string{"Firecracker " + c.version, "1.15.1"})
		})
	}
}

func says(t *testing.T, what, text string, want []string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s does not say %q: %q", what, w, text)
		}
	}
	if strings.Contains(text, "\n") {
		t.Errorf("%s is more than one line: %q", what, text)
	}
}

func TestMakeEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Make(ctx, host(t, true, standin.Profile{Version: "1.15.1"})); warmboot.CodeOf(err) != warmboot.Canceled {
		t.Errorf("the error is %v", err)
	}
}

// What was installed for warmboot comes before what happens to be in PATH, and what somebody names before both.
func TestWhichBinary(t *testing.T) {
	named, place, inPath := standin.Install(t, standin.Profile{Version: "1.14.4"}), standin.Install(t, standin.Profile{Version: "1.15.1"}), standin.Install(t, standin.Profile{Version: "1.17.0"})
	c := host(t, true, standin.Profile{})
	t.Setenv("PATH", filepath.Dir(inPath))
	for _, step := range []struct {
		named  string
		places []string
		want   string
	}{
		{named, []string{place}, "1.14.4"},
		{"", []string{"/no/such/place", place}, "1.15.1"},
		{"", []string{"/no/such/place"}, "1.17.0"},
		{"", nil, "1.17.0"},
	} {
		c.Firecracker, c.Places = step.named, step.places
		got, err := Make(t.Context(), c)
		if err != nil || got.Found.Version != step.want {
			t.Errorf("named %q, places %q: %+v, %v; want %s", step.named, step.places, got, err, step.want)
		}
	}
	t.Setenv("PATH", "/no/such/directory")
	got, err := Make(t.Context(), c)
	if err != nil || got.Driver.Name() != "qemu" || !strings.HasPrefix(got.Why, "Firecracker needs KVM, and ") {
		t.Errorf("without any: %+v, %v", got, err)
	}
	c.Want = Firecracker
	if _, err := Make(t.Context(), c); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "`warmboot doctor --fix` installs it") {
		t.Errorf("without any, and it is asked for: %v", err)
	}
}
