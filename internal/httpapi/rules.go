package httpapi

import (
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
)

// rule says who may do an operation, and whether it goes into the audit log.
type rule struct {
	operation string        // as the description calls it
	needs     warmboot.Role // empty: nobody is asked for a token
	change    bool          // it changes something
	entity    string        // what kind of thing a change is about
}

var (
	open      = rule{}
	read      = rule{needs: warmboot.RoleViewer}
	adminRead = rule{needs: warmboot.RoleAdmin}
)

func operate(entity string) rule {
	return rule{needs: warmboot.RoleOperator, change: true, entity: entity}
}
func admin(entity string) rule { return rule{needs: warmboot.RoleAdmin, change: true, entity: entity} }

// rules is who may do what: every operation is here, or New panics.
var rules = map[string]rule{
	"get-health": open,

	"get-version":     read,
	"get-readiness":   read,
	"get-metrics":     read,
	"stream-events":   read,
	"get-access":      read,
	"collect-garbage": operate("server"),

	"list-containers":    read,
	"get-container":      read,
	"wait-container":     read,
	"get-container-logs": read,
	"create-container":   operate("container"),
	"start-container":    operate("container"),
	"stop-container":     operate("container"),
	"delete-container":   operate("container"),
	"exec-container":     operate("container"), // whoever is in a container can do what it can

	"list-snapshots":   read,
	"get-snapshot":     read,
	"wait-snapshot":    read,
	"create-snapshot":  operate("snapshot"),
	"rebuild-snapshot": operate("snapshot"),
	"delete-snapshot":  operate("snapshot"),

	"list-images":    read,
	"get-image":      read,
	"register-image": operate("image"),
	"delete-image":   operate("image"),

	"list-hosts":    read,
	"get-host":      read,
	"cordon-host":   admin("host"),
	"uncordon-host": admin("host"),
	"drain-host":    admin("host"),
	"delete-host":   admin("host"),

	"create-join-token": admin("host"),

	"list-tokens":  adminRead,
	"get-token":    adminRead,
	"create-token": admin("token"),
	"delete-token": admin("token"),
	"list-audit":   adminRead,
}

// pages are what can be had without a token and is no operation: it shows nothing of this machine.
var pages = []string{"GET /openapi.json", "GET /docs", "GET /docs/docs.css", "GET /docs/docs.js", "GET /{$}"}

// unknownAddress is for what has no route: only who may look at all is told that there is nothing.
var unknownAddress = read

// gate is a mux that remembers what is registered, so that no route can be without a rule.
type gate struct {
	*http.ServeMux
	s        *server
	patterns []string
}

// HandleFunc registers a handler for a pattern with a method.
func (g *gate) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	g.patterns = append(g.patterns, pattern)
	g.ServeMux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		if rule := g.s.rules[pattern]; rule.change {
			g.s.audited(rule, h)(w, r)
			return
		}
		h(w, r)
	})
}

// applyRules gives each route its rule, and tells of it in the description.
func (g *gate) applyRules(o *huma.OpenAPI, noAuth bool) {
	byPattern := map[string]rule{}
	for _, page := range pages {
		byPattern[page] = open
	}
	described := map[string]bool{}
	for pattern, op := range operations(o) {
		rule, ok := rules[op.OperationID]
		if !ok {
			panic(fmt.Sprintf("operation %s has no rule that says who may do it; add one to rules", op.OperationID))
		}
		rule.operation = op.OperationID
		byPattern[pattern], described[op.OperationID] = rule, true
		switch {
		case noAuth:
		case rule.needs == "":
			op.Security = []map[string][]string{{}}
		default:
			op.Extensions = map[string]any{"x-required-role": string(rule.needs)}
		}
	}
	for id := range rules {
		if !described[id] {
			panic(fmt.Sprintf("the rule for %s is for no operation; take it out of rules", id))
		}
	}
	for _, pattern := range g.patterns {
		if _, ok := byPattern[pattern]; !ok {
			panic(fmt.Sprintf("route %s is neither an operation nor one of pages", pattern))
		}
	}
	g.s.rules = byPattern
}

// ruleOf finds the rule for a request, and the pattern of its route, which is empty if there is none.
func (g *gate) ruleOf(r *http.Request) (pattern string, _ rule) {
	_, pattern = g.Handler(r)
	if rule, ok := g.s.rules[pattern]; ok {
		return pattern, rule
	}
	return pattern, unknownAddress
}

// operations are a description's, by the pattern of their route.
func operations(o *huma.OpenAPI) map[string]*huma.Operation {
	all := map[string]*huma.Operation{}
	for path, p := range o.Paths {
		for _, op := range []*huma.Operation{p.Get, p.Head, p.Post, p.Put, p.Patch, p.Delete, p.Options, p.Trace} {
			if op != nil {
				all[op.Method+" "+path] = op
			}
		}
	}
	return all
}
