// Package telemetry is how warmboot tells what it does to those who run it.
package telemetry

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"warmboot/internal/telemetry/span"
)

// NewLog returns a logger that writes lines for people who also grep: time, level and message as they are, then the
// attributes as key=value.
//
//	2026-01-24T12:00:00.123Z INFO Container abc123 VM created: vm-def456 via warm boot in 0.23s container_id=…
func NewLog(w io.Writer, level slog.Leveler) *slog.Logger {
	h := &lineHandler{w: w, mu: &sync.Mutex{}, buf: &bytes.Buffer{}}
	h.attrs = slog.NewTextHandler(h.buf, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
			return slog.Attr{}
		}
		return a
	}})
	return slog.New(traced{h})
}

// NewJSONLog returns a logger that writes one JSON object a line, for programs that collect logs. Times are UTC.
func NewJSONLog(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(traced{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
			a.Value = slog.TimeValue(a.Value.Time().UTC())
		}
		return a
	}})})
}

// traced adds the trace that what is logged belongs to.
type traced struct{ slog.Handler }

func (h traced) Handle(ctx context.Context, r slog.Record) error {
	if id := span.TraceID(ctx); id != "" {
		r.AddAttrs(slog.String("trace_id", id))
	}
	return h.Handler.Handle(ctx, r)
}

func (h traced) WithAttrs(attrs []slog.Attr) slog.Handler { return traced{h.Handler.WithAttrs(attrs)} }
func (h traced) WithGroup(name string) slog.Handler       { return traced{h.Handler.WithGroup(name)} }

// lineHandler writes what precedes the attributes itself and leaves those to the standard library.
type lineHandler struct {
	attrs slog.Handler // writes to buf
	buf   *bytes.Buffer
	mu    *sync.Mutex // guards buf and w
	w     io.Writer
}

func (h *lineHandler) Enabled(ctx context.Context, l slog.Level) bool { return h.attrs.Enabled(ctx, l) }

func (h *lineHandler) Handle(ctx context.Context, r slog.Record) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.buf.Reset()
	// A message may carry what a guest wrote: it must not be able to forge a line.
	h.buf.WriteString(r.Time.UTC().Format("2006-01-02T15:04:05.000Z07:00") + " " + r.Level.String() + " " + strings.Join(strings.Fields(r.Message), " ") + " ")
	r.Time = time.Time{}
	if err := h.attrs.Handle(ctx, r); err != nil {
		return err
	}
	line := bytes.TrimRight(h.buf.Bytes(), " \n")
	_, err := h.w.Write(append(line, '\n'))
	return err
}

func (h *lineHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	next := *h
	next.attrs = h.attrs.WithAttrs(attrs)
	return &next
}

func (h *lineHandler) WithGroup(name string) slog.Handler {
	next := *h
	next.attrs = h.attrs.WithGroup(name)
	return &next
}
