package telemetry

import (
	"bytes"
	"log/slog"
	"regexp"
	"testing"
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
