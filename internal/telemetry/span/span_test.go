package span_test

import (
	"context"
	"errors"
	"net/http"
	"testing"

	"warmboot/internal/telemetry/span"
)

func TestNothingIsMadeBelowNothing(t *testing.T) {
	t.Parallel()
	ctx, s := span.Start(t.Context(), "x", "key", "value")
	s.Set("key", 1)
	s.Event("something")
	s.End(errors.New("failed"))
	if ctx != t.Context() || s != (span.Span{}) || span.Header(ctx) != "" || span.TraceID(ctx) != "" {
		t.Error("there is a span")
	}
	h := http.Header{}
	if span.Inject(ctx, h); len(h) != 0 {
		t.Error(h)
	}
}

func TestTracesCrossAsText(t *testing.T) {
	t.Parallel()
	const id, header = "4bf92f3577b34da6a3ce929d0e0e4736", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	ctx := span.Remote(t.Context(), header)
	if span.Header(ctx) != header || span.TraceID(ctx) != id {
		t.Errorf("%q, %q", span.Header(ctx), span.TraceID(ctx))
	}
	h := http.Header{}
	span.Inject(ctx, h)
	if got := span.Extract(t.Context(), h); span.Header(got) != header || h.Get("traceparent") != header {
		t.Errorf("%v", h)
	}
	carried := span.Carry(context.Background(), ctx)
	if span.Header(carried) != header {
		t.Error("it was not carried over")
	}
	// Another process's span is made below by who has an exporter, not here.
	if _, s := span.Start(ctx, "x"); span.Header(ctx) != header {
		t.Errorf("%+v", s)
	}
	for _, bad := range []string{"", "x", "00-0-0-01", header + "x", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "ff" + header[2:]} {
		if ctx := span.Remote(t.Context(), bad); span.TraceID(ctx) != "" {
			t.Errorf("%q counts for a trace", bad)
		}
	}
}

// TestNotTracingCostsNothing: without a trace, a span allocates no memory.
func TestNotTracingCostsNothing(t *testing.T) {
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() {
		_, s := span.Start(ctx, "x", "key", "value")
		s.End(nil)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkUntraced is what a span costs where nothing is traced.
func BenchmarkUntraced(b *testing.B) {
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		_, s := span.Start(ctx, "x", "key", "value")
		s.End(nil)
	}
}
