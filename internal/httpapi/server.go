// Package httpapi serves the REST API: it turns HTTP requests into calls of the control plane and its answers into the
// shapes of package api. Every error is an application/problem+json document.
//
// Who asks must send a token (see rules for who may do what), and every change is in the audit log. Where no token is asked for, only
// requests that name a loopback host are answered. What a browser sends on behalf of another site never is.
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
	"golang.org/x/time/rate"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/access"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
	"warmboot/internal/telemetry"
)

// Config is what the API needs.
type Config struct {
	Service *controlplane.Service
	Log     *slog.Logger
	Version string // of warmboot
	Access  *access.Keeper
	// NoAuth asks nobody for a token.
	NoAuth bool
	// RateLimit is how many requests a second one token, and one address, may make for long; twice as many at once. 0: any number.
	RateLimit float64
	// Metrics counts the requests and is served at /metrics; nil: neither.
	Metrics *telemetry.Metrics
	// Joins lets hosts join; nil: this server has the one host that is in its process.
	Joins *Joins
	// BodyTimeout is how long a request's body may take to arrive; 0 means 10 s.
	BodyTimeout time.Duration
}

// Joins makes join tokens.
type Joins struct {
	Authority *authority.Authority
	Store     warmboot.JoinStore
}

type server struct {
	svc     *controlplane.Service
	joins   *Joins
	access  *access.Keeper
	log     *slog.Logger
	version string
	rules   map[string]rule // by the pattern of a route
}

// New returns the handler of the whole API. It fails only by panicking, on a mistake in this package.
func New(c Config) http.Handler {
	s := &server{svc: c.Service, joins: c.Joins, access: c.Access, log: c.Log, version: c.Version}
	if c.BodyTimeout == 0 {
		c.BodyTimeout = 10 * time.Second
	}
	mux := &gate{ServeMux: http.NewServeMux(), s: s}
	s.routes(mux, c)
	perSecond, burst := rate.Limit(c.RateLimit), max(1, int(2*c.RateLimit))
	guard := guard{
		gate: mux, access: c.Access, log: c.Log, noAuth: c.NoAuth,
		perAddress: newLimits(perSecond, burst), perToken: newLimits(perSecond, burst), failures: newLimits(failureRate, failureBurst),
	}
	return observe(c.Log, c.Metrics, secureHeaders(guard.wrap(readBodies(c.BodyTimeout, orProblem(mux)))))
}

// routes registers every route on mux.
func (s *server) routes(mux *gate, c Config) {
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
				{Name: "Access", Description: "Tokens, their roles, and who has changed what."},
				{Name: "Server"},
			},
			Components: &huma.Components{Schemas: huma.NewMapRegistry("#/components/schemas/", huma.DefaultSchemaNamer)},
		},
		// huma looks for "application/problem+json" under what follows the plus sign.
		Formats:       map[string]huma.Format{"application/json": jsonFormat(), "json": jsonFormat()},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{asProblem},
	})
	if !c.NoAuth {
		a.OpenAPI().Components.SecuritySchemes = map[string]*huma.SecurityScheme{"token": {
			Type: "http", Scheme: "bearer", BearerFormat: access.Prefix + " and 64 hexadecimal digits",
			Description: "A token of this server. `x-required-role` of an operation is the least role that its token must have: viewer, operator or admin.",
		}}
		a.OpenAPI().Security = []map[string][]string{{"token": {}}}
	}
	s.containerRoutes(a)
	s.logRoutes(a)
	s.execRoute(a, mux)
	s.snapshotRoutes(a)
	s.imageRoutes(a)
	s.hostRoutes(a)
	s.gcRoute(a)
	s.tokenRoutes(a)
	s.auditRoute(a)
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
	var description []byte
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(description)
	})
	docsRoutes(mux)
	mux.applyRules(a.OpenAPI(), c.NoAuth)
	var err error
	if description, err = json.MarshalIndent(a.OpenAPI(), "", "  "); err != nil {
		panic(err) // the description is made of our own types
	}
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
			requestOf(ctx).code = warmboot.CodeOf(err)
			return nil, problemOf(err)
		}
		requestOf(ctx).entity = madeEntity(out)
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
