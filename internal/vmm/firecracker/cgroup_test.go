package firecracker

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
	"warmboot/internal/vmm/vmmtest"
)

// limitCPU limits a machine, and sees that its group says so.
func limitCPU(t *testing.T, m vmm.Machine, cpus float64, want string) {
	t.Helper()
	if err := m.(vmm.CPULimiter).LimitCPU(cpus); err != nil {
		t.Errorf("%g CPUs: %v", cpus, err)
	}
	hasCPU(t, m.Handle().ID, want)
}

// hasCPU sees what a machine's group lets it use.
func hasCPU(t *testing.T, id, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(groupOf(t, id), "cpu.max"))
	if strings.TrimSpace(string(got)) != want {
		t.Errorf("cpu.max is %q, want %q (%v)", got, want, err)
	}
}

// cpuStat is one of the numbers that the kernel keeps of what a machine uses.
func cpuStat(t *testing.T, id, name string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(groupOf(t, id), "cpu.stat"))
	must(t, err)
	for line := range strings.Lines(string(text)) {
		var n int
		if k, _ := fmt.Sscanf(line, name+" %d", &n); k == 1 {
			return n
		}
	}
	t.Fatalf("there is no %s in %s", name, text)
	return 0
}

// A machine that runs can be held to a part of its CPUs. That lasts when another process takes charge of it, and nothing gives it more than it has.
func TestJailCPULimit(t *testing.T) {
	t.Parallel()
	needRoot(t)
	if !limitable() {
		t.Skip("SKIPPED: needs cgroup v2 with the controllers cpu, memory and pids")
	}
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.VCPUs = 2 })
	if err != nil {
		t.Fatal(err)
	}
	id := m.Handle().ID
	limitCPU(t, m, 0.35, "35000 100000")
	again, err := newDriver(r.Config).Recover(t.Context(), m.Handle())
	if err != nil {
		t.Fatal(err)
	}
	hasCPU(t, id, "35000 100000")
	limitCPU(t, again, 1.5, "150000 100000")
	limitCPU(t, again, 7, "200000 100000")
	limitCPU(t, again, 0.001, "1000 100000")
	wantError(t, again.(vmm.CPULimiter).LimitCPU(0), warmboot.Invalid, "cannot run on 0 CPUs")
	hasCPU(t, id, "1000 100000")

	// The kernel holds them to it: whoever would use a whole one is made to wait.
	limitCPU(t, m, 0.05, "5000 100000")
	group, err := os.Open(groupOf(t, id))
	must(t, err)
	defer group.Close()
	limited, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	busy := exec.CommandContext(limited, "sh", "-c", "while :; do :; done")
	busy.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	before := cpuStat(t, id, "nr_throttled")
	must(t, busy.Start())
	for cpuStat(t, id, "nr_throttled") < before+3 && limited.Err() == nil {
		time.Sleep(10 * time.Millisecond)
	}
	if limited.Err() != nil {
		t.Error("it was never made to wait")
	}
	cancel()
	_ = busy.Wait()
	mustAsk(t, m, "ping", "pong")

	clone := r.mustRestore(t)
	hasCPU(t, clone.Handle().ID, "100000 100000") // whatever others have
	limitCPU(t, clone, 0.6, "60000 100000")
	hasCPU(t, id, "5000 100000")
}

// A limit that cannot be set is not claimed, unless none were asked for. A machine without a jail has none.
func TestJailCPULimitFails(t *testing.T) {
	t.Parallel()
	r := jailedRig(t, standin.Profile{Version: "1.15.1"})
	m := r.mustRestore(t)
	d := newDriver(r.Config)
	d.jail.cgroups.name = testCgroup() + "-none"
	d.jail.unlimited = false
	lost, err := d.Recover(t.Context(), m.Handle())
	if err != nil {
		t.Fatal(err)
	}
	err = lost.(vmm.CPULimiter).LimitCPU(0.5)
	wantError(t, err, warmboot.Internal, "could not be held to 0.5 CPUs")
	t.Log(err)
	d.jail.unlimited = true
	if err := lost.(vmm.CPULimiter).LimitCPU(0.5); err != nil {
		t.Errorf("without limits: %v", err)
	}
	d.jail.unlimited = false
	lost.(*machine).kept.Jailed = false
	if err := lost.(vmm.CPULimiter).LimitCPU(0.5); err != nil {
		t.Errorf("without a jail: %v", err)
	}
}

// A guest that would use all of its CPUs gets what it is limited to, and answers.
func TestRealCPULimit(t *testing.T) {
	if len(realBinaries()) == 0 {
		t.Skipf("SKIPPED: this test runs machines in real Firecrackers; set %s to their paths, divided by colons, and %s to a runtime image", firecrackerVar, vmmtest.ImageVar)
	}
	kernel := vmmtest.Kernel(t)
	config := safestConfig(t)
	if config.Unjailed || config.Unlimited {
		t.Skip("SKIPPED: needs cgroup v2 with the controllers cpu, memory and pids, and a Firecracker that can be jailed")
	}
	dir := shared(t)
	initrd := vmmtest.Initrd(t, dir, vmmtest.Modules(t, dir)...)
	config.ProbeKernel, config.StateDir = kernel, t.TempDir()
	r := &rig{Driver: newDriver(config), dir: dir, spec: machineSpec(t, dir)}
	r.spec.Kernel, r.spec.Initrd, r.spec.KernelArgs, r.spec.MemoryMiB = kernel, initrd, strings.Fields(os.Getenv(kernelArgsVar)), 128
	m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.VCPUs = 2 })
	if err != nil {
		t.Fatal(err)
	}
	conn, err := m.DialGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(5 * time.Minute))
	answers := bufio.NewScanner(conn)
	tell := func(command, want string) {
		t.Helper()
		fmt.Fprintln(conn, command)
		if !answers.Scan() || answers.Text() != want {
			t.Fatalf("%s: the guest answers %q, %v", command, answers.Text(), answers.Err())
		}
	}
	tell("ping", "pong")
	id := m.Handle().ID
	limitCPU(t, m, 0.2, "20000 100000")
	begin, before := time.Now(), cpuStat(t, id, "usage_usec")
	for time.Since(begin) < 3*time.Second {
		tell("fill 8 7", "ok")
	}
	took, used := time.Since(begin), time.Duration(cpuStat(t, id, "usage_usec")-before)*time.Microsecond
	t.Logf("it has used %v of %v, and was made to wait %d times", used, took, cpuStat(t, id, "nr_throttled"))
	if most := took/5 + took/20 + 100*time.Millisecond; used > most { // a period's end is not met to the microsecond
		t.Errorf("it has used %v of %v", used, took)
	}
	if cpuStat(t, id, "nr_throttled") == 0 {
		t.Error("it was never made to wait")
	}
}
