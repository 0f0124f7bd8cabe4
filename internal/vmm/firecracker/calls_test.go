package firecracker

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
)

// talk starts a stand-in in which nothing has been put yet, with these files beside the usual ones, and lets f give it calls. It returns the
// machine that f leaves.
func talk(t *testing.T, p standin.Profile, f func(ctx context.Context, c *Client, known names), files ...placed) *machine {
	t.Helper()
	release, err := ParseRelease(p.Version)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Driver: newDriver(configFor(t, p)), dir: shared(t)}
	spec := machineSpec(t, r.dir)
	spec.MemoryMiB = 128
	spec.ID, spec.Dir = r.place(t)
	spec.MemoryFile = spec.Dir + ".memory"
	if err := spec.MakeMemoryFile(); err != nil {
		t.Fatal(err)
	}
	files = append(files, placed{name: kernelName, target: spec.Kernel}, placed{name: initrdName, target: spec.Initrd})
	m, err := r.launch(t.Context(), "talk", &found{caps: vmm.Capabilities{Binary: r.Binary}, release: release}, spec, false, func(ctx context.Context, c *Client, known names) error {
		f(ctx, c, known)
		return nil
	}, files...)
	if err != nil {
		t.Fatal(err)
	}
	r.after(t, m, nil, spec.ID, spec.Dir)
	return m
}

// calls are all that a Client makes, by the name of its method, and where each is to arrive.
var calls = map[string]struct {
	at   string
	make func(context.Context, *Client) error
}{
	"PutBootSource": {"PUT /boot-source", func(ctx context.Context, c *Client) error {
		return c.PutBootSource(ctx, BootSource{"kernel", "initrd", "args"})
	}},
	"PutDrive": {"PUT /drives/root", func(ctx context.Context, c *Client) error {
		return c.PutDrive(ctx, Drive{"root", "rootfs", true, true, "Unsafe", "Sync"})
	}},
	"PutMachineConfig": {"PUT /machine-config", func(ctx context.Context, c *Client) error {
		return c.PutMachineConfig(ctx, MachineConfig{1, 128, true, "T2", true, "2M"})
	}},
	"PutCPUConfig": {"PUT /cpu-config", func(ctx context.Context, c *Client) error {
		return c.PutCPUConfig(ctx, CPUConfig{[]string{"!56"}, []json.RawMessage{}, []json.RawMessage{}})
	}},
	"PutNetworkInterface": {"PUT /network-interfaces/eth0", func(ctx context.Context, c *Client) error {
		return c.PutNetworkInterface(ctx, NetworkInterface{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: "02:00:00:00:00:01"})
	}},
	"PutVsock":   {"PUT /vsock", func(ctx context.Context, c *Client) error { return c.PutVsock(ctx, Vsock{3, "guest.sock"}) }},
	"PutEntropy": {"PUT /entropy", func(ctx context.Context, c *Client) error { return c.PutEntropy(ctx, Entropy{}) }},
	"PutBalloon": {"PUT /balloon", func(ctx context.Context, c *Client) error {
		return c.PutBalloon(ctx, Balloon{AmountMiB: 1, DeflateOnOOM: true, StatsPollingIntervalS: 1})
	}},
	"Balloon": {"GET /balloon", func(ctx context.Context, c *Client) error { _, err := c.Balloon(ctx); return err }},
	"PatchBalloon": {"PATCH /balloon", func(ctx context.Context, c *Client) error {
		return c.PatchBalloon(ctx, 1)
	}},
	"BalloonStats": {"GET /balloon/statistics", func(ctx context.Context, c *Client) error { _, err := c.BalloonStats(ctx); return err }},
	"PatchBalloonStats": {"PATCH /balloon/statistics", func(ctx context.Context, c *Client) error {
		return c.PatchBalloonStats(ctx, 1)
	}},
	"PutMetrics": {"PUT /metrics", func(ctx context.Context, c *Client) error { return c.PutMetrics(ctx, Metrics{MetricsPath: "metrics"}) }},
	"PutLogger": {"PUT /logger", func(ctx context.Context, c *Client) error {
		return c.PutLogger(ctx, Logger{"log", "Info", true, true, "api_server"})
	}},
	"PutSerial":      {"PUT /serial", func(ctx context.Context, c *Client) error { return c.PutSerial(ctx, Serial{SerialOutPath: "serial"}) }},
	"Start":          {"PUT /actions", func(ctx context.Context, c *Client) error { return c.Start(ctx) }},
	"FlushMetrics":   {"PUT /actions", func(ctx context.Context, c *Client) error { return c.FlushMetrics(ctx) }},
	"SendCtrlAltDel": {"PUT /actions", func(ctx context.Context, c *Client) error { return c.SendCtrlAltDel(ctx) }},
	"Pause":          {"PATCH /vm", func(ctx context.Context, c *Client) error { return c.Pause(ctx) }},
	"Resume":         {"PATCH /vm", func(ctx context.Context, c *Client) error { return c.Resume(ctx) }},
	"CreateSnapshot": {"PUT /snapshot/create", func(ctx context.Context, c *Client) error {
		return c.CreateSnapshot(ctx, SnapshotCreate{"Full", "state", "memory"})
	}},
	"LoadSnapshot": {"PUT /snapshot/load", func(ctx context.Context, c *Client) error {
		return c.LoadSnapshot(ctx, SnapshotLoad{SnapshotPath: "state", MemBackend: MemBackend{"File", "memory"}, ResumeVM: true})
	}},
	"Instance": {"GET /", func(ctx context.Context, c *Client) error { _, err := c.Instance(ctx); return err }},
	"Version":  {"GET /version", func(ctx context.Context, c *Client) error { _, err := c.Version(ctx); return err }},
}

// Each call arrives where it should, with a body that the release takes: only then is it refused with the words that are for that place.
func TestEachCallArrives(t *testing.T) {
	t.Parallel()
	client := reflect.TypeFor[*Client]()
	for i := range client.NumMethod() {
		if name := client.Method(i).Name; name != "Close" && calls[name].at == "" {
			t.Errorf("nobody calls %s", name)
		}
	}
	faults := map[string]standin.Fault{}
	for _, c := range calls {
		faults[c.at] = standin.Fault{Refuse: "this is " + c.at}
	}
	// A load that is refused is a process's last call.
	order := append(slices.DeleteFunc(slices.Sorted(maps.Keys(calls)), func(name string) bool { return name == "LoadSnapshot" }), "LoadSnapshot")
	for _, version := range releases {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			c := clientOf(t, standin.Serve(t, standin.Profile{Version: version, Faults: standin.Faults{Calls: faults}}), version)
			for _, name := range order {
				err := calls[name].make(t.Context(), c)
				if name == "PutSerial" && !c.release.knows("1.14") {
					wantError(t, err, warmboot.Unavailable, "came with 1.14")
					continue
				}
				var refused *Refusal
				if !errors.As(err, &refused) || refused.Fault != "this is "+calls[name].at || refused.Call != calls[name].at {
					t.Errorf("%s: %v; it should have arrived at %s", name, err, calls[name].at)
				}
			}
		})
	}
}

// orderRules gives calls at the wrong time. Firecracker refuses them all and goes on, but for a snapshot that it cannot load: then it ends by itself.
func orderRules(t *testing.T, r *rig, f *found) {
	refused := func(ctx context.Context, c *Client, when string, names ...string) {
		t.Helper()
		for _, name := range names {
			var refusal *Refusal
			if err := calls[name].make(ctx, c); !errors.As(err, &refusal) {
				t.Errorf("%s %s: %v, want that it is refused", name, when, err)
			}
		}
	}
	was := func(ctx context.Context, c *Client, state string) {
		t.Helper()
		if i, err := c.Instance(ctx); err != nil || i.State != state {
			t.Errorf("it is %+v, %v; want it %s", i, err, state)
		}
	}
	spec := r.spec
	spec.ID, spec.Dir = r.place(t)
	m, err := r.launch(t.Context(), "break the order", f, spec, false, func(ctx context.Context, c *Client, known names) error {
		refused(ctx, c, "before the start", "Pause", "Resume", "CreateSnapshot", "SendCtrlAltDel", "PatchBalloon")
		was(ctx, c, "Not started")
		must(t, c.PutMachineConfig(ctx, MachineConfig{VCPUCount: 1, MemSizeMiB: spec.MemoryMiB}),
			c.PutBootSource(ctx, BootSource{KernelImagePath: known[kernelName], InitrdPath: known[initrdName]}))
		refused(ctx, c, "after a part of a machine was put", "LoadSnapshot")
		was(ctx, c, "Not started")
		must(t, c.Start(ctx))
		refused(ctx, c, "after the start", "Start", "PutBootSource", "PutDrive", "PutMachineConfig", "PutVsock", "LoadSnapshot", "CreateSnapshot")
		was(ctx, c, "Running")
		must(t, c.Pause(ctx))
		refused(ctx, c, "in a pause", "Start", "PutBootSource", "LoadSnapshot")
		was(ctx, c, "Paused")
		return nil
	}, placed{name: kernelName, target: spec.Kernel}, placed{name: initrdName, target: spec.Initrd})
	if err != nil {
		t.Fatal(err)
	}
	must(t, m.Stop(t.Context(), 0))

	spec.ID, spec.Dir = r.place(t)
	_, err = r.launch(t.Context(), "load nothing", f, spec, true, func(ctx context.Context, c *Client, _ names) error {
		refused(ctx, c, "without files", "LoadSnapshot")
		for {
			if _, err := c.Instance(ctx); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
	})
	if err == nil || !strings.Contains(err.Error(), "exit status 1") {
		t.Errorf("after a load that was refused: %v, want that the process has ended by itself", err)
	}
}

// The stand-in holds to the order that TestRealFirecracker finds in real ones.
func TestOrder(t *testing.T) {
	t.Parallel()
	for _, version := range releases {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			release, err := ParseRelease(version)
			if err != nil {
				t.Fatal(err)
			}
			r := &rig{Driver: newDriver(configFor(t, standin.Profile{Version: version})), dir: shared(t)}
			r.spec = machineSpec(t, r.dir)
			orderRules(t, r, &found{caps: vmm.Capabilities{Binary: r.Binary}, release: release})
		})
	}
}

// Each call does what it says, from the first to the last that a machine takes. (Loading is what every restore does, and a network interface
// takes a TAP: TestNetwork.)
func TestEachCallDoes(t *testing.T) {
	t.Parallel()
	for _, version := range releases {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			dir := shared(t)
			file := map[string]string{}
			var files []placed
			for _, name := range []string{"metrics", "log", "serial"} {
				file[name] = filepath.Join(dir, name)
				write(t, file[name], nil)
				if owner.Confined() && os.Geteuid() == 0 {
					must(t, os.Chown(file[name], int(owner.UID), int(owner.GID)))
				}
				files = append(files, placed{name: name, target: file[name], writable: true})
			}
			ours := talk(t, standin.Profile{Version: version}, func(ctx context.Context, c *Client, known names) {
				ok := func(err error) {
					t.Helper()
					if err != nil {
						t.Error(err)
					}
				}
				state := func(want string) {
					t.Helper()
					if i, err := c.Instance(ctx); err != nil || i.State != want || i.VMMVersion != version {
						t.Errorf("it is %+v, %v; want it %s", i, err, want)
					}
				}
				balloon := func(amount, interval int) {
					t.Helper()
					if b, err := c.Balloon(ctx); err != nil || b != (Balloon{AmountMiB: amount, DeflateOnOOM: true, StatsPollingIntervalS: interval}) {
						t.Errorf("the balloon is %+v, %v; want %d MiB, and statistics every %d s", b, err, amount, interval)
					}
					if s, err := c.BalloonStats(ctx); err != nil || s.TargetMiB != amount || s.ActualMiB != amount || s.TotalMemory == 0 {
						t.Errorf("the balloon's statistics are %+v, %v; want %d MiB", s, err, amount)
					}
				}
				if v, err := c.Version(ctx); err != nil || v != version {
					t.Errorf("it is version %q, %v", v, err)
				}
				ok(c.PutLogger(ctx, Logger{LogPath: known["log"], Level: "Error", ShowLevel: true, ShowLogOrigin: true}))
				ok(c.PutMetrics(ctx, Metrics{MetricsPath: known["metrics"]}))
				if c.release.knows("1.14") {
					ok(c.PutSerial(ctx, Serial{SerialOutPath: known["serial"]}))
				}
				ok(c.PutMachineConfig(ctx, MachineConfig{VCPUCount: 2, MemSizeMiB: 128, HugePages: "None"}))
				ok(c.PutCPUConfig(ctx, CPUConfig{CPUIDModifiers: []json.RawMessage{[]byte(`{"leaf":"0x0","subleaf":"0x0","flags":0,"modifiers":[]}`)}}))
				ok(c.PutBootSource(ctx, BootSource{KernelImagePath: known[kernelName], InitrdPath: known[initrdName], BootArgs: "console=ttyS0"}))
				ok(c.PutDrive(ctx, Drive{DriveID: "root", PathOnHost: rootName, IsReadOnly: true}))
				ok(c.PutDrive(ctx, Drive{DriveID: "data", PathOnHost: dataName, CacheType: "Writeback"}))
				ok(c.PutVsock(ctx, Vsock{GuestCID: guestCID, UDSPath: guestSocket}))
				ok(c.PutEntropy(ctx, Entropy{}))
				ok(c.PutBalloon(ctx, Balloon{AmountMiB: 8, DeflateOnOOM: true, StatsPollingIntervalS: 1}))
				state("Not started")
				ok(c.Start(ctx))
				state("Running")
				balloon(8, 1)
				ok(c.PatchBalloon(ctx, 16))
				balloon(16, 1)
				ok(c.PatchBalloonStats(ctx, 2))
				balloon(16, 2)
				ok(c.FlushMetrics(ctx))
				ok(c.Pause(ctx))
				state("Paused")
				ok(c.CreateSnapshot(ctx, SnapshotCreate{SnapshotType: "Full", SnapshotPath: stateName, MemFilePath: known[memoryName]}))
				ok(c.Resume(ctx))
				state("Running")
				ok(c.SendCtrlAltDel(ctx))
			}, files...)
			select {
			case <-ours.Done():
			case <-time.After(10 * time.Second):
				t.Error("it has not gone down")
			}
			ours.drain()
			if how := ending(ours.process.State()); !strings.Contains(how, "went down") {
				t.Errorf("it ended: %s", how)
			}
			content := func(path string) string {
				t.Helper()
				text, err := os.ReadFile(path)
				if err != nil {
					t.Error(err)
				}
				return string(text)
			}
			if metrics := content(file["metrics"]); !json.Valid([]byte(metrics)) {
				t.Errorf("the metrics are %q", metrics)
			}
			serial, console := content(file["serial"]), ours.Console()
			if ours.kept.Release.knows("1.14") {
				serial, console = console, serial
			}
			if !strings.Contains(console, "Linux version") || strings.Contains(serial, "Linux version") {
				t.Errorf("the guest's console is %q, and elsewhere there is %q", console, serial)
			}
			if memory := content(ours.kept.Spec.MemoryFile); strings.Trim(memory, "\x00") == "" {
				t.Error("no memory was written")
			}
		})
	}
}
