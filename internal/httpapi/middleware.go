package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"warmboot"
	"warmboot/internal/access"
	"warmboot/internal/telemetry"
)

// bodyLimit is how large a request's body may be, in bytes.
const bodyLimit = 1 << 20

// request is what is found out about a request while it is answered.
type request struct {
	id      string
	source  string           // the address that it comes from
	pattern string           // of its route; empty if there is none
	who     access.Principal // empty where nobody is asked for a token
	secret  string           // that they are known by
	// What an operation has to say for the audit log.
	entity   string // id of what it made
	made     func() // what it was asked to make is made; what is left of the request is to wait for it
	repeated bool   // it was made by the same request before
	code     warmboot.Code
}

type requestKey struct{}

// requestOf finds what observe has put into a request's context.
func requestOf(ctx context.Context) *request { return ctx.Value(requestKey{}).(*request) }

// observe gives each request an id, logs, counts and traces it, and turns a panic into an answer.
func observe(log *slog.Logger, metrics *telemetry.Metrics, tracing *telemetry.Tracing, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := warmboot.NewID().Short()
		q := &request{id: id}
		ctx, traced := tracing.StartRequest(r)
		r = r.WithContext(context.WithValue(ctx, requestKey{}, q))
		w.Header().Set("X-Request-Id", id)
		rec := &recorder{ResponseWriter: w}
		start := time.Now()
		defer func() {
			p := recover()
			if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // a panic's value, which nobody wraps
				log.ErrorContext(ctx, "A request made the server panic", "request_id", id, "panic", p, "stack", string(debug.Stack()))
				if rec.status == 0 {
					writeProblem(rec, newProblem(http.StatusInternalServerError, warmboot.Internal, "a fault of warmboot's; its log has the details under request "+id))
				}
			}
			took := time.Since(start)
			if metrics != nil {
				metrics.Request(q.pattern, r.Method, rec.status, took)
			}
			traced.End(q.pattern, rec.status, id)
			level := slog.LevelDebug
			if rec.status >= 500 {
				level = slog.LevelError
			}
			log.Log(r.Context(), level, "Request", "request_id", id, "method", r.Method, "path", r.URL.Path, "who", q.who.Name, "status", rec.status, "took", took, "problem", rec.problem())
			if p != nil && rec.status != http.StatusInternalServerError {
				panic(http.ErrAbortHandler) // half an answer is out: only a broken connection can say so
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// recorder remembers the status of an answer, and the body of one that tells a fault of ours.
type recorder struct {
	http.ResponseWriter
	status int
	fault  bytes.Buffer
}

func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
	r.ResponseWriter.WriteHeader(status)
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.status == 0 {
		r.status = http.StatusOK
	}
	if r.status >= 500 && r.fault.Len() < 4096 {
		r.fault.Write(p)
	}
	return r.ResponseWriter.Write(p)
}

func (r *recorder) problem() string { return strings.TrimSpace(r.fault.String()) }

// Unwrap gives http.ResponseController and the WebSocket library the connection below.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// secureHeaders tells browsers to trust nothing but what comes from here, and to keep nothing.
func secureHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// readBodies reads a request's body before anything else happens, within limits of size and time. Afterwards the connection
// has no deadline, so that a request which takes long to answer is not ended by it.
func readBodies(timeout time.Duration, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Body == nil || r.Body == http.NoBody {
			next.ServeHTTP(w, r)
			return
		}
		conn := http.NewResponseController(w)
		_ = conn.SetReadDeadline(time.Now().Add(timeout))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
		_ = conn.SetReadDeadline(time.Time{})
		var tooLarge *http.MaxBytesError
		switch {
		case errors.As(err, &tooLarge):
			writeProblem(w, problemOf(warmboot.Errorf(warmboot.TooLarge, "read request", "the body is larger than %d bytes", bodyLimit)).Problem)
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			writeProblem(w, newProblem(http.StatusRequestTimeout, warmboot.Timeout, fmt.Sprintf("the body did not come within %s", timeout)))
			return
		case err != nil:
			writeProblem(w, newProblem(http.StatusBadRequest, warmboot.Invalid, "the body could not be read: "+err.Error()))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		// What `curl -d` says of any body. It is safe to take it for JSON: requests of other sites are refused already.
		if r.Header.Get("Content-Type") == "application/x-www-form-urlencoded" {
			r.Header.Set("Content-Type", "application/json")
		}
		next.ServeHTTP(w, r)
	})
}
