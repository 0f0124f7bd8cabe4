package image

import (
	"strings"

	"warmboot"
)

// Progress tells how far a build is.
type Progress struct {
	Step     string  // what is being done, for people
	Fraction float64 // of the whole build, 0 to 1; never goes back
	Detail   string  // the latest line of the tool at work; may be empty
}

// milestone is a line of output that begins a part of an installation.
type milestone struct {
	prefix string
	step   string
	at     float64 // share of an installation's time that has passed, as measured
	lines  float64 // lines of output that the part has, roughly
}

var milestones = []milestone{
	{"I: running apt-get update", "reading package lists", 0.02, 10},
	{"I: downloading packages", "downloading packages", 0.15, 200},
	{"I: extracting archives", "unpacking the base system", 0.25, 1},
	{"I: installing essential packages", "installing the base system", 0.30, 570},
	{"I: installing remaining packages", "installing packages", 0.45, 250},
	{"warmboot: kernel", "fetching the kernel", 0.75, 2},
	{"warmboot: modules", "choosing kernel modules", 0.82, 1},
	{"warmboot: root disk", "writing the root disk", 0.88, 1},
	{"warmboot: finished", "writing the root disk", 0.96, 1},
}

// keptLines is how much of the output an error can quote.
const keptLines = 40

// watcher turns mmdebstrap's output into progress, and into an error when it fails.
type watcher struct {
	report func(fraction float64, step, detail string)
	next   int     // milestones before it have been passed
	at     float64 // fraction reported last
	last   []string
}

func newWatcher(report func(float64, string, string)) *watcher { return &watcher{report: report} }

func (w *watcher) line(s string) {
	if s == "" {
		return
	}
	w.last = append(w.last, s)
	if len(w.last) > keptLines {
		w.last = w.last[1:]
	}
	for i := w.next; i < len(milestones); i++ {
		if strings.HasPrefix(s, milestones[i].prefix) {
			w.next, w.at = i+1, milestones[i].at
			w.report(w.at, milestones[i].step, "")
			return
		}
	}
	if w.next == 0 || strings.HasPrefix(s, "I: ") {
		return
	}
	end := 1.0
	if w.next < len(milestones) {
		end = milestones[w.next].at
	}
	now := milestones[w.next-1]
	w.at = min(w.at+(end-now.at)/now.lines, end)
	w.report(w.at, now.step, s)
}

// failure makes of mmdebstrap's end an error that quotes what it said went wrong.
func (w *watcher) failure(err error) error {
	all := strings.Join(w.last, "\n")
	var said []string
	for _, l := range w.last {
		if strings.HasPrefix(l, "E: ") || strings.HasPrefix(l, "Err:") || strings.HasPrefix(l, "W: Failed") {
			said = append(said, l)
		}
	}
	if len(said) == 0 && len(w.last) > 0 {
		said = w.last[len(w.last)-1:]
	}
	if len(said) > 4 {
		said = said[:4]
	}
	cause := strings.Join(said, "; ")
	has := func(texts ...string) bool {
		for _, t := range texts {
			if strings.Contains(all, t) {
				return true
			}
		}
		return false
	}
	switch {
	case has("No space left on device", "not enough free space"):
		return warmboot.Errorf(warmboot.Exhausted, op, "the disk became full while packages were installed (%s); free some space or choose another storage root", cause)
	case len(w.last) > 0 && strings.HasPrefix(w.last[0], "unshare: "):
		return warmboot.Errorf(warmboot.Unavailable, op, "this user may not make the namespaces that packages are installed in (%s); give the user subordinate ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`, or build as root", w.last[0])
	case has("Unable to locate package", "names no kernel"):
		return warmboot.Errorf(warmboot.Invalid, op, "the mirror does not carry what a runtime image needs (%s); check suite and mirror", cause)
	case has("Failed to fetch", "Could not resolve", "Could not connect", "Unable to connect", "Temporary failure", "does not have a Release file"):
		return warmboot.Errorf(warmboot.Unavailable, op, "the package mirror did not deliver (%s); check the network, the suite and the mirror, then try again", cause)
	}
	return warmboot.Errorf(warmboot.Internal, op, "mmdebstrap failed: %w (%s)", err, cause)
}
