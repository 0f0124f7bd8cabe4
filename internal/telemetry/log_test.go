package telemetry

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"testing"

	"warmboot/internal/telemetry/span"
)

func TestLinesAreForPeople(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := NewLog(&out, slog.LevelInfo).With("container_id", "c1")
	log.Debug("not shown")
	log.Info("Container abc123 VM created: vm-def456 via warm boot in 8.23s", "why", "two words")
	log.WithGroup("g").Warn("it's\nmultiline", "k", 1)
	want := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO Container abc123 VM created: vm-def456 via warm boot in 8\.23s container_id=c1 why="two words"
\S+ WARN it's multiline container_id=c1 g\.k=1
$`)
	if !want.MatchString(out.String()) {
		t.Errorf("got %q", out.String())
	}
}

func TestJSONLinesAreForPrograms(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := NewJSONLog(&out, slog.LevelInfo)
	log.Debug("not shown")
	log.Info("Container abc123 ended", "container_id", "c1", "exit_code", 3)
	want := regexp.MustCompile(`^\{"time":"[^"]+Z","level":"INFO","msg":"Container abc123 ended","container_id":"c1","exit_code":3\}\n$`)
	if !want.MatchString(out.String()) {
		t.Errorf("got %q", out.String())
	}
}

func TestLogTellsTheTrace(t *testing.T) {
	t.Parallel()
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	ctx := span.Remote(t.Context(), "00-"+id+"-00f067aa0ba902b7-01")
	var lines, objects bytes.Buffer
	for _, log := range []*slog.Logger{NewLog(&lines, slog.LevelInfo), NewJSONLog(&objects, slog.LevelInfo)} {
		log = log.With("component", "jobs")
		log.InfoContext(ctx, "traced")
		log.InfoContext(t.Context(), "not traced")
	}
	if got := lines.String(); !strings.Contains(got, "INFO traced component=jobs trace_id="+id+"\n") || strings.Count(got, "trace_id") != 1 {
		t.Error(got)
	}
	if got := objects.String(); !strings.Contains(got, `"msg":"traced","component":"jobs","trace_id":"`+id+`"}`) || strings.Count(got, "trace_id") != 1 {
		t.Error(got)
	}
}
