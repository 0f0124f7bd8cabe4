package httpapi

import (
	"embed"
	"net/http"
)

// docsPages is a page that renders /openapi.json, with nothing from any other server.
//
//go:embed docs
var docsPages embed.FS

func docsRoutes(mux *gate) {
	page := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, docsPages, "docs/"+name) }
	}
	mux.HandleFunc("GET /docs", page("docs.html"))
	mux.HandleFunc("GET /docs/docs.css", page("docs.css"))
	mux.HandleFunc("GET /docs/docs.js", page("docs.js"))
	mux.HandleFunc("GET /{$}", http.RedirectHandler("/docs", http.StatusFound).ServeHTTP)
}
