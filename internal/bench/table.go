package bench

import (
	"bytes"
	"fmt"
	"io"
	"math"

	"github.com/dustin/go-humanize"

	"warmboot"
)

// Table writes the result for people: the machine, the percentiles of every phase by boot method, and the other figures.
// Times are in seconds.
func Table(w io.Writer, r Result) error {
	var b bytes.Buffer
	b.WriteString(describe(r) + "\n\n")
	fmt.Fprintf(&b, "%-34s %4s %8s %8s %8s %8s\n", "seconds", "n", "p50", "p95", "p99", "max")
	section(&b, "cold, to Docker answering", r.Cold)
	section(&b, "warm, to Docker answering", r.Warm)
	section(&b, "floor (bare VMM), to Docker", r.Floor)
	row(&b, "clone of a data disk", r.CloneDisk)
	b.WriteByte('\n')
	if x := Ratio(r.Warm, r.Cold); !math.IsNaN(x) {
		fmt.Fprintf(&b, "A cold boot takes %.1f times as long as a warm one (p50).\n", x)
	}
	if x := Ratio(r.Floor, r.Warm); !math.IsNaN(x) {
		fmt.Fprintf(&b, "A warm boot takes %.2f times as long as the bare VMM commands, from the start of the VMM to Docker's answer; with the copy of the disk %.2f times; from the request to its answer %.2f times (p50).\n",
			Percentile(vmmToDocker(r.Warm), 50)/Percentile(vmmToDocker(r.Floor), 50), Percentile(boots(r.Warm), 50)/Percentile(boots(r.Floor), 50), x)
	}
	if c := r.Concurrent; c != nil {
		fmt.Fprintf(&b, "%d warm creates at once: all ready in %.2f s, %d of them cold.\n", c.Count, c.AllReady, c.Cold)
	}
	if r.SnapshotPause > 0 {
		fmt.Fprintf(&b, "Taking a snapshot, from the pause to a resumable artifact: %.0f ms.\n", r.SnapshotPause*1000)
	}
	if r.ServeRSS > 0 {
		fmt.Fprintf(&b, "Memory of an idle `warmboot serve`: %s.\n", humanize.IBytes(uint64(r.ServeRSS)))
	}
	b.WriteString("Percentiles are by nearest rank: each is a boot that was measured.\n")
	_, err := w.Write(b.Bytes())
	return err
}

// describe tells in one line where and when the result was measured.
func describe(r Result) string {
	m := r.Machine
	return fmt.Sprintf("%s, %d cores, %s, Linux %s, %s (%s), %s, warmboot %s, %s",
		m.CPU, m.Cores, humanize.IBytes(uint64(m.MemoryBytes)), m.Kernel, m.VMM, m.Accelerator, m.GoVersion, m.Warmboot,
		r.Date.UTC().Format("2006-01-02 15:04 UTC"))
}

// section writes one boot method: the total, then its phases. A method without samples is left out.
func section(b *bytes.Buffer, title string, samples []Sample) {
	if len(samples) == 0 {
		return
	}
	row(b, title, ready(samples))
	for _, name := range bootPhases {
		row(b, "  "+string(name), phase(samples, name))
	}
	row(b, "  all these", boots(samples))
	running := collect(samples, func(s Sample) (float64, bool) { return s.Running, s.Running > 0 })
	if len(running) == 0 {
		return // the floor: it runs no container and has no control plane
	}
	row(b, "  control plane, with the disk", collect(samples, func(s Sample) (float64, bool) { return s.Overhead(), true }))
	row(b, "  then pull", phase(samples, warmboot.PhasePull))
	row(b, "  then start", phase(samples, warmboot.PhaseStart))
	row(b, "  to the command running", running)
}

func phase(samples []Sample, name warmboot.PhaseName) []float64 {
	return collect(samples, func(s Sample) (float64, bool) { return s.Phase(name) })
}

// row writes one line of the table; nothing if there are no values.
func row(b *bytes.Buffer, title string, values []float64) {
	if len(values) == 0 {
		return
	}
	fmt.Fprintf(b, "%-34s %4d %8.3f %8.3f %8.3f %8.3f\n", title, len(values),
		Percentile(values, 50), Percentile(values, 95), Percentile(values, 99), Percentile(values, 100))
}
