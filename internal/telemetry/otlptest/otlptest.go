// Package otlptest is a collector for tests: it takes traces as OpenTelemetry's own does, by OTLP over HTTP, and shows them.
package otlptest

import (
	"compress/gzip"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// Span is a span as it was sent.
type Span struct {
	Trace, ID, Parent string // hexadecimal; Parent is empty for the first of a trace
	Name, Kind        string
	Service           string
	Attributes        map[string]string
	Events            []string
	Error             string // of a span that failed
	Took              time.Duration
}

// Collector takes traces.
type Collector struct {
	URL string // for OTEL_EXPORTER_OTLP_ENDPOINT

	mu    sync.Mutex
	spans []Span
	more  chan struct{}
	fails bool
}

// Start starts a collector that ends with the test.
func Start(t testing.TB) *Collector {
	t.Helper()
	c := &Collector{more: make(chan struct{})}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.take(w, r); err != nil {
			t.Errorf("the collector was sent what is no trace: %v", err)
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(server.Close)
	c.URL = server.URL
	return c
}

// Fail makes the collector refuse what it is sent, or take it again.
func (c *Collector) Fail(fails bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fails = fails
}

func (c *Collector) take(w http.ResponseWriter, r *http.Request) error {
	body := io.Reader(r.Body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		zip, err := gzip.NewReader(body)
		if err != nil {
			return err
		}
		body = zip
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	var req collector.ExportTraceServiceRequest
	if err := proto.Unmarshal(text, &req); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fails {
		w.WriteHeader(http.StatusForbidden) // which no exporter tries again
		return nil
	}
	for _, r := range req.GetResourceSpans() {
		about := attributes(r.GetResource().GetAttributes())
		for _, s := range r.GetScopeSpans() {
			for _, one := range s.GetSpans() {
				c.spans = append(c.spans, spanOf(one, about["service.name"]))
			}
		}
	}
	close(c.more)
	c.more = make(chan struct{})
	answer, err := proto.Marshal(&collector.ExportTraceServiceResponse{})
	if err == nil {
		w.Header().Set("Content-Type", "application/x-protobuf")
		_, err = w.Write(answer)
	}
	return err
}

func spanOf(s *tracev1.Span, service string) Span {
	out := Span{
		Trace: hex.EncodeToString(s.GetTraceId()), ID: hex.EncodeToString(s.GetSpanId()), Parent: hex.EncodeToString(s.GetParentSpanId()), Name: s.GetName(),
		Kind: strings.ToLower(strings.TrimPrefix(s.GetKind().String(), "SPAN_KIND_")), Service: service, Attributes: attributes(s.GetAttributes()),
		Took: time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano()),
	}
	for _, e := range s.GetEvents() {
		out.Events = append(out.Events, e.GetName())
	}
	if s.GetStatus().GetCode() == tracev1.Status_STATUS_CODE_ERROR {
		out.Error = s.GetStatus().GetMessage()
	}
	return out
}

func attributes(all []*common.KeyValue) map[string]string {
	out := map[string]string{}
	for _, a := range all {
		text := a.GetValue().GetStringValue()
		if text == "" {
			text = strings.TrimSpace(a.GetValue().String())
			_, text, _ = strings.Cut(text, ":")
		}
		out[a.GetKey()] = text
	}
	return out
}

// Spans are those that have been sent so far.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.spans)
}

// Await waits until a span that fits has been sent, and fails the test if none comes in time.
func (c *Collector) Await(t testing.TB, within time.Duration, fits func(Span) bool) Span {
	t.Helper()
	timeout := time.After(within)
	for {
		c.mu.Lock()
		i, more := slices.IndexFunc(c.spans, fits), c.more
		c.mu.Unlock()
		if i >= 0 {
			return c.Spans()[i]
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("no such span was sent, but %s", Paths(c.Spans()))
		}
	}
}

// Paths tells where each span stands: the names of those above it, and its own, sorted.
func Paths(spans []Span) []string {
	byID := map[string]Span{}
	for _, s := range spans {
		byID[s.ID] = s
	}
	var paths []string
	for _, s := range spans {
		path := s.Name
		for above, ok := byID[s.Parent]; ok; above, ok = byID[above.Parent] {
			path = above.Name + " > " + path
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}
