package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"warmboot/api"
	"warmboot/internal/telemetry"
)

// readiness is an answer whose status tells the same as its body.
type readiness struct {
	Status int
	Body   api.Readiness
}

func (s *server) readyRoute(a huma.API) {
	op(a, "get-readiness", http.MethodGet, "/readyz", "Server", "Tell whether requests can be served", "Answers 503 with the same body when something that every request needs does not answer.",
		func(ctx context.Context, _ *struct{}) (*readiness, error) {
			out := &readiness{Status: http.StatusOK, Body: api.Readiness{Ready: true}}
			for _, r := range s.svc.Ready(ctx) {
				check := api.ReadinessCheck{Name: r.Name, OK: r.Err == nil}
				if r.Err != nil {
					check.Error = r.Err.Error()
					out.Status, out.Body.Ready = http.StatusServiceUnavailable, false
				}
				out.Body.Checks = append(out.Body.Checks, check)
			}
			return out, nil
		})
}

// metricsRoute serves what Prometheus scrapes, which is no JSON: it is described by hand.
func (s *server) metricsRoute(a huma.API, mux *gate, m *telemetry.Metrics) {
	const format = "text/plain; version=0.0.4"
	a.OpenAPI().AddOperation(&huma.Operation{
		OperationID: "get-metrics", Method: http.MethodGet, Path: "/metrics", Tags: []string{"Server"}, Summary: "Metrics for Prometheus",
		Responses: map[string]*huma.Response{
			"200":     {Description: "OK", Content: map[string]*huma.MediaType{format: {Schema: &huma.Schema{Type: huma.TypeString}}}},
			"default": problemResponse(a),
		},
	})
	if m != nil {
		mux.HandleFunc("GET /metrics", m.Handler().ServeHTTP)
	}
}
