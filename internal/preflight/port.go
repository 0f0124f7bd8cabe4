package preflight

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"

	"golang.org/x/sys/unix"

	"warmboot/api"
)

// checkPort sees that the API's address is free, or that it is warmboot which answers there.
func checkPort(ctx context.Context, c Config) Check {
	const name = "API address"
	const fix = "end what listens there (`ss -ltnp` tells), or choose another address with --listen or MANAGER_LISTEN"
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err == nil {
		_ = l.Close() // it has accepted nothing
		return Check{name, OK, c.Listen + " is free", ""}
	}
	if !errors.Is(err, unix.EADDRINUSE) {
		return Check{name, Fail, err.Error(), "choose another address with --listen or MANAGER_LISTEN"}
	}
	v, err := askVersion(ctx, c.Listen)
	if err != nil {
		return Check{name, Fail, fmt.Sprintf("%s is taken, and not by warmboot (%v)", c.Listen, err), fix}
	}
	return Check{name, OK, fmt.Sprintf("warmboot %s serves on %s", v.Version, c.Listen), ""}
}

// askVersion asks whoever listens for warmboot's version.
func askVersion(ctx context.Context, listen string) (api.Version, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return api.Version{}, err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/v1/version", nil)
	if err != nil {
		return api.Version{}, err
	}
	transport := &http.Transport{DisableKeepAlives: true} // neither a proxy nor an idle connection
	res, err := transport.RoundTrip(req)
	if err != nil {
		return api.Version{}, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return api.Version{}, fmt.Errorf("it answers %s to GET /v1/version", res.Status)
	}
	var v api.Version
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		return api.Version{}, fmt.Errorf("its answer to GET /v1/version is not warmboot's: %w", err)
	}
	if v.Version == "" {
		return api.Version{}, errors.New("its answer to GET /v1/version is not warmboot's")
	}
	return v, nil
}
