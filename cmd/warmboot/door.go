package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"

	"warmboot"
	"warmboot/internal/access"
	"warmboot/internal/certificate"
	"warmboot/internal/cli"
	"warmboot/internal/httpapi"
)

// headerLimit is how large a request's headers may be, in bytes. Tokens are small.
const headerLimit = 64 << 10

// listen binds the API's address, if it may be open as the options say.
func listen(o cli.ControlOptions, log *slog.Logger) (net.Listener, error) {
	a := o.Access
	if err := httpapi.CheckListen(o.Listen, httpapi.Exposure{NoAuth: a.NoAuth, TLS: a.TLS(), InsecureHTTP: a.InsecureHTTP}); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Conflict, Op: "serve", Msg: "choose another address with --listen, or end what uses this one", Err: err}
	}
	if a.NoAuth {
		log.Warn("NO TOKEN IS ASKED FOR (--auth=none): every user and program of this machine controls warmboot, and through it this machine", "listen", o.Listen)
	}
	if a.InsecureHTTP && !a.TLS() {
		log.Warn("THE API IS NOT ENCRYPTED (--insecure-http): whoever is between it and its clients can read their tokens", "listen", o.Listen)
	}
	if a.Token != "" && len(a.Token) < 32 {
		log.Warn("MANAGER_API_TOKEN is short enough to be guessed; use 32 random characters or more, or tokens of `warmboot token create`")
	}
	return l, nil
}

// door is what stands between the API and those who want in.
type door struct {
	o      cli.AccessOptions
	log    *slog.Logger
	keeper *access.Keeper
	files  *certificate.Files // nil: no TLS
}

// openDoor reads or makes the certificate and the local admin token. Its keeper must be closed before the store.
func openDoor(ctx context.Context, storageRoot, name string, o cli.ControlOptions, db access.Store, log *slog.Logger) (*door, error) {
	d := &door{o: o.Access, log: log}
	var err error
	switch {
	case o.Access.SelfSigned:
		host, _, _ := net.SplitHostPort(o.Listen) // listen has done the same
		d.files, err = certificate.SelfSigned(filepath.Join(storageRoot, certificate.Dir), certificate.LocalHosts(host), log)
	case o.Access.TLSCert != "":
		d.files, err = certificate.Load(o.Access.TLSCert, o.Access.TLSKey, log)
	}
	if err != nil {
		return nil, err
	}
	d.keeper = access.New(access.Config{Store: db, Log: log, Static: o.Access.Token, AuditRetention: o.Access.AuditRetention})
	if !o.Access.NoAuth {
		if err := d.keeper.EnsureLocal(ctx, storageRoot, name); err != nil {
			d.keeper.Close()
			return nil, err
		}
	}
	return d, nil
}

// server is the HTTP server for the API.
func (d *door) server(c httpapi.Config) *http.Server {
	c.Log, c.Access, c.NoAuth, c.RateLimit = d.log, d.keeper, d.o.NoAuth, d.o.RateLimit
	s := &http.Server{
		Handler:           httpapi.New(c),
		ReadHeaderTimeout: 10 * time.Second, // of a TLS handshake too
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    headerLimit,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelDebug),
	}
	if d.files != nil {
		s.TLSConfig = d.files.ServerConfig()
	}
	return s
}

// serve serves until the server is shut down.
func (d *door) serve(s *http.Server, l net.Listener) error {
	if d.files == nil {
		return s.Serve(l)
	}
	d.log.Info("The API's TLS certificate has the fingerprint "+d.files.Fingerprint(), "file", d.files.CertFile())
	return s.ServeTLS(l, "", "")
}

// url is the API's address.
func (d *door) url(addr net.Addr) string {
	if d.files != nil {
		return "https://" + addr.String()
	}
	return "http://" + addr.String()
}
