package agent

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warmboot/internal/controlplane"
)

func TestLinesAreCutAndStamped(t *testing.T) {
	t.Parallel()
	var got []controlplane.LogLine
	w := &lineWriter{stream: "stdout", emit: func(l controlplane.LogLine) error { got = append(got, l); return nil }}
	for _, piece := range []string{"2026-01-24T12:00:00.5Z hel", "lo\n2026-01-24T12:00:01Z \n", "no stamp\n2026-01-24T12:00:02Z rest"} {
		if _, err := w.Write([]byte(piece)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.flush(); err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, l := range got {
		text = append(text, l.Text)
	}
	if want := []string{"hello\n", "\n", "no stamp\n", "rest"}; strings.Join(text, "|") != strings.Join(want, "|") {
		t.Errorf("got %q, want %q", text, want)
	}
	if got[0].Time.Nanosecond() != 5e8 || got[0].Stream != "stdout" {
		t.Errorf("first line is %+v", got[0])
	}
}

func TestALineThatNeverEndsIsNotKeptForEver(t *testing.T) {
	t.Parallel()
	var longest, total int
	w := &lineWriter{emit: func(l controlplane.LogLine) error {
		longest, total = max(longest, len(l.Text)), total+len(l.Text)
		return nil
	}}
	for range 100 {
		if _, err := w.Write(make([]byte, 10_000)); err != nil {
			t.Fatal(err)
		}
	}
	if longest > maxLogLine || len(w.rest) >= maxLogLine || total+len(w.rest) != 1_000_000 {
		t.Errorf("longest line %d, kept %d, total %d", longest, len(w.rest), total+len(w.rest))
	}
}

func TestSavedLogs(t *testing.T) {
	t.Parallel()
	c := &container{dir: t.TempDir()}
	if got := readAll(t, c, -1); got != "" {
		t.Errorf("a container that never ran has logs: %q", got)
	}
	long := strings.Repeat("x", 5000) // longer than a reader's buffer
	content := `{"Stream":"stdout","Text":"a\n"}` + "\n" + `{"Stream":"stderr","Text":"` + long + `"}` + "\n" + `{"Stream":"stdout","Text":"c\n"}` + "\n"
	if err := os.WriteFile(filepath.Join(c.dir, logFile), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	for tail, want := range map[int]string{-1: "a\n" + long + "c\n", 0: "", 1: "c\n", 2: long + "c\n", 3: "a\n" + long + "c\n", 9: "a\n" + long + "c\n"} {
		if got := readAll(t, c, tail); got != want {
			t.Errorf("tail %d: got %.20q… (%d), want %.20q… (%d)", tail, got, len(got), want, len(want))
		}
	}
}

func readAll(t *testing.T, c *container, tail int) string {
	t.Helper()
	r, err := savedLogs(c, tail)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var text strings.Builder
	for {
		l, err := r.Next()
		if errors.Is(err, io.EOF) {
			return text.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		text.WriteString(l.Text)
	}
}
