package firecracker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/firecracker/standin"
	"warmboot/internal/vmm/process"
)

// BenchmarkRestore measures what the driver adds to a restore, without a jail and with one. Each round restores with the driver in both ways, and in both ways with
// the bare calls that nobody can do without: start the process, by its jailer or not, connect, load. CPU time is this process's own, not the VMM's or
// the jailer's. With firecrackerVar set it measures with the first real one in it, else with the stand-in.
func BenchmarkRestore(b *testing.B) {
	direct, inJail := benchRigs(b)
	took, used := map[string][]float64{}, map[string][]float64{}
	timed := func(what string, f func()) {
		start, cpu := time.Now(), cpuTime(b)
		f()
		took[what] = append(took[what], float64(time.Since(start).Microseconds())/1000)
		used[what] = append(used[what], float64((cpuTime(b)-cpu).Microseconds())/1000)
	}
	for b.Loop() {
		for what, r := range map[string]*rig{"driver": direct, "jailed": inJail} {
			if r == nil {
				continue
			}
			opts := vmm.RestoreOptions{RootDisk: r.spec.RootDisk, DataDisk: r.spec.DataDisk, Owner: r.spec.Owner}
			opts.ID, opts.Dir = r.place(b)
			var m vmm.Machine
			timed(what, func() {
				var err error
				if m, err = r.Restore(b.Context(), r.snap, opts); err != nil {
					b.Fatal(err)
				}
			})
			timed(what+"-stop", func() {
				if err := m.Stop(context.Background(), 0); err != nil {
					b.Fatal(err)
				}
			})
		}
		benchBare(b, direct, false, func(f func()) { timed("bare", f) })
		if inJail != nil {
			benchBare(b, inJail, true, func(f func()) { timed("bare-jailed", f) })
		}
	}
	quantile := func(all []float64, q float64) float64 {
		slices.Sort(all)
		return all[int(float64(len(all)-1)*q)]
	}
	median := func(what string) float64 { return quantile(took[what], 0.5) }
	medianCPU := func(what string) float64 { return quantile(used[what], 0.5) }
	for what := range took {
		b.ReportMetric(median(what), what+"-p50-ms")
		b.ReportMetric(quantile(took[what], 0.95), what+"-p95-ms")
		b.ReportMetric(medianCPU(what), what+"-cpu-p50-ms")
	}
	for ours, bare := range map[string]string{"driver": "bare", "jailed": "bare-jailed"} {
		if len(took[ours]) == 0 {
			continue
		}
		b.ReportMetric(median(ours)/median(bare), ours+"/"+bare)
		b.ReportMetric(median(ours)-median(bare), ours+"-adds-p50-ms")
		b.ReportMetric(medianCPU(ours)-medianCPU(bare), ours+"-adds-cpu-p50-ms")
	}
}

// benchRigs are two of the same Firecracker; the second is nil where there can be no jails.
func benchRigs(b *testing.B) (direct, inJail *rig) {
	b.Helper()
	can := func(c Config) bool {
		err := newDriver(c).jail.check("jail machines", c.Binary)
		if err != nil {
			b.Logf("SKIPPED: jails are not measured: %v", err)
		}
		return err == nil
	}
	if binaries := realBinaries(); len(binaries) > 0 {
		jailed := Config{Binary: binaries[0], Unlimited: !limitable()}
		direct = rigOf(b, Config{Binary: binaries[0], Unjailed: true})
		if can(jailed) {
			inJail = rigOf(b, jailed)
		}
		return direct, inJail
	}
	p := standin.Profile{Version: "1.15.1"}
	config := jailedConfig(b, p, configFor(b, p).ProbeKernel)
	if can(config) {
		inJail = rigWith(b, p.Version, config)
	}
	config.Unjailed = true
	return rigWith(b, p.Version, config), inJail
}

// benchBare restores by hand; only the calls themselves are measured, and not that their files are laid out. A jail is made as Firecracker's docs/jailer.md
// has it: a directory with the files linked into it, and no cgroup.
func benchBare(b *testing.B, r *rig, inJail bool, timed func(func())) {
	var undo rollback.Stack
	defer func() {
		if err := undo.Unwind(); err != nil {
			b.Error(err)
		}
	}()
	id, dir := r.place(b)
	binary := r.found.caps.Binary
	root, place := filepath.Join(dir, rootDir), os.Symlink
	cmd := exec.Command(binary, "--id", id, "--api-sock", apiSocket, "--level", "Warning")
	if inJail {
		jailer, err := r.jail.find("jail by hand", binary)
		if err != nil {
			b.Fatal(err)
		}
		root, place = filepath.Join(dir, filepath.Base(binary), id, "root"), os.Link
		cmd = exec.Command(jailer, "--id", id, "--exec-file", binary, "--uid", fmt.Sprint(owner.UID), "--gid", fmt.Sprint(owner.GID), "--chroot-base-dir", dir,
			"--", "--api-sock", apiSocket, "--level", "Warning")
	} else {
		cmd.Dir = root
	}
	undo.Push("make root", func() error { return os.RemoveAll(dir) })
	if err := os.MkdirAll(root, 0o700); err != nil {
		b.Fatal(err)
	}
	for name, target := range map[string]string{rootName: r.spec.RootDisk.Path, dataName: r.spec.DataDisk.Path, memoryName: r.snap.MemoryFile, stateName: r.snap.StateFile} {
		if err := place(target, filepath.Join(root, name)); err != nil {
			b.Fatal(err)
		}
	}
	socket := filepath.Join(root, apiSocket)
	timed(func() {
		p, err := process.Start(cmd, vmm.Owner{}, nil)
		if err != nil {
			b.Fatal(err)
		}
		undo.Push("start", func() error {
			err := p.Signal(unix.SIGKILL)
			p.Wait(b.Context())
			return err
		})
		var conn net.Conn
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(100 * time.Microsecond) {
			if conn, err = net.Dial("unix", socket); err == nil {
				break
			}
			if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ECONNREFUSED) || time.Now().After(deadline) {
				b.Fatal(err)
			}
		}
		defer conn.Close()
		body := `{"snapshot_path":"state","mem_backend":{"backend_type":"File","backend_path":"memory"},"resume_vm":true}`
		if _, err := fmt.Fprintf(conn, "PUT /snapshot/load HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			b.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			b.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			b.Fatal(resp)
		}
	})
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// firecrackerVar names the environment variable that enables tests with real Firecrackers: their paths, divided by colons. Without it they
// are skipped; with it, what cannot be used fails them. They need KVM to open, not to work.
const firecrackerVar = "WARMBOOT_TEST_FIRECRACKER"

func realBinaries() []string {
	return strings.FieldsFunc(os.Getenv(firecrackerVar), func(c rune) bool { return c == ':' })
}
