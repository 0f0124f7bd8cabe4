// Package httpapi serves the REST API: it turns HTTP requests into calls of the control plane and its answers into the
// shapes of package api. Every error is an application/problem+json document.
//
// The API is meant for the machine it runs on. Without a token it answers only requests that name a loopback host, and
// never requests that a browser sends on behalf of another site; with a token, only those that carry it.
package httpapi

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"warmboot/api"
	"warmboot/internal/controlplane"
	"warmboot/internal/telemetry"
)

// Config is what the API needs.
type Config struct {
	Service *controlplane.Service
	Log     *slog.Logger
	Token   string // asked for as a Bearer token; empty: none is needed
	Version string // of warmboot
	// AllowedHosts are host names, beside those of loopback, that the Host header may have when there is no token.
	AllowedHosts []string
	// Metrics counts the requests and is served at /metrics; nil: neither.
	Metrics *telemetry.Metrics
	// BodyTimeout is how long a request's body may take to arrive; 0 means 10 s.
	BodyTimeout time.Duration
}

type server struct {
	svc     *controlplane.Service
	log     *slog.Logger
	version string
}

// New returns the handler of the whole API. It fails only by panicking, on a mistake in this package.
func New(c Config) http.Handler {
	s := &server{svc: c.Service, log: c.Log, version: c.Version}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = 10 * time.Second
	}
	mux := http.NewServeMux()
	s.routes(mux, c)
	guard := guard{token: c.Token, hosts: c.AllowedHosts}
	return observe(c.Log, c.Metrics, secureHeaders(guard.wrap(readBodies(c.BodyTimeout, orProblem(mux)))))
}

// routes registers every route on mux.
func (s *server) routes(mux *http.ServeMux, c Config) {
	a := humago.New(mux, huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{
				Title: "warmboot", Version: "v1",
				Description: "Containers in microVMs of their own, started from frozen machines in which Docker already runs. Every error is an application/problem+json document with a stable `code`.",
			},
			Tags: []*huma.Tag{
				{Name: "Containers", Description: "Each runs in a microVM of its own."},
				{Name: "Runtime snapshots", Description: "Frozen microVMs with Docker running, from which containers start."},
				{Name: "Hosts", Description: "The machines that run microVMs."},
				{Name: "Images", Description: "Runtime images: kernel, initrd and root disk of the microVMs."},
				{Name: "Server"},
			},
			Components: &huma.Components{Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)},
		},
		// huma looks for "application/problem+json" under what follows the plus sign.
		Formats:       map[string]huma.Format{"application/json": jsonFormat(), "json": jsonFormat()},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{asProblem},
	})
	if c.Token != "" {
		a.OpenAPI().Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {Type: "http", Scheme: "bearer"}}
		a.OpenAPI().Security = []map[string][]string{{"token": {}}}
	}
	s.containerRoutes(a)
	s.logRoutes(a)
	s.execRoute(a, mux)
	s.snapshotRoutes(a)
	s.imageRoutes(a)
	s.hostRoutes(a)
	s.gcRoute(a)
	op(a, "get-version", http.MethodGet, "/v1/version", "Server", "Tell what is serving", "", func(ctx context.Context, _ *struct{}) (*answer[api.Version], error) {
		v := api.Version{Version: s.version, GoVersion: runtime.Version()}
		hosts, err := s.svc.Hosts(ctx)
		if err != nil {
			return nil, err
		}
		if len(hosts) > 0 {
			v.VMM, v.VMMWhy = hosts[0].Inventory.VMM, hosts[0].Inventory.VMMWhy
		}
		return &answer[api.Version]{v}, nil
	})
	op(a, "get-health", http.MethodGet, "/healthz", "Server", "Tell that the server answers", "Needs no token.", func(context.Context, *struct{}) (*answer[api.OK], error) {
		return &answer[api.OK]{api.OK{OK: true}}, nil
	})
	s.eventRoute(a)
	s.readyRoute(a)
	s.metricsRoute(a, mux, c.Metrics)
	tidy(a.OpenAPI().Components.Schemas.Map())
	description, err := json.MarshalIndent(a.OpenAPI(), "", "  ")
	if err != nil {
		panic(err) // the description is made of our own types
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(description)
	})
	docsRoutes(mux)
}

// tidy takes out of the description what is never sent: huma's own errors, and null for a list in an answer.
func tidy(schemas map[string]*huma.Schema) {
	delete(schemas, "ErrorModel")
	delete(schemas, "ErrorDetail")
	for name, s := range schemas {
		for _, p := range s.Properties {
			if p.Type == huma.TypeArray && (name == "Container" || strings.HasPrefix(name, "Items")) {
				p.Nullable = false
			}
		}
	}
}

// answer is a response with a body and nothing else.
type answer[T any] struct {
	Body T
}

// op registers an operation. Its handler's errors become problems.
func op[I, O any](a huma.API, id, method, path, tag, summary, description string, handle func(context.Context, *I) (*O, error), more ...func(*huma.Operation)) {
	o := huma.Operation{
		OperationID: id, Method: method, Path: path,
		Tags: []string{tag}, Summary: summary, Description: description,
		Responses: map[string]*huma.Response{"default": problemResponse(a)},
		// readBodies has read the body already, with a limit of time and size.
		BodyReadTimeout: -1, MaxBodyBytes: -1,
	}
	for _, m := range more {
		m(&o)
	}
	huma.Register(a, o, func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			return nil, problemOf(err)
		}
		return out, nil
	})
}

// created makes an operation answer 201.
func created(o *huma.Operation) { o.DefaultStatus = http.StatusCreated }

func jsonFormat() huma.Format {
	return huma.Format{
		Marshal: func(w io.Writer, v any) error {
			enc := json.NewEncoder(w)
			enc.SetEscapeHTML(false)
			return enc.Encode(v)
		},
		Unmarshal: json.Unmarshal,
	}
}
