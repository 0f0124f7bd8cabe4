package preflight

import (
	"context"
	"crypto/tls"
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
	what, err := askWarmboot(ctx, c.Listen)
	if err != nil {
		return Check{name, Fail, fmt.Sprintf("%s is taken, and not by warmboot (%v)", c.Listen, err), fix}
	}
	return Check{name, OK, fmt.Sprintf("%s serves on %s", what, c.Listen), ""}
}

// askWarmboot asks whoever listens whether it is warmboot, and of which version as far as that is told without a token.
func askWarmboot(ctx context.Context, listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", err
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	// Neither a proxy nor an idle connection. Whose certificate it is does not matter: nothing is told, and nothing believed.
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	what, err := askOver(ctx, transport, "http://"+net.JoinHostPort(host, port))
	if err != nil && ctx.Err() == nil {
		if overTLS, tlsErr := askOver(ctx, transport, "https://"+net.JoinHostPort(host, port)); tlsErr == nil {
			return overTLS, nil
		}
	}
	return what, err
}

func askOver(ctx context.Context, transport *http.Transport, server string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+"/v1/version", nil)
	if err != nil {
		return "", err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusUnauthorized && res.Header.Get("WWW-Authenticate") == `Bearer realm="`+api.Realm+`"` {
		return "warmboot", nil
	}
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("it answers %s to GET /v1/version", res.Status)
	}
	var v api.Version
	if err := json.NewDecoder(res.Body).Decode(&v); err != nil {
		return "", fmt.Errorf("its answer to GET /v1/version is not warmboot's: %w", err)
	}
	if v.Version == "" {
		return "", errors.New("its answer to GET /v1/version is not warmboot's")
	}
	return "warmboot " + v.Version, nil
}
