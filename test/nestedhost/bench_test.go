package nestedhost_test

import (
	"encoding/json"
	"os"
	"path"
	"path/filepath"
	"testing"
	"time"

	"warmboot/internal/bench"
	"warmboot/internal/vmm/vmmtest"
	"warmboot/test/nestedhost"
)

// resultVar names the environment variable with the file that measurements are written to.
const resultVar = "WARMBOOT_BENCH_RESULT"

// TestFirecrackerBench measures. It fails only if there is nothing to measure: if one of the restores is not a good one.
func TestFirecrackerBench(t *testing.T) {
	result := os.Getenv(resultVar)
	if result == "" {
		t.Skipf("SKIPPED: measures 100 restores in a real Firecracker, for half an hour; run `make bench-firecracker FIRECRACKER=binary JAILER=binary`, which sets %s", resultVar)
	}
	m := bootWithFirecracker(t)

	// `warmboot bench` takes the image that `warmboot image build` would make, and it is there if this is all there.
	image := os.Getenv(vmmtest.ImageVar)
	text, err := os.ReadFile(filepath.Join(image, "image.json"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct{ Base string }
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	const images = "/srv/fc/images"
	base := "base-" + manifest.Base[:16]
	sh(t, m, "mkdir -p -m 0711 /srv/fc; mkdir -p "+images+"; mv "+remoteImage+" "+path.Join(images, filepath.Base(image)))
	if err := m.CopyIn(t.Context(), filepath.Join(filepath.Dir(image), base, "packages.txt"), path.Join(images, base, "packages.txt")); err != nil {
		t.Fatal(err)
	}

	// First what is quick: the network's part.
	const program = "/root/hostnet.test"
	compile(t, m, program, "test", "-c", "warmboot/internal/hostnet")
	if code, err := m.Exec(within(t, 10*time.Minute), nestedhost.Command{
		Argv: []string{program, "-test.run=^$", "-test.bench=^(BenchmarkTakeReady|BenchmarkBuild)$", "-test.benchtime=100x", "-test.count=1"}, Stdout: t.Output(), Stderr: t.Output(),
	}); err != nil || code != 0 {
		t.Fatalf("the network's benchmarks ended with %d, %v", code, err)
	}

	out, err := os.Create(result)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	const restores = "100"
	code, err := m.Exec(within(t, 2*time.Hour), nestedhost.Command{
		Argv: []string{"warmboot", "bench", "--runs", restores, "--cold", "3", "--concurrent", "0", "--floor", "--boot-only", "-o", "json"},
		Env:  []string{"CONTAINER_RUNTIME_KERNEL_ARGS=" + noXSAVE}, Stdout: out, Stderr: t.Output(),
	})
	if err != nil || code != 0 {
		t.Fatalf("bench ended with %d, %v", code, err)
	}
	if _, err := out.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	r, err := bench.ReadJSON(out)
	if err != nil {
		t.Fatal(err)
	}
	if err := bench.Table(t.Output(), r); err != nil {
		t.Fatal(err)
	}
	var ratio []float64
	for i, s := range r.Warm {
		ratio = append(ratio, s.Ready/r.Floor[i].Ready)
	}
	t.Logf("ours over by hand, pair by pair: p50 %.2f, p95 %.2f", bench.Percentile(ratio, 50), bench.Percentile(ratio, 95))
}
