package image

import (
	"errors"
	"strings"
	"testing"

	"warmboot"
)

func TestProgressOfAnInstallationOnlyGrows(t *testing.T) {
	t.Parallel()
	last, steps := 0.0, map[string]bool{}
	w := newWatcher(func(fraction float64, step, _ string) {
		if fraction < last || fraction > 1 {
			t.Errorf("from %.3f to %.3f", last, fraction)
		}
		last = fraction
		steps[step] = true
	})
	w.line("Setting up before anything has begun")
	if last != 0 {
		t.Errorf("%.3f before the first milestone", last)
	}
	for _, m := range milestones {
		w.line(m.prefix + "...")
		for range 3 * int(m.lines) { // more than expected
			w.line("Unpacking something")
		}
	}
	if last < 0.95 || len(steps) < 7 {
		t.Errorf("ended at %.3f with the steps %v", last, steps)
	}
}

// The quoted lines are what apt, dpkg, unshare and the shell print.
func TestAFailedInstallationSaysWhatToDo(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]warmboot.Code{
		"E: Could not resolve 'deb.debian.org'\nE: mmdebstrap failed to run":                                               warmboot.Unavailable,
		"Err:1 http://mirror.invalid trixie InRelease\n  Could not connect\nE: Failed to fetch x":                          warmboot.Unavailable,
		"E: Unable to locate package docker.io":                                                                            warmboot.Invalid,
		"dpkg: error processing archive x: failed to write (No space left on device)\nE: Sub-process /usr/bin/dpkg failed": warmboot.Exhausted,
		"unshare: no line matching user \"nobody\" in /etc/subuid":                                                         warmboot.Unavailable,
		"something nobody has seen yet":                                                                                    warmboot.Internal,
		"":                                                                                                                 warmboot.Internal,
	} {
		w := newWatcher(func(float64, string, string) {})
		lines := strings.Split(said, "\n")
		for _, l := range lines {
			w.line(l)
		}
		err := w.failure(errors.New("exit status 25"))
		if warmboot.CodeOf(err) != want || !strings.Contains(err.Error(), strings.TrimPrefix(lines[0], "dpkg: ")) && strings.HasPrefix(lines[0], "E: ") {
			t.Errorf("%q gives %q (%s); want %s", said, err, warmboot.CodeOf(err), want)
		}
	}
}
