package bench

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"warmboot"
	"warmboot/api"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestPercentileIsByNearestRank(t *testing.T) {
	t.Parallel()
	twenty := make([]float64, 20)
	for i := range twenty {
		twenty[19-i] = float64(i + 1)
	}
	for _, c := range []struct {
		values []float64
		p      float64
		want   float64
	}{
		{[]float64{7}, 1, 7},
		{[]float64{7}, 99, 7},
		{[]float64{15, 20, 35, 40, 50}, 30, 20},
		{[]float64{15, 20, 35, 40, 50}, 40, 20},
		{[]float64{15, 20, 35, 40, 50}, 50, 35},
		{[]float64{15, 20, 35, 40, 50}, 100, 50},
		{twenty, 95, 19},
		{twenty, 99, 20},
		{[]float64{2, 1}, 50, 1},
	} {
		if got := Percentile(c.values, c.p); got != c.want {
			t.Errorf("Percentile(%v, %v) = %v, want %v", c.values, c.p, got, c.want)
		}
	}
	if !math.IsNaN(Percentile(nil, 50)) {
		t.Error("a percentile of nothing is a number")
	}
}

func TestPercentileKeepsItsPromise(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(0, 100), 1, 200).Draw(t, "values")
		p := float64(rapid.IntRange(1, 100).Draw(t, "p"))
		got := Percentile(values, p)
		below, atMost := 0, 0
		for _, v := range values {
			if v < got {
				below++
			}
			if v <= got {
				atMost++
			}
		}
		if n := float64(len(values)); float64(atMost) < p/100*n-1e-6 || float64(below) >= p/100*n {
			t.Fatalf("%v: %d of %d are below, %d at most it", got, below, len(values), atMost)
		}
	})
}

func TestOverheadIsWhatNeitherVMMNorGuestSpent(t *testing.T) {
	t.Parallel()
	s := Sample{Ready: 0.3, Phases: phases("disk", 0.005, "vmm", 0.04, "restore", 0.01, "reidentify", 0.1, "docker", 0.135, "pull", 9)}
	if got := s.Overhead(); math.Abs(got-0.015) > 1e-9 {
		t.Errorf("Overhead() = %v, want 0.015", got)
	}
	if boot, restore := s.Boot(), s.VMMToDocker(); math.Abs(boot-0.29) > 1e-9 || math.Abs(restore-0.285) > 1e-9 {
		t.Errorf("Boot() = %v, want 0.29; VMMToDocker() = %v, want 0.285", boot, restore)
	}
}

func TestTable(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]Result{"full": example(), "warm-only": {Machine: example().Machine, Date: example().Date, Warm: example().Warm}} {
		var b bytes.Buffer
		if err := Table(&b, r); err != nil {
			t.Fatal(err)
		}
		golden(t, "table-"+name+".txt", b.Bytes())
	}
}

func TestSVG(t *testing.T) {
	t.Parallel()
	warmOnly := example()
	warmOnly.Cold, warmOnly.Floor = nil, nil
	warmOnly.Machine.CPU = `<odd> & "quoted"`
	for name, r := range map[string]Result{"full": example(), "warm-only": warmOnly} {
		var b bytes.Buffer
		if err := SVG(&b, r); err != nil {
			t.Fatal(err)
		}
		for dec := xml.NewDecoder(bytes.NewReader(b.Bytes())); ; {
			if _, err := dec.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s is not XML: %v", name, err)
			}
		}
		golden(t, name+".svg", b.Bytes())
	}
	if err := SVG(io.Discard, Result{}); warmboot.CodeOf(err) != warmboot.Invalid {
		t.Errorf("a picture of nothing: %v", err)
	}
}

func TestSegmentsAddUp(t *testing.T) {
	t.Parallel()
	for _, s := range append(example().Warm, example().Cold...) {
		sum := 0.0
		for _, seg := range segments(s) {
			sum += seg.seconds
		}
		if math.Abs(sum-s.Ready) > 1e-9 {
			t.Errorf("segments of %v add up to %v", s, sum)
		}
	}
}

func TestNiceStep(t *testing.T) {
	t.Parallel()
	for _, top := range []float64{0.001, 0.21, 0.399, 1, 4, 15.7, 29, 99, 1234} {
		if n := math.Ceil(top / niceStep(top)); n < 4 || n > 10 {
			t.Errorf("a scale up to %v has %v steps of %v", top, n, niceStep(top))
		}
	}
}

func TestJSONRoundTrip(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := WriteJSON(&b, example()); err != nil {
		t.Fatal(err)
	}
	got, err := ReadJSON(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(example(), got); diff != "" {
		t.Errorf("read is not what was written (-want +got):\n%s", diff)
	}
	for _, bad := range []string{"", "{", "[]", `{"machine":{},"speed":1}`} {
		if _, err := ReadJSON(strings.NewReader(bad)); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("ReadJSON(%q): %v", bad, err)
		}
	}
}

// example is a result with made-up samples that spread a little.
func example() Result {
	r := Result{
		Machine: Machine{CPU: "Example CPU at 2.5 GHz", Cores: 2, MemoryBytes: 4 << 30, Kernel: "6.12.0", VMM: "qemu-7.2.22", Accelerator: "tcg", GoVersion: "go1.26.8", Warmboot: "v0.1.0"},
		Date:    time.Date(2026, 11, 24, 15, 0, 0, 0, time.UTC), Image: "registry.test/hello:1",
		CloneDisk: []float64{0.008, 0.007, 0.011}, SnapshotPause: 0.193, ServeRSS: 41 << 20,
		Concurrent: &Concurrent{Count: 8, AllReady: 2.61, Samples: []Sample{{Ready: 2.61, Running: 9.9, Phases: phases("vmm", 0.4, "docker", 2.1)}}},
	}
	for i := range 20 {
		f := 1 + float64(i*i)/800
		r.Warm = append(r.Warm, Sample{Ready: 0.232 * f, Running: 4.1 * f,
			Phases: phases("disk", 0.007*f, "vmm", 0.041*f, "restore", 0.014*f, "reidentify", 0.098*f, "docker", 0.062*f, "pull", 1.9*f, "start", 1.968*f)})
		r.Floor = append(r.Floor, Sample{Ready: 0.185 * f, Phases: phases("disk", 0.02*f, "vmm", 0.039*f, "restore", 0.012*f, "docker", 0.114*f)})
	}
	for i := range 5 {
		f := 1 + float64(i)/50
		r.Cold = append(r.Cold, Sample{Ready: 14.6 * f, Running: 18.7 * f,
			Phases: phases("disk", 0.007*f, "vmm", 0.04*f, "boot", 6.1*f, "docker", 8.44*f, "pull", 2*f, "start", 2.1*f)})
	}
	return r
}

// phases makes phases of names and seconds in turn.
func phases(pairs ...any) []api.Phase {
	var out []api.Phase
	for i := 0; i < len(pairs); i += 2 {
		var s float64
		switch v := pairs[i+1].(type) {
		case float64:
			s = v
		case int:
			s = float64(v)
		}
		out = append(out, api.Phase{Name: pairs[i].(string), Seconds: s})
	}
	return out
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs; if that is meant, run `go test ./internal/bench -update` (-want +got):\n%s", path, diff)
	}
}
