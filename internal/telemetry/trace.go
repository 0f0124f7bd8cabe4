package telemetry

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"warmboot"
	"warmboot/internal/telemetry/span"
)

// Tracing sends traces to a collector. A nil Tracing traces nothing.
type Tracing struct {
	provider *sdktrace.TracerProvider
	tracer   trace.Tracer
	log      *slog.Logger
}

// TracingConfig says who is traced.
type TracingConfig struct {
	Version  string
	Instance string // this server's name among others
	// Endpoint is the address of the collector, http://host:port; empty: what the environment says.
	Endpoint string
	Log      *slog.Logger
}

// The environment variables that are looked at here; the exporter, the sampler and the batches have many more. All of them are
// OpenTelemetry's own: https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
const (
	endpointVar       = "OTEL_EXPORTER_OTLP_ENDPOINT"
	tracesEndpointVar = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
	protocolVar       = "OTEL_EXPORTER_OTLP_PROTOCOL"
	tracesProtocolVar = "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
	disabledVar       = "OTEL_SDK_DISABLED"
	exporterVar       = "OTEL_TRACES_EXPORTER"
)

// NewTracing traces if the environment names a collector (OTEL_EXPORTER_OTLP_ENDPOINT), by OTLP over HTTP; else it returns nil. Close must be
// called.
func NewTracing(ctx context.Context, c TracingConfig) (*Tracing, error) {
	endpoint := cmp.Or(c.Endpoint, os.Getenv(tracesEndpointVar), os.Getenv(endpointVar))
	if endpoint == "" || os.Getenv(disabledVar) == "true" {
		return nil, nil
	}
	if which := os.Getenv(exporterVar); which != "" && which != "otlp" {
		if which != "none" {
			c.Log.Warn("Nothing is traced: " + exporterVar + " is " + which + ", and the one exporter that there is is otlp")
		}
		return nil, nil
	}
	protocol := cmp.Or(os.Getenv(tracesProtocolVar), os.Getenv(protocolVar))
	if protocol != "" && protocol != "http/protobuf" {
		c.Log.Warn("Nothing is traced: the protocol to the collector is " + protocol + ", and the one that is spoken is http/protobuf; set " + tracesProtocolVar + " to that, and " + tracesEndpointVar + " to where it is understood")
		return nil, nil
	}
	const op = "begin tracing"
	var options []otlptracehttp.Option
	if c.Endpoint != "" {
		options = append(options, otlptracehttp.WithEndpointURL(c.Endpoint+"/v1/traces"))
	}
	sender, err := otlptracehttp.New(ctx, options...)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Invalid, Op: op, Msg: "correct the OTEL_EXPORTER_OTLP_ variables", Err: err}
	}
	about, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithAttributes(
		attribute.String("service.name", "warmboot"), attribute.String("service.version", c.Version), attribute.String("service.instance.id", c.Instance),
	), resource.WithFromEnv())
	if err != nil {
		c.Log.Warn("What the traces say of this server is not all there is to say", "err", err)
	}
	provider := sdktrace.NewTracerProvider(sdktrace.WithBatcher(&patient{Exporter: sender, log: c.Log}), sdktrace.WithResource(about))
	c.Log.Info("Traces are sent to a collector", "endpoint", withoutPassword(endpoint))
	return &Tracing{provider: provider, tracer: provider.Tracer(span.Tracer), log: c.Log}, nil
}

func withoutPassword(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "" // the exporter has said what it makes of it
	}
	return u.Redacted()
}

// flushTimeout is how long Close tries to send what is left.
const flushTimeout = 3 * time.Second

// Close sends what is left, if it can, and ends tracing.
func (t *Tracing) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("The last traces could not be sent to the collector", "err", err)
	}
}

// Start begins a span: below the one in the context, in whichever process that is, or else the first of a new trace.
func (t *Tracing) Start(ctx context.Context, name string, attributes ...any) (context.Context, span.Span) {
	if t == nil {
		return ctx, span.Span{}
	}
	ctx, s := t.tracer.Start(ctx, name, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(span.Attributes(attributes)...))
	return ctx, span.Of(s)
}

// Handler makes a span of each request that is a part of something; what nobody traces, like signs of life, begins no trace.
func (t *Tracing) Handler(next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := span.Extract(r.Context(), r.Header)
		if span.TraceID(ctx) == "" {
			next.ServeHTTP(w, r)
			return
		}
		ctx, s := t.tracer.Start(ctx, r.URL.Path, trace.WithSpanKind(trace.SpanKindServer))
		defer s.End()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// Request is a request that is being answered.
type Request struct{ s trace.Span }

// StartRequest begins the span of a request, below the one that its headers name. End must be called. What answers whether the server lives is not
// traced.
func (t *Tracing) StartRequest(r *http.Request) (context.Context, Request) {
	ctx := r.Context()
	if t == nil || r.URL.Path == "/healthz" || r.URL.Path == "/readyz" || r.URL.Path == "/metrics" {
		return ctx, Request{}
	}
	ctx, s := t.tracer.Start(span.Extract(ctx, r.Header), r.Method, trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(
		attribute.String("http.request.method", r.Method), attribute.String("url.path", r.URL.Path), attribute.String("url.scheme", scheme(r)),
		attribute.String("user_agent.original", r.UserAgent()),
	))
	return ctx, Request{s}
}

func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}

// End says how the request was answered. route is the pattern that it matched, as "GET /v1/containers"; empty for none.
func (q Request) End(route string, status int, id string) {
	if q.s == nil {
		return
	}
	q.s.SetAttributes(attribute.Int("http.response.status_code", status), attribute.String("warmboot.request_id", id))
	if route != "" {
		q.s.SetName(route)
		_, path, _ := strings.Cut(route, " ")
		q.s.SetAttributes(attribute.String("http.route", path))
	}
	if status >= 500 {
		q.s.SetStatus(codes.Error, http.StatusText(status))
	}
	q.s.End()
}

// patient is an exporter that tells the log when traces cannot be sent, once in a while, and nobody else: what is traced goes on.
type patient struct {
	*otlptrace.Exporter
	log *slog.Logger

	mu   sync.Mutex
	told time.Time
	lost int
}

// tellEvery is how often it is said that traces are lost.
const tellEvery = time.Minute

// ExportSpans implements sdktrace.SpanExporter.
func (p *patient) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := p.Exporter.ExportSpans(ctx, spans)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		return nil
	}
	p.lost += len(spans)
	if time.Since(p.told) > tellEvery {
		p.log.Warn("Traces could not be sent to the collector and are lost; everything else goes on", "spans", p.lost, "err", err)
		p.told, p.lost = time.Now(), 0
	}
	return nil
}
