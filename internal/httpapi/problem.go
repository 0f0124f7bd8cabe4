package httpapi

import (
	"encoding/json"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
)

const problemType = "application/problem+json"

// problemError is an error on its way out, in the form that huma writes as it is.
type problemError struct {
	api.Problem
	cause error
}

func (p *problemError) Error() string             { return p.Detail }
func (p *problemError) Unwrap() error             { return p.cause }
func (p *problemError) GetStatus() int            { return p.Status }
func (p *problemError) ContentType(string) string { return problemType }
func (p *problemError) MarshalJSON() ([]byte, error) {
	return json.Marshal(p.Problem)
}

// problemOf describes any error.
func problemOf(err error) *problemError {
	code := warmboot.CodeOf(err)
	return &problemError{Problem: newProblem(code.Outcome().HTTP, code, err.Error()), cause: err}
}

func newProblem(status int, code warmboot.Code, detail string) api.Problem {
	title := http.StatusText(status)
	if title == "" {
		title = "Client Closed Request" // 499, the one that has no official name
	}
	return api.Problem{Title: title, Status: status, Detail: detail, Code: string(code)}
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, p api.Problem) {
	w.Header().Set("Content-Type", problemType)
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that is gone needs no answer
}

// asProblem gives what huma itself finds wrong with a request our shape. It does not echo the values that were sent: they
// may hold passwords.
func asProblem(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := newProblem(m.Status, codeOfStatus(m.Status), m.Detail)
	for _, d := range m.Errors {
		if d != nil {
			p.Errors = append(p.Errors, api.ProblemDetail{Message: d.Message, Location: d.Location})
		}
	}
	if len(p.Errors) > 0 {
		p.Detail = "the request is not valid; errors says where and why, /docs how it should be"
	}
	return p, nil
}

// codeOfStatus is the code of what goes wrong before a request reaches the control plane.
func codeOfStatus(status int) warmboot.Code {
	switch status {
	case http.StatusNotFound:
		return warmboot.NotFound
	case http.StatusRequestTimeout:
		return warmboot.Timeout
	case http.StatusRequestEntityTooLarge:
		return warmboot.TooLarge
	}
	if status >= 500 {
		return warmboot.Internal
	}
	return warmboot.Invalid
}

// problemResponse describes the answer of an operation that fails.
func problemResponse(a huma.API) *huma.Response {
	return &huma.Response{
		Description: "Error",
		Content: map[string]*huma.MediaType{problemType: {
			Schema: a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Problem](), true, ""),
		}},
	}
}

// orProblem answers in our shape where mux has no route, or none for the method.
func orProblem(mux *gate) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if requestOf(r.Context()).pattern != "" {
			mux.ServeHTTP(w, r)
			return
		}
		refusal := &headersOnly{header: http.Header{}}
		mux.ServeHTTP(refusal, r)
		if allow := refusal.header.Get("Allow"); allow != "" {
			w.Header().Set("Allow", allow)
			writeProblem(w, newProblem(http.StatusMethodNotAllowed, warmboot.Invalid, r.Method+" is not possible here; "+allow+" is"))
			return
		}
		writeProblem(w, newProblem(http.StatusNotFound, warmboot.NotFound, "there is nothing at this address; /docs lists what there is"))
	})
}

// headersOnly takes an answer and keeps only its headers.
type headersOnly struct{ header http.Header }

func (h *headersOnly) Header() http.Header         { return h.header }
func (h *headersOnly) Write(p []byte) (int, error) { return len(p), nil }
func (h *headersOnly) WriteHeader(int)             {}
