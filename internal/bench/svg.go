package bench

import (
	"bytes"
	"fmt"
	"html"
	"io"
	"math"
	"slices"

	"warmboot"
)

// The picture's measures, in its own pixels.
const (
	svgWidth   = 860
	svgMargin  = 24
	labelWidth = 96
	barHeight  = 30
	barPitch   = 58 // from one bar to the next
	plotWidth  = svgWidth - 2*svgMargin - labelWidth - 90
)

// other is what of a boot no phase covers.
const other = "other"

// svgStyle holds the colours, for light and for dark surroundings. The phases differ in lightness as well as in hue, so
// that they can be told apart without colour vision.
const svgStyle = `<style>
.bg{fill:#ffffff}.fg{fill:#1f2328}.dim{fill:#59636e}.grid{stroke:#d1d9e0}.mark{stroke:#1f2328}
.disk{fill:#8c959f}.vmm{fill:#0b5cad}.restore{fill:#e0a100}.reidentify{fill:#c2569c}.boot{fill:#c8501e}.docker{fill:#15926b}.other{fill:#c5ccd3}
text{font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;font-size:13px}
.h{font-size:18px;font-weight:600}.s{font-size:12px}.b{font-weight:600}.halo{paint-order:stroke;stroke:#ffffff;stroke-width:4px}
@media (prefers-color-scheme:dark){
.bg{fill:#0d1117}.fg{fill:#f0f6fc}.dim{fill:#9198a1}.grid{stroke:#3d444d}.mark{stroke:#f0f6fc}.halo{stroke:#0d1117}
.disk{fill:#9aa4af}.vmm{fill:#539bf5}.restore{fill:#f2cc60}.reidentify{fill:#e28ac6}.boot{fill:#f0883e}.docker{fill:#3fb68b}.other{fill:#545d68}}
</style>
`

// bar is one boot method in the picture.
type bar struct {
	label   string
	samples []Sample
}

// SVG draws the time to Docker's answer: cold against warm on one linear scale that begins at 0, and below, if there are warm
// samples, the warm bar and the floor once more on a scale of their own, which their panel says. A bar is the median boot
// with its phases stacked; the ticks behind it are the 95th and 99th percentiles.
func SVG(w io.Writer, r Result) error {
	all := withSamples(bar{"cold", r.Cold}, bar{"warm", r.Warm})
	near := withSamples(bar{"warm", r.Warm}, bar{"floor", r.Floor})
	if len(all) == 0 {
		return warmboot.Errorf(warmboot.Invalid, "draw benchmark", "there are no samples to draw; run `warmboot bench` with at least one run")
	}
	p := &picture{}
	p.header(r)
	p.panel("Cold and warm on one scale", all)
	if len(r.Cold) > 0 && len(near) > 0 {
		title := "Warm, magnified"
		if len(near) > 1 {
			title = "Warm against the bare VMM commands, magnified"
		}
		p.panel(title, near)
	}
	p.legend(append(all, near...))
	return p.write(w, r)
}

func withSamples(bars ...bar) []bar {
	return slices.DeleteFunc(bars, func(b bar) bool { return len(b.samples) == 0 })
}

// picture is an SVG that grows downwards.
type picture struct {
	body bytes.Buffer
	y    float64
}

func (p *picture) text(x, y float64, class, s string) {
	fmt.Fprintf(&p.body, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">%s</text>\n", x, y, class, html.EscapeString(s))
}

func (p *picture) header(r Result) {
	p.text(svgMargin, 36, "fg h", headline(r))
	p.text(svgMargin, 57, "dim s", "Seconds from the request to Docker answering in the container's own microVM. Bar: the median boot, its phases stacked.")
	p.y = 84
}

// headline says what the picture shows.
func headline(r Result) string {
	warm, cold := Percentile(ready(r.Warm), 50), Percentile(ready(r.Cold), 50)
	switch {
	case math.IsNaN(cold):
		return fmt.Sprintf("Warm boot in %s", seconds(warm))
	case math.IsNaN(warm):
		return fmt.Sprintf("Cold boot in %s", seconds(cold))
	}
	return fmt.Sprintf("Warm boot in %s, cold boot in %s: %.0f times faster", seconds(warm), seconds(cold), cold/warm)
}

// panel draws bars on a linear scale from 0 to just above the largest 99th percentile.
func (p *picture) panel(title string, bars []bar) {
	p.text(svgMargin, p.y+12, "fg b", title)
	top := 0.0
	for _, b := range bars {
		top = max(top, Percentile(ready(b.samples), 99))
	}
	step := niceStep(top)
	end := max(math.Ceil(top/step-1e-9), 1) * step
	x0 := float64(svgMargin + labelWidth)
	scale := plotWidth / end
	y0 := p.y + 28
	bottom := y0 + float64(len(bars)*barPitch)
	for i := 0; float64(i)*step <= end+step/2; i++ {
		x := x0 + float64(i)*step*scale
		fmt.Fprintf(&p.body, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"grid\"/>\n", x, y0, x, bottom)
		fmt.Fprintf(&p.body, "<text x=\"%.1f\" y=\"%.1f\" class=\"dim s\" text-anchor=\"middle\">%s</text>\n", x, bottom+16, tick(float64(i)*step, step))
	}
	for i, b := range bars {
		p.bar(b, x0, y0+float64(i*barPitch)+8, scale)
	}
	p.y = bottom + 44
}

// bar draws one method: name and number of samples, the median's phases, the percentiles' ticks, and the figures.
func (p *picture) bar(b bar, x0, y, scale float64) {
	p.text(svgMargin, y+14, "fg b", b.label)
	p.text(svgMargin, y+29, "dim s", fmt.Sprintf("n = %d", len(b.samples)))
	m := median(b.samples)
	x := x0
	for _, seg := range segments(m) {
		width := seg.seconds * scale
		fmt.Fprintf(&p.body, "<rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" class=\"%s\"><title>%s: %s</title></rect>\n",
			x, y, width, barHeight, seg.name, seg.name, seconds(seg.seconds))
		x += width
	}
	values := ready(b.samples)
	p95, p99 := Percentile(values, 95), Percentile(values, 99)
	for _, tick := range []struct {
		at     float64
		indent float64 // the 99th percentile's tick is the longer one
		name   string
	}{{p95, 6, "p95"}, {p99, 0, "p99"}} {
		x := x0 + tick.at*scale
		fmt.Fprintf(&p.body, "<line x1=\"%.2f\" y1=\"%.1f\" x2=\"%.2f\" y2=\"%.1f\" class=\"mark\" stroke-width=\"2\"><title>%s: %s</title></line>\n",
			x, y+tick.indent, x, y+barHeight-tick.indent, tick.name, seconds(tick.at))
	}
	p.text(x0, y+barHeight+14, "dim s halo", fmt.Sprintf("p50 %s · p95 %s · p99 %s", seconds(m.Ready), seconds(p95), seconds(p99)))
}

type segment struct {
	name    string
	seconds float64
}

// segments are the phases up to Docker's answer, and the rest, so that they add up to Ready.
func segments(s Sample) []segment {
	var segs []segment
	rest := s.Ready
	for _, name := range bootPhases {
		if d, ok := s.Phase(name); ok {
			segs = append(segs, segment{string(name), d})
			rest -= d
		}
	}
	if rest > 0 {
		segs = append(segs, segment{other, rest})
	}
	return segs
}

// legend explains the colours that were used, and the ticks.
func (p *picture) legend(bars []bar) {
	used := map[string]bool{}
	for _, b := range bars {
		for _, seg := range segments(median(b.samples)) {
			used[seg.name] = true
		}
	}
	x, y := float64(svgMargin), p.y
	for _, name := range append(slices.Clone(bootPhases), other) {
		if !used[string(name)] {
			continue
		}
		fmt.Fprintf(&p.body, "<rect x=\"%.1f\" y=\"%.1f\" width=\"12\" height=\"12\" class=\"%s\"/>\n", x, y-10, name)
		p.text(x+18, y, "fg", phaseLabels[name])
		x += 18 + 7.2*float64(len(phaseLabels[name])) + 20
	}
	fmt.Fprintf(&p.body, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"mark\" stroke-width=\"2\"/>\n", x, y-8, x, y)
	p.text(x+6, y, "fg", "p95")
	fmt.Fprintf(&p.body, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"mark\" stroke-width=\"2\"/>\n", x+42, y-13, x+42, y+5)
	p.text(x+48, y, "fg", "p99")
	p.y += 30
}

var phaseLabels = map[warmboot.PhaseName]string{
	warmboot.PhaseDisk: "disk", warmboot.PhaseVMM: "VMM", warmboot.PhaseRestore: "restore", warmboot.PhaseReidentify: "re-identify",
	warmboot.PhaseBoot: "boot", warmboot.PhaseDocker: "Docker", other: "control plane",
}

// write puts the frame around what was drawn.
func (p *picture) write(w io.Writer, r Result) error {
	lines := wrap(describe(r), 130)
	for _, line := range lines {
		p.text(svgMargin, p.y, "dim s", line)
		p.y += 16
	}
	height := p.y + 8
	var b bytes.Buffer
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" role=\"img\" aria-labelledby=\"title desc\">\n", svgWidth, height, svgWidth, height)
	fmt.Fprintf(&b, "<title id=\"title\">%s</title>\n<desc id=\"desc\">%s</desc>\n", html.EscapeString(headline(r)), html.EscapeString(spoken(r)))
	b.WriteString(svgStyle)
	fmt.Fprintf(&b, "<rect width=\"100%%\" height=\"100%%\" rx=\"8\" class=\"bg\"/>\n")
	b.Write(p.body.Bytes())
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}

// spoken is the picture in words, for those who cannot see it.
func spoken(r Result) string {
	s := "Bar chart of the time from the request to Docker's answer."
	for _, b := range withSamples(bar{"Cold", r.Cold}, bar{"Warm", r.Warm}, bar{"Bare VMM commands", r.Floor}) {
		v := ready(b.samples)
		s += fmt.Sprintf(" %s: median %s, 95th percentile %s, 99th percentile %s, of %d boots.",
			b.label, seconds(Percentile(v, 50)), seconds(Percentile(v, 95)), seconds(Percentile(v, 99)), len(v))
	}
	return s + " Measured on " + describe(r) + "."
}

// seconds writes a duration with three digits that mean something: "12 ms", "0.284 s", "15.1 s".
func seconds(v float64) string {
	switch {
	case v < 0.1:
		return fmt.Sprintf("%.0f ms", v*1000)
	case v < 1:
		return fmt.Sprintf("%.3f s", v)
	case v < 10:
		return fmt.Sprintf("%.2f s", v)
	}
	return fmt.Sprintf("%.1f s", v)
}

// tick writes a value of the scale with as many decimals as its step needs.
func tick(v, step float64) string {
	return fmt.Sprintf("%.*f s", max(0, int(math.Ceil(-math.Log10(step)-1e-9))), v)
}

// niceStep is 1, 2 or 5 times a power of ten, such that a scale up to top has four to ten steps.
func niceStep(top float64) float64 {
	if top <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(top/4)))
	for _, f := range []float64{5, 2} {
		if top/4 >= f*power {
			return f * power
		}
	}
	return power
}

// wrap breaks text after commas into lines of at most n bytes, where it can.
func wrap(s string, n int) []string {
	var lines []string
	for len(s) > n {
		cut := bytes.LastIndex([]byte(s[:n]), []byte(", "))
		if cut < 0 {
			break
		}
		lines = append(lines, s[:cut+1])
		s = s[cut+2:]
	}
	return append(lines, s)
}
