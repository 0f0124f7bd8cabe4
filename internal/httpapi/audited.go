package httpapi

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"unicode"

	"warmboot"
)

// entityLimit is how much of what a caller calls something goes into the audit log, in bytes.
const entityLimit = 128

// audited writes a change into the audit log: that it begins, before anything is done, and how it went.
func (s *server) audited(rule rule, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		q := requestOf(r.Context())
		id, name := s.resolve(r.Context(), rule.entity, r.PathValue("id"))
		change, err := s.access.Begin(r.Context(), q.who, warmboot.AuditEntry{
			Operation: rule.operation, EntityType: rule.entity, EntityID: id, EntityName: name, Source: q.source, RequestID: q.id,
		})
		if err != nil {
			writeProblem(w, problemOf(err).Problem)
			return
		}
		rec := &recorder{ResponseWriter: w}
		outcome := string(warmboot.Internal) // of a panic
		end := sync.OnceFunc(func() {
			if id == "" && q.entity != "" {
				change.Entity(s.resolve(context.WithoutCancel(r.Context()), rule.entity, q.entity))
			}
			if outcome == warmboot.AuditOK && q.repeated {
				outcome = warmboot.AuditRepeated
			}
			change.End(outcome)
		})
		defer end()
		// Before the waiting, not when it is over: then somebody waits for the answer.
		q.made = func() { outcome = warmboot.AuditOK; end() }
		next(rec, r)
		outcome = outcomeOf(q.code, rec.status)
	}
}

// outcomeOf is how a change went. An operation tells the code of its error; what is wrong with a request's form is told by the status
// alone.
func outcomeOf(code warmboot.Code, status int) string {
	switch {
	case code != "":
		return string(code)
	case status >= 400:
		return string(codeOfStatus(status))
	}
	return warmboot.AuditOK
}

// resolve finds the id and the name of what a caller calls ref. Where there is no such thing, ref is all that is known.
func (s *server) resolve(ctx context.Context, entity, ref string) (id, name string) {
	if ref == "" {
		return "", ""
	}
	switch entity {
	case "container":
		if c, err := s.svc.Container(ctx, ref); err == nil {
			return string(c.ID), c.Name
		}
	case "image":
		if img, err := s.svc.Image(ctx, ref); err == nil {
			return string(img.ID), img.Name
		}
	case "host":
		if h, err := s.svc.Host(ctx, ref); err == nil {
			return string(h.ID), h.Name
		}
	case "token":
		if t, err := s.access.Token(ctx, ref); err == nil {
			return string(t.ID), t.Name
		}
	}
	if parsed, err := warmboot.ParseID(ref); err == nil {
		return string(parsed), ""
	}
	return "", printable(ref)
}

// printable is text that somebody can be shown who did not write it.
func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
	return strings.ToValidUTF8(text[:min(len(text), entityLimit)], "")
}
