package httpapi

import (
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/access"
)

const opCheck = "check request"

// guard decides who may ask, and how often.
type guard struct {
	gate   *gate
	access *access.Keeper
	log    *slog.Logger
	noAuth bool
	cross  http.CrossOriginProtection

	perAddress, perToken, failures *limits
}

func (g *guard) wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		q := requestOf(r.Context())
		q.source = sourceOf(r)
		var rule rule
		q.pattern, rule = g.gate.ruleOf(r)
		if rule.needs != "" {
			// Those who are known have a bucket of their own, which strangers at the same address (another user of this machine, say)
			// cannot empty.
			bucket := networkOf(q.source)
			if g.access.Known(bearer(r)) {
				bucket += ", known"
			}
			if wait, ok := g.perAddress.take(bucket); !ok {
				tooMany(w, wait, "too many requests come from "+q.source)
				return
			}
		}
		if err := g.checkOrigin(r); err != nil {
			writeProblem(w, problemOf(err).Problem)
			return
		}
		if rule.needs == "" {
			next.ServeHTTP(w, r)
			return
		}
		if !g.identify(w, r, q) {
			return
		}
		if !q.who.Role.Includes(rule.needs) {
			g.access.Refused(q.who, warmboot.AuditEntry{Operation: rule.operation, EntityType: rule.entity, EntityName: r.URL.Path, Source: q.source, RequestID: q.id})
			writeProblem(w, problemOf(warmboot.Errorf(warmboot.Denied, opCheck, "this needs the role %s, and the token %s has the role %s; ask an admin for another token, which `warmboot token create --role %[1]s` makes", rule.needs, q.who.Name, q.who.Role)).Problem)
			return
		}
		ctx, done := g.access.Session(r.Context(), q.who)
		defer done()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// checkOrigin refuses what a browser sends on behalf of another site.
func (g *guard) checkOrigin(r *http.Request) error {
	if g.noAuth && !knownHost(r.Host) {
		// A page of another site can make its name resolve to this machine; only the Host header tells.
		return warmboot.Errorf(warmboot.Denied, opCheck, "the request is for host %.100q, which is not this server's name; use 127.0.0.1 or localhost", r.Host)
	}
	asked := r
	if r.Header.Get("Upgrade") != "" {
		// A WebSocket begins as a GET, but lets a page do anything.
		asked = r.Clone(r.Context())
		asked.Method = http.MethodPost
	}
	if err := g.cross.Check(asked); err != nil {
		return warmboot.Errorf(warmboot.Denied, opCheck, "a browser sent this request for another site: %w", err)
	}
	return nil
}

// identify finds out who asks, or answers why they may not.
func (g *guard) identify(w http.ResponseWriter, r *http.Request, q *request) bool {
	if g.noAuth {
		q.who = access.Anonymous
		return true
	}
	secret := bearer(r)
	if secret == "" {
		refuse(w, warmboot.Errorf(warmboot.Unauthenticated, opCheck, "a token is needed: send it as `Authorization: Bearer TOKEN`; the commands take it from WARMBOOT_TOKEN, or, run by root on the server's machine, find one themselves"))
		return false
	}
	network := networkOf(q.source)
	// A token that we make is beyond guessing, and its owner must not suffer from what others at the same address try. One that
	// somebody has thought up can be guessed: after too many tries not even the right one is told from the wrong ones.
	if !access.WellFormed(secret) {
		if wait, ok := g.failures.peek(network); !ok {
			tooManyFailures(w, wait, q.source)
			return false
		}
	}
	who, err := g.access.Authenticate(r.Context(), secret)
	if err == nil {
		q.who, q.secret = who, secret
		wait, ok := g.perToken.take(string(who.ID) + who.Name)
		if !ok {
			tooMany(w, wait, "too many requests are made with the token "+who.Name)
		}
		return ok
	}
	if warmboot.CodeOf(err) == warmboot.Unauthenticated {
		if wait, ok := g.failures.take(network); !ok {
			tooManyFailures(w, wait, q.source)
			return false
		}
		g.log.Warn("A token was refused", "source", q.source, "request_id", q.id, "err", err)
	}
	refuse(w, err)
	return false
}

// refuse answers who is not known.
func refuse(w http.ResponseWriter, err error) {
	if warmboot.CodeOf(err) == warmboot.Unauthenticated {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+api.Realm+`"`)
	}
	writeProblem(w, problemOf(err).Problem)
}

func tooManyFailures(w http.ResponseWriter, wait time.Duration, source string) {
	tooMany(w, wait, "too many tokens that are not valid come from "+source)
}

// A browser cannot set headers of a WebSocket, but can offer protocols: the one that is spoken, and one that holds the token.
const (
	execProtocol  = "warmboot.exec"
	tokenProtocol = "warmboot.token."
)

// bearer is the secret that a request carries. It is never taken from the address, which ends up in logs and histories, or from
// a cookie, which a browser sends along whoever asks.
func bearer(r *http.Request) string {
	if scheme, secret, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(secret)
	}
	if !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		return ""
	}
	for offered := range strings.SplitSeq(strings.Join(r.Header.Values("Sec-WebSocket-Protocol"), ","), ",") {
		if secret, ok := strings.CutPrefix(strings.TrimSpace(offered), tokenProtocol); ok {
			return secret
		}
	}
	return ""
}

func knownHost(hostport string) bool {
	host, _, err := net.SplitHostPort(hostport)
	if err != nil {
		host = hostport
	}
	return isLoopback(host)
}
