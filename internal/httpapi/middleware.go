package httpapi

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"warmboot"
	"warmboot/internal/telemetry"
)

// bodyLimit is how large a request's body may be, in bytes.
const bodyLimit = 1 << 20

// observe gives each request an id, logs and counts it, and turns a panic into an answer.
func observe(log *slog.Logger, metrics *telemetry.Metrics, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := warmboot.NewID().Short()
		w.Header().Set("X-Request-Id", id)
		rec := &recorder{ResponseWriter: w}
		start := time.Now()
		defer func() {
			p := recover()
			if p != nil && p != http.ErrAbortHandler { //nolint:errorlint // a panic's value, which nobody wraps
				log.Error("A request made the server panic", "request_id", id, "panic", p, "stack", string(debug.Stack()))
				if rec.status == 0 {
					writeProblem(rec, newProblem(http.StatusInternalServerError, warmboot.Internal, "a fault of warmboot's; its log has the details under request "+id))
				}
			}
			took := time.Since(start)
			if metrics != nil {
				metrics.Request(r.Pattern, r.Method, rec.status, took) // the mux has set the pattern by now
			}
			level := slog.LevelDebug
			if rec.status >= 500 {
				level = slog.LevelError
			}
			log.Log(r.Context(), level, "Request", "request_id", id, "method", r.Method, "path", r.URL.Path, "status", rec.status, "took", took, "problem", rec.problem())
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

// CheckListen refuses an address that others than this machine can reach, unless a token protects it.
func CheckListen(addr, token string) error {
	const op = "listen"
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return warmboot.Errorf(warmboot.Invalid, op, "%q is not an address to listen on (%w); use a form like 127.0.0.1:18080", addr, err)
	}
	if token == "" && !isLoopback(host) {
		return warmboot.Errorf(warmboot.Denied, op, "%s can be reached from other machines, and whoever reaches warmboot controls this one; set a token, or listen on 127.0.0.1", addr)
	}
	return nil
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}

// guard decides who may ask.
type guard struct {
	token string
	hosts []string
	cross http.CrossOriginProtection
}

func (g *guard) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := g.check(r); err != nil {
			if warmboot.CodeOf(err) == warmboot.Unauthenticated {
				w.Header().Set("WWW-Authenticate", `Bearer realm="warmboot"`)
			}
			writeProblem(w, problemOf(err).Problem)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (g *guard) check(r *http.Request) error {
	const op = "check request"
	if g.token == "" && !g.knownHost(r.Host) {
		// A page of another site can make its name resolve to this machine; only the Host header tells.
		return warmboot.Errorf(warmboot.Denied, op, "the request is for host %.100q, which is not this server's name; use 127.0.0.1 or localhost, or allow the name in warmboot's configuration", r.Host)
	}
	asked := r
	if r.Header.Get("Upgrade") != "" {
		// A WebSocket begins as a GET, but lets a page do anything.
		asked = r.Clone(r.Context())
		asked.Method = http.MethodPost
	}
	if err := g.cross.Check(asked); err != nil {
		return warmboot.Errorf(warmboot.Denied, op, "a browser sent this request for another site: %w", err)
	}
	if g.token == "" || public(r.URL.Path) {
		return nil
	}
	sent, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !ok {
		return warmboot.Errorf(warmboot.Unauthenticated, op, "a token is needed; send it as `Authorization: Bearer TOKEN`")
	}
	if a, b := sha256.Sum256([]byte(sent)), sha256.Sum256([]byte(g.token)); subtle.ConstantTimeCompare(a[:], b[:]) != 1 {
		return warmboot.Errorf(warmboot.Unauthenticated, op, "the token is not this server's")
	}
	return nil
}

// public tells the addresses that need no token: they show nothing of this machine.
func public(path string) bool {
	return path == "/healthz" || path == "/openapi.json" || path == "/docs" || strings.HasPrefix(path, "/docs/")
}

func (g *guard) knownHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	return isLoopback(host) || slices.ContainsFunc(g.hosts, func(h string) bool { return strings.EqualFold(h, host) })
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
