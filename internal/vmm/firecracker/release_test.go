package firecracker

import (
	"strings"
	"testing"

	"warmboot"
)

func TestParseRelease(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Release{
		"1.15.1": {1, 15, 1}, "v1.7.0": {1, 7, 0}, "1.17.0-dev": {1, 17, 0}, "1.12": {1, 12, 0}, "v1.10.1-12-gabcdef": {1, 10, 1},
	} {
		if got, err := ParseRelease(text); err != nil || got != want {
			t.Errorf("%q is read as %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "1", "one.two", "1.2.3.4", "1.2.3; rm -rf", "99999.1.1", "-1.2.3"} {
		if got, err := ParseRelease(text); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%q is read as %v, %v", text, got, err)
		}
	}
}

func TestKnows(t *testing.T) {
	t.Parallel()
	for since, c := range map[string]struct{ yes, no []string }{
		"":                   {yes: []string{"1.7.0", "1.17.0"}},
		"1.12":               {yes: []string{"1.12.0", "1.12.1", "1.17.0"}, no: []string{"1.7.0", "1.11.9"}},
		"1.14.4 1.15.1 1.16": {yes: []string{"1.14.4", "1.14.5", "1.15.1", "1.16.0", "1.17.0"}, no: []string{"1.13.9", "1.14.3", "1.15.0"}},
	} {
		for want, all := range map[bool][]string{true: c.yes, false: c.no} {
			for _, text := range all {
				r, err := ParseRelease(text)
				if err != nil {
					t.Fatal(err)
				}
				if r.knows(since) != want {
					t.Errorf("%s knows what came with %q: %v", r, since, !want)
				}
			}
		}
	}
}

// Whoever runs a release with a known fault is told, and nobody else is bothered.
func TestAdvice(t *testing.T) {
	t.Parallel()
	for text, c := range map[string]struct {
		says string // "" for no warning
		fit  fitness
	}{
		"1.6.0": {"too old", unusable}, "2.0.0": {"does not know", unusable}, "0.25.0": {"does not know", unusable},
		"1.7.0": {"distribution's kernel", flawed}, "1.12.1": {"preview", fit}, "1.13.1": {"clock", fit}, "1.14.3": {"clock", fit}, "1.15.0": {"clock", fit},
		"1.16.0": {"vsock", flawed}, "1.16.1": {"pause", fit},
		"1.14.4": {}, "1.15.1": {}, "1.16.2": {}, "1.17.0": {}, "1.17.3": {},
		"1.18.0": {"newer", fit},
	} {
		r, err := ParseRelease(text)
		if err != nil {
			t.Fatal(err)
		}
		warning, f := r.advice()
		if f != c.fit || (warning == "") != (c.says == "") || !strings.Contains(warning, c.says) {
			t.Errorf("%s: %q, fitness %d", r, warning, f)
		}
		if c.says != "" && c.says != "newer" && !strings.Contains(warning, "1.16.2 or later") {
			t.Errorf("%s: %q does not say what to install", r, warning)
		}
	}
}
