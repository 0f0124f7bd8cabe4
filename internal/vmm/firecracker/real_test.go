package firecracker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/kernel/kerneltest"
	"warmboot/internal/netns"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/probe"
	"warmboot/internal/vmm/vmmtest"
)

// rigOf is newRig with a real Firecracker. Its machine's kernel halts at once, so what is shown is the API, files and processes; it takes no KVM that
// works.
func rigOf(t testing.TB, config Config) *rig {
	t.Helper()
	config.Balloon = true
	d, binary := newDriver(config), config.Binary
	version, err := askBinary(t.Context(), "ask", binary, "--version", versionLine)
	if err != nil {
		t.Fatal(err)
	}
	format, err := askBinary(t.Context(), "ask", binary, "--snapshot-version", snapshotLine)
	if err != nil {
		t.Fatal(err)
	}
	release, err := ParseRelease(version)
	if err != nil {
		t.Fatal(err)
	}
	digest, err := probe.FileDigest(binary)
	if err != nil {
		t.Fatal(err)
	}
	d.found = foundAs(t, vmm.Capabilities{Driver: driverName, Version: release.String(), Binary: binary, BinaryDigest: digest, SnapshotVersion: format}, release)
	r := &rig{Driver: d, dir: shared(t)}
	r.spec = machineSpec(t, r.dir)
	if config.Unjailed {
		r.spec.Owner = vmm.Owner{} // who may always use KVM, if anybody may; in a jail everybody may
	}
	write(t, r.spec.RootDisk.Path, make([]byte, 1<<20))
	write(t, r.spec.DataDisk.Path, make([]byte, 1<<20))
	write(t, r.spec.Initrd, make([]byte, 4096))
	m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.MemoryFile = filepath.Join(r.dir, "memory") })
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // both are idempotent
		if err := errors.Join(m.Pause(t.Context()), m.Resume(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	_, err = m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: filepath.Join(r.dir, "state")})
	if warmboot.CodeOf(err) != warmboot.Conflict {
		t.Errorf("a running machine was frozen: %v", err)
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.snap, err = m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: filepath.Join(r.dir, "state")}); err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	return r
}

// realConfigs are the ways in which the real ones can be started here: each directly, and in its jail if it needs no libraries.
func realConfigs(t *testing.T) (all []Config) {
	t.Helper()
	for _, binary := range realBinaries() {
		all = append(all, Config{Binary: binary, Unjailed: true})
		jailed := Config{Binary: binary, Unlimited: !limitable()}
		if err := newDriver(jailed).jail.check("jail machines", binary); err != nil {
			t.Logf("SKIPPED: %s is not tried in a jail: %v", binary, err)
			continue
		}
		all = append(all, jailed)
	}
	return all
}

// safestConfig is the last of them.
func safestConfig(t *testing.T) Config {
	t.Helper()
	all := realConfigs(t)
	return all[len(all)-1]
}

func nameOf(c Config) string {
	if c.Unjailed {
		return c.Binary + "/direct"
	}
	return c.Binary + "/jailed"
}

// What the stand-in was written for: the driver's exchange with real releases.
func TestRealFirecracker(t *testing.T) {
	binaries := realBinaries()
	if len(binaries) == 0 {
		t.Skipf("SKIPPED: this test starts real Firecrackers; set %s to their paths, divided by colons", firecrackerVar)
	}
	for _, config := range realConfigs(t) {
		t.Run(nameOf(config), func(t *testing.T) {
			r := rigOf(t, config)
			t.Logf("Firecracker %s, snapshots of format %s", r.found.release, r.found.caps.SnapshotVersion)
			for range 3 {
				m := r.mustRestore(t)
				t.Log(m.Timings())
				if status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.Handle().PID)); !config.Unjailed && (err != nil || !strings.Contains(string(status), "Seccomp:\t2\n")) {
					t.Errorf("it has no seccomp filter, as the binary of a release has: %s, %v", status, err)
				}
				if err := errors.Join(m.Pause(t.Context()), m.Resume(t.Context())); err != nil {
					t.Error(err)
				}
				_, err := m.(vmm.MemoryReclaimer).Reclaim(t.Context(), 0) // its kernel has no driver for the balloon
				wantError(t, err, warmboot.Conflict, "no balloon")
				again, err := newDriver(config).Recover(t.Context(), m.Handle())
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(again.Pause(t.Context()), again.Stop(t.Context(), 0)); err != nil {
					t.Error(err)
				}
				<-m.Done()
			}
			state, err := os.ReadFile(r.snap.StateFile)
			if err != nil {
				t.Fatal(err)
			}
			flipped := append([]byte(nil), state...)
			flipped[len(flipped)/2] ^= 1
			for name, content := range map[string][]byte{
				"half": state[:len(state)/2], "empty": nil, "text": []byte(strings.Repeat("not a state", 100)), "flipped": flipped,
			} {
				_, err := r.restore(t, t.Context(), func(s *vmm.Snapshot, _ *vmm.RestoreOptions) {
					s.StateFile = filepath.Join(r.dir, name)
					write(t, s.StateFile, content)
				})
				t.Logf("%s: %v", name, err)
				wantError(t, err, warmboot.Corrupt, "rebuild")
			}
			_, err = r.restore(t, t.Context(), func(_ *vmm.Snapshot, o *vmm.RestoreOptions) { o.DataDisk = vmm.Disk{} })
			wantError(t, err, warmboot.Internal, "os error 2")
			_, err = r.restore(t, t.Context(), func(s *vmm.Snapshot, _ *vmm.RestoreOptions) {
				s.MemoryFile, s.MemoryMiB = filepath.Join(r.dir, "small"), 16
				write(t, s.MemoryFile, make([]byte, 16<<20))
			})
			wantError(t, err, warmboot.Corrupt, "rebuild")
			_, err = r.create(t, t.Context(), func(s *vmm.Spec) { write(t, s.Kernel, []byte("no kernel at all")) })
			wantError(t, err, warmboot.Internal, "refused PUT /actions")
			write(t, r.spec.Kernel, kerneltest.ELF(4096))
			_, err = r.create(t, t.Context(), func(s *vmm.Spec) { s.Network.TAP = "no-such-tap-here" })
			wantError(t, err, warmboot.Internal, "refused PUT /network-interfaces/eth0")
			t.Run("network", func(t *testing.T) { realNetwork(t, r) })
			t.Run("every call", func(t *testing.T) { everyCall(t, r) })
			t.Run("order", func(t *testing.T) { orderRules(t, r, r.found) })
		})
	}
}

// realNetwork gives machines a TAP in a namespace of its own, which belongs to nobody but their user.
func realNetwork(t *testing.T, r *rig) {
	needRoot(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := netns.In(ns, func() error { return netns.MakeTAP("tap0", r.spec.Owner.UID) }); err != nil {
		t.Fatal(err)
	}
	want, err := os.Readlink(netns.Path(ns))
	if err != nil {
		t.Fatal(err)
	}
	network := vmm.Network{TAP: "tap0", Namespace: netns.Path(ns), MAC: "02:11:22:33:44:55"}
	m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.Network = network })
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	snap, err := m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	clone, err := r.restore(t, t.Context(), func(s *vmm.Snapshot, o *vmm.RestoreOptions) { *s, o.Network = snap, network })
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", clone.Handle().PID)); got != want {
		t.Errorf("it is in %s, want %s (%v)", got, want, err)
	}
	// The TAP is the clone's now, and nobody else's.
	_, err = r.restore(t, t.Context(), func(s *vmm.Snapshot, o *vmm.RestoreOptions) { *s, o.Network = snap, network })
	wantError(t, err, warmboot.Conflict, "its TAP")
	_, err = r.create(t, t.Context(), func(s *vmm.Spec) { s.Network = network })
	wantError(t, err, warmboot.Conflict, "its TAP")
	if err := clone.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := r.restore(t, t.Context(), func(s *vmm.Snapshot, o *vmm.RestoreOptions) { *s, o.Network = snap, network }); err != nil {
		t.Errorf("a TAP that is free again: %v", err)
	}
}

// kernelArgsVar names the environment variable with arguments for the guests' kernel, as an emulated host may need.
const kernelArgsVar = "WARMBOOT_TEST_KERNEL_ARGS"

// The suite on real machines: with vmmtest.ImageVar set too, which takes a KVM that works.
func TestRealConformance(t *testing.T) {
	binaries := realBinaries()
	if len(binaries) == 0 {
		t.Skipf("SKIPPED: this test runs machines in real Firecrackers; set %s to their paths, divided by colons, and %s to a runtime image", firecrackerVar, vmmtest.ImageVar)
	}
	kernel := vmmtest.Kernel(t)
	dir := shared(t)
	initrd := vmmtest.Initrd(t, dir, vmmtest.Modules(t, dir)...)
	configs := realConfigs(t)
	for i, config := range configs {
		// One of each binary has a balloon.
		balloon := 0
		if i+1 == len(configs) || configs[i+1].Binary != config.Binary {
			config.Balloon, balloon = true, 256
		}
		t.Run(nameOf(config), func(t *testing.T) {
			config.ProbeKernel, config.StateDir = kernel, t.TempDir()
			caps, err := newDriver(config).Probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			release, err := ParseRelease(caps.Version)
			if err != nil {
				t.Fatal(err)
			}
			vmmtest.Run(t, vmmtest.Suite{
				New:   func(*testing.T) vmm.Driver { return newDriver(config) },
				Again: func(*testing.T, vmm.Driver) vmm.Driver { return newDriver(config) },
				Spec: func(t *testing.T) vmm.Spec {
					spec := machineSpec(t, dir)
					spec.Kernel, spec.Initrd, spec.MemoryMiB = kernel, initrd, 128
					spec.KernelArgs = strings.Fields(os.Getenv(kernelArgsVar))
					return spec
				},
				Kill:          func(t *testing.T, _ vmm.Driver, m vmm.Machine) { kill(t, m.Handle().PID) },
				Alive:         func(t *testing.T, _ vmm.Driver, id string) bool { return find(t, config.Binary, id) != 0 },
				NoForwards:    true,
				NoBareResume:  caps.Version == "1.16.0" || caps.Version == "1.16.1",
				FirstMayBreak: needsKnock(release),
				BalloonMiB:    balloon,
			})
		})
	}
}

// A real machine goes on when the process that started it ends, though it prints all the time and nobody reads.
func TestRealMachineOutlivesUs(t *testing.T) {
	if text := os.Getenv(helperVar); text != "" {
		var spec vmm.Spec
		if err := json.Unmarshal([]byte(text), &spec); err != nil {
			t.Fatal(err)
		}
		config := safestConfig(t)
		config.ProbeKernel, config.StateDir = spec.Kernel, filepath.Dir(spec.Dir)
		m, err := newDriver(config).Create(t.Context(), spec)
		leave(t, m, err)
	}
	if len(realBinaries()) == 0 {
		t.Skipf("SKIPPED: this test runs machines in real Firecrackers; set %s to their paths, divided by colons, and %s to a runtime image", firecrackerVar, vmmtest.ImageVar)
	}
	dir := shared(t)
	spec := machineSpec(t, dir)
	spec.Kernel, spec.Initrd, spec.MemoryMiB = vmmtest.Kernel(t), vmmtest.Initrd(t, dir, vmmtest.Modules(t, dir)...), 128
	spec.KernelArgs = append(strings.Fields(os.Getenv(kernelArgsVar)), "ignore_loglevel")
	r := &rig{Driver: newDriver(safestConfig(t)), dir: dir}
	spec.ID, spec.Dir = r.place(t)
	handle := left(t, spec)
	m, err := r.Recover(t.Context(), handle)
	if err != nil {
		t.Fatal(err)
	}
	r.after(t, m, nil, handle.ID, handle.Dir)
	conn, err := m.DialGuest(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintln(conn, "ping")
	if answer, err := bufio.NewReader(conn).ReadString('\n'); answer != "pong\n" {
		t.Errorf("the guest answers %q, %v", answer, err)
	}
}

// What a machine takes of its host's memory besides its guest's stays well below what it may take.
func TestRealMemoryOverhead(t *testing.T) {
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
	r.spec.Kernel, r.spec.Initrd, r.spec.KernelArgs = kernel, initrd, strings.Fields(os.Getenv(kernelArgsVar))
	usage := func(m vmm.Machine, when string, mib, cpus int) {
		t.Helper()
		path := groupOf(t, m.Handle().ID)
		text, err := os.ReadFile(filepath.Join(path, "memory.stat"))
		if err != nil {
			t.Fatal(err)
		}
		stat := map[string]int{}
		for line := range strings.Lines(string(text)) {
			var name string
			var n int
			if _, err := fmt.Sscan(line, &name, &n); err != nil {
				t.Fatal(err)
			}
			stat[name] = n
		}
		peak, err := os.ReadFile(filepath.Join(path, "memory.peak"))
		if err != nil {
			t.Fatal(err)
		}
		threads, err := os.ReadFile(filepath.Join(path, "pids.current"))
		if err != nil {
			t.Fatal(err)
		}
		kib := func(n int) string { return fmt.Sprintf("%d KiB", n>>10) }
		bound := stat["anon"] + stat["kernel"] + stat["shmem"] // the rest is the page cache, which yields
		t.Logf("%s, %d MiB, %d CPUs: anonymous %s, kernel %s (page tables %s and for the guest %s), shared %s, page cache %s; peak %s bytes of %d MiB; %s threads", when, mib, cpus,
			kib(stat["anon"]), kib(stat["kernel"]), kib(stat["pagetables"]), kib(stat["sec_pagetables"]), kib(stat["shmem"]), kib(stat["file"]), strings.TrimSpace(string(peak)), mib+memoryOverhead(mib), strings.TrimSpace(string(threads)))
		if when == "frozen" {
			bound -= mib << 20 // the memory file may lie in memory
		}
		if over := bound - mib<<20; over > memoryOverhead(mib)<<20/2 {
			t.Errorf("it takes %s besides its guest's memory, and may take %d MiB", kib(over), memoryOverhead(mib))
		}
	}
	for _, size := range []struct{ mib, cpus int }{{256, 1}, {512, 4}} {
		m, err := r.create(t, t.Context(), func(s *vmm.Spec) { s.MemoryMiB, s.VCPUs = size.mib, size.cpus })
		if err != nil {
			t.Fatal(err)
		}
		ask := func(m vmm.Machine, command string) {
			t.Helper()
			conn, err := m.DialGuest(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(5 * time.Minute))
			fmt.Fprintln(conn, command)
			if answer, err := bufio.NewReader(conn).ReadString('\n'); err != nil || strings.Contains(answer, "error") {
				t.Fatalf("%s: the guest answers %q, %v", command, answer, err)
			}
		}
		ask(m, "ping")
		usage(m, "booted", size.mib, size.cpus)
		ask(m, fmt.Sprintf("fill %d 7", size.mib/2))
		usage(m, "filled", size.mib, size.cpus)
		if err := m.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		snap, err := m.Snapshot(t.Context(), vmm.SnapshotOptions{StateFile: m.Handle().Dir + ".state"})
		if err != nil {
			t.Fatal(err)
		}
		usage(m, "frozen", size.mib, size.cpus)
		if info, err := os.Stat(snap.StateFile); err == nil {
			t.Logf("its state has %d bytes", info.Size())
		}
		if err := m.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		clone, err := r.restore(t, t.Context(), func(s *vmm.Snapshot, _ *vmm.RestoreOptions) { *s = snap })
		if err != nil {
			t.Fatal(err)
		}
		ask(clone, "ping")
		usage(clone, "restored", size.mib, size.cpus)
		ask(clone, "read")
		ask(clone, fmt.Sprintf("fill %d 8", size.mib/2))
		usage(clone, "restored and filled", size.mib, size.cpus)
		if err := clone.Stop(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// everyCall makes each configuring call with every field and every value. Those that the release has are known to it, and those that are held back from it are
// not. Then it makes those of the client.
func everyCall(t *testing.T, r *rig) {
	spec := r.spec
	spec.ID, spec.Dir = r.place(t)
	paths := strings.NewReplacer("/drives/{}", "/drives/root", "/network-interfaces/{}", "/network-interfaces/eth0")
	// isForeign tells whether a release has refused a call, or a field or value in it, because it does not know it.
	isForeign := func(refused *Refusal) bool {
		return refused != nil && slices.ContainsFunc([]string{"unknown field", "unknown variant", "missing field", "Invalid request method"}, func(s string) bool { return strings.Contains(refused.Fault, s) })
	}
	ran, held := 0, 0
	_, err := r.launch(t.Context(), "try calls", r.found, spec, false, func(ctx context.Context, c *Client, _ names) error {
		for call, whole := range full {
			if call == "PUT /actions" || call == "PUT /snapshot/load" {
				continue // they would start something, or end everything
			}
			for _, one := range append(oneByOne(t, whole), newer[call]...) {
				text, err := json.Marshal(one)
				if err != nil {
					return err
				}
				_, err = encode(call, r.found.release, one)
				known := err == nil && (call != "PUT /serial" || r.found.release.knows("1.14"))
				method, path, _ := strings.Cut(paths.Replace(call), " ")
				err = c.call(ctx, method, path, json.RawMessage(text), nil)
				var refused *Refusal
				if err != nil && !errors.As(err, &refused) {
					return err
				}
				foreign := isForeign(refused)
				if call == "PUT /metrics" {
					foreign = !known // the one body in which foreign fields are overlooked; they would do nothing
				}
				if foreign == known {
					t.Errorf("%s %s: known %v, but the answer is %v", call, text, known, err)
				}
				if ran++; !known {
					held++
				}
			}
		}
		for name, one := range calls {
			if name == "Start" || name == "LoadSnapshot" {
				continue
			}
			err := one.make(ctx, c)
			var refused *Refusal
			if err != nil && !errors.As(err, &refused) || isForeign(refused) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return errors.New("that was all")
	})
	if err == nil || !strings.Contains(err.Error(), "that was all") {
		t.Errorf("the calls ended with %v", err)
	}
	t.Logf("%d requests, %d of them foreign to %s", ran, held, r.found.release)
}
