// Package span says what is being done, how long it takes and what it is a part of, for traces. A span is only made below another one. Where
// nobody has begun a trace, which only telemetry.Tracing does, nothing is made and next to nothing is spent.
//
// It stands apart from telemetry because it is for everybody, the guest agent too, and brings no exporter with it.
package span

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"warmboot"
)

// Tracer is the name under which spans are made.
const Tracer = "warmboot"

// Span is something that is being done. The zero Span is nothing, and may be used like any other.
type Span struct{ s trace.Span }

// Of makes a span of OpenTelemetry's ours.
func Of(s trace.Span) Span { return Span{s} }

// Start begins a span below the one in the context. Attributes are given as names and values in turn. End must be called.
func Start(ctx context.Context, name string, attributes ...any) (context.Context, Span) {
	return start(ctx, trace.SpanKindInternal, name, attributes)
}

// StartCall is Start for a call of somebody else, who is given Header.
func StartCall(ctx context.Context, name string, attributes ...any) (context.Context, Span) {
	return start(ctx, trace.SpanKindClient, name, attributes)
}

func start(ctx context.Context, kind trace.SpanKind, name string, attributes []any) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.SpanContext().IsSampled() { // that may have ended already: what goes on in the background is a part of it all the same
		return ctx, Span{}
	}
	ctx, s := parent.TracerProvider().Tracer(Tracer).Start(ctx, name, trace.WithSpanKind(kind), trace.WithAttributes(Attributes(attributes)...))
	return ctx, Span{s}
}

// Attributes are OpenTelemetry's of names and values in turn. An empty value is left out.
func Attributes(pairs []any) []attribute.KeyValue {
	var all []attribute.KeyValue
	for i := 0; i+1 < len(pairs); i += 2 {
		key := attribute.Key("warmboot." + fmt.Sprint(pairs[i]))
		switch v := pairs[i+1].(type) {
		case int:
			all = append(all, key.Int(v))
		case int64:
			all = append(all, key.Int64(v))
		case bool:
			all = append(all, key.Bool(v))
		case time.Duration:
			all = append(all, key.Float64(v.Seconds()))
		default:
			if text := fmt.Sprint(v); text != "" {
				all = append(all, key.String(text))
			}
		}
	}
	return all
}

// Set adds attributes.
func (s Span) Set(attributes ...any) {
	if s.s != nil {
		s.s.SetAttributes(Attributes(attributes)...)
	}
}

// Event notes that something happened.
func (s Span) Event(name string) {
	if s.s != nil {
		s.s.AddEvent(name)
	}
}

// End ends the span. What it says of an error is its code and its text; one that only says that nobody waits any more is none.
func (s Span) End(err error) {
	if s.s == nil {
		return
	}
	if err != nil {
		code := warmboot.CodeOf(err)
		s.s.SetAttributes(attribute.String("error.type", string(code)))
		if code != warmboot.Canceled {
			s.s.SetStatus(codes.Error, err.Error())
		}
	}
	s.s.End()
}

// Carry returns to with the span of from, for what goes on when from has ended.
func Carry(to, from context.Context) context.Context {
	s := trace.SpanFromContext(from)
	if !s.SpanContext().IsValid() {
		return to
	}
	return trace.ContextWithSpan(to, s)
}

// w3c is how a trace crosses from one process to another: https://www.w3.org/TR/trace-context/.
var w3c = propagation.TraceContext{}

// Inject puts what a request is a part of into its headers.
func Inject(ctx context.Context, h http.Header) { w3c.Inject(ctx, propagation.HeaderCarrier(h)) }

// Extract returns a context with what a request's headers say that it is a part of.
func Extract(ctx context.Context, h http.Header) context.Context {
	return w3c.Extract(ctx, propagation.HeaderCarrier(h))
}

const traceparent = "traceparent"

// Header is the span in the context as text; empty if there is none.
func Header(ctx context.Context) string {
	carrier := propagation.MapCarrier{}
	w3c.Inject(ctx, carrier)
	return carrier[traceparent]
}

// Remote returns a context below the span that a text of Header stands for. Any other text changes nothing.
func Remote(ctx context.Context, header string) context.Context {
	return w3c.Extract(ctx, propagation.MapCarrier{traceparent: header})
}

// TraceID is that of the trace that the context belongs to; empty if it belongs to none.
func TraceID(ctx context.Context) string {
	if c := trace.SpanContextFromContext(ctx); c.HasTraceID() {
		return c.TraceID().String()
	}
	return ""
}
