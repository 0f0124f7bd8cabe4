package load

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"warmboot/api"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/expect"
	"warmboot/internal/store/pgtest"
	"warmboot/test/managerprocess"
)

func TestMain(m *testing.M) {
	managerprocess.Main()
	code := m.Run()
	if err := writeResults(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// results are the figures of all benchmarks that have run, by name.
var results = struct {
	sync.Mutex
	Machine string                        `json:"machine"`
	Go      string                        `json:"go"`
	Date    string                        `json:"date"`
	Figures map[string]map[string]float64 `json:"figures"`
}{Machine: fmt.Sprintf("%d CPUs, %s", runtime.NumCPU(), cpu()), Go: runtime.Version(), Figures: map[string]map[string]float64{}}

func cpu() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(line, "model name\t: "); ok {
			return strings.TrimSpace(name)
		}
	}
	return runtime.GOARCH
}

// report is b.ReportMetric, and keeps the figure.
func report(b *testing.B, figure float64, unit string) {
	b.ReportMetric(figure, unit)
	results.Lock()
	defer results.Unlock()
	of := results.Figures[b.Name()]
	if of == nil {
		of = map[string]float64{}
		results.Figures[b.Name()] = of
	}
	of[unit] = figure
}

func writeResults() error {
	path := os.Getenv("WARMBOOT_LOAD_RESULTS")
	if path == "" || len(results.Figures) == 0 {
		return nil
	}
	results.Date = time.Now().UTC().Format(time.DateOnly)
	text, err := json.MarshalIndent(&results, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// quantile of durations, in milliseconds.
func quantile(of []time.Duration, q float64) float64 {
	slices.Sort(of)
	return float64(of[min(len(of)-1, int(q*float64(len(of))))]) / float64(time.Millisecond)
}

// postgres is a server that keeps its promises: what it has acknowledged is on disk.
func postgres(b *testing.B) string {
	b.Helper()
	s, err := pgtest.Start("fsync=on")
	expect.NoError(b, err)
	b.Cleanup(func() { expect.NoError(b, s.Close()) })
	return s.Database(b)
}

// cpuTime is what a process, and its children that have ended, have used.
func cpuTime(b *testing.B, pid int) time.Duration {
	b.Helper()
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	expect.NoError(b, err)
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
	var ticks int64
	for _, n := range f[11:13] { // utime and stime, proc(5)
		t, err := strconv.ParseInt(n, 10, 64)
		expect.NoError(b, err)
		ticks += t
	}
	return time.Duration(ticks) * 10 * time.Millisecond // USER_HZ is 100
}

// started is a manager with a snapshot.
func started(b *testing.B, url string) *managerprocess.Process {
	b.Helper()
	m := managerprocess.Start(b, managerprocess.Options{Name: "m", URL: url, API: "127.0.0.1:28080"})
	img, err := m.RegisterImage(b.Context(), api.RegisterImage{Name: "runtime", KernelPath: hosttest.Root + "k", RootfsPath: hosttest.Root + "r"})
	expect.NoError(b, err)
	id, err := m.CreateSnapshot(b.Context(), img.ID)
	expect.NoError(b, err)
	for s := (api.Snapshot{State: "creating"}); s.State == "creating"; {
		s, err = m.WaitSnapshot(b.Context(), id, s.Metadata.Step)
		expect.NoError(b, err)
	}
	return m
}

// createAll creates n containers, some at once, and returns how long each took to be accepted, and to run.
func createAll(b *testing.B, m *managerprocess.Process, n, atOnce int) (accepted, running []time.Duration) {
	b.Helper()
	var next atomic.Int64
	var mu sync.Mutex
	var all sync.WaitGroup
	for range atOnce {
		all.Go(func() {
			for i := next.Add(1); i <= int64(n); i = next.Add(1) {
				start := time.Now()
				id, err := m.CreateContainer(b.Context(), api.CreateContainer{Name: fmt.Sprintf("c%d", i), Image: "debian:trixie"})
				if err != nil {
					b.Error(err)
					return
				}
				took := time.Since(start)
				c, err := m.WaitContainer(b.Context(), id, "started")
				if err != nil || c.State != "running" || c.BootMethod == nil || *c.BootMethod != "warm" {
					b.Errorf("%+v, %v", c, err)
					return
				}
				mu.Lock()
				accepted, running = append(accepted, took), append(running, time.Since(start))
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return accepted, running
}

// BenchmarkCreates is how many containers one manager on PostgreSQL creates in a second, through the REST API, until they run.
func BenchmarkCreates(b *testing.B) {
	const n, atOnce = 5000, 32
	m := started(b, postgres(b))
	for b.Loop() {
		start := time.Now()
		accepted, running := createAll(b, m, n, atOnce)
		took := time.Since(start)
		report(b, n/took.Seconds(), "creates/s")
		report(b, quantile(accepted, 0.5), "accepted-p50-ms")
		report(b, quantile(accepted, 0.99), "accepted-p99-ms")
		report(b, quantile(running, 0.5), "running-p50-ms")
		report(b, quantile(running, 0.99), "running-p99-ms")
		report(b, float64(cpuTime(b, m.PID()))/float64(n)/float64(time.Millisecond), "manager-cpu-ms/create")
	}
}

// BenchmarkCreateOnSQLite is what the control plane adds to a container's start on SQLite: the machines take no time here.
func BenchmarkCreateOnSQLite(b *testing.B) {
	const n = 500
	m := started(b, b.TempDir()+"/warmboot.db")
	for b.Loop() {
		accepted, running := createAll(b, m, n, 1)
		report(b, quantile(accepted, 0.5), "accepted-p50-ms")
		report(b, quantile(running, 0.5), "running-p50-ms")
		report(b, quantile(running, 0.99), "running-p99-ms")
	}
}
