package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

// docker asks Docker over its socket for the little that the guest agent itself needs.
type docker struct {
	socket string
	http   *http.Client
}

func newDocker(socket string) *docker {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	return &docker{socket: socket, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// do makes a request; a nil out discards the answer's body. The path is Docker's newest API's.
func (d *docker) do(ctx context.Context, method, path string, out any) error {
	return d.send(ctx, method, path, nil, out)
}

// send is do with a body, which is JSON.
func (d *docker) send(ctx context.Context, method, path string, body []byte, out any) error {
	resp, err := d.open(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		_, err = io.Copy(io.Discard, resp.Body)
	} else {
		err = json.NewDecoder(resp.Body).Decode(out)
	}
	return err
}

func (d *docker) open(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://docker"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := d.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return nil, fmt.Errorf("docker answered %s %s with %s: %s", method, path, resp.Status, strings.TrimSpace(string(text)))
	}
	return resp, nil
}

// ping waits for Docker's first answer. dockerd listens long before it can answer, so all the waiting is for its socket and then
// for the answer itself.
func (d *docker) ping(ctx context.Context) (apiVersion string, err error) {
	for {
		version, err := d.pingOnce(ctx)
		if err == nil {
			return version, nil
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if err := d.waitSocket(ctx); err != nil {
			return "", err
		}
	}
}

// pingOnce asks by hand what an http.Client would ask, since in a restored machine the client's code would take longer than
// Docker's answer (see nic).
func (d *docker) pingOnce(ctx context.Context) (apiVersion string, err error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, "GET /_ping HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("docker answered a ping with %s", resp.Status)
	}
	return resp.Header.Get("Api-Version"), nil
}

// waitSocket returns when someone accepts connections on the socket. A socket file that refuses is left from a dockerd that has
// ended; the next one replaces it, or, having bound it, listens a moment later, for which there is no event but trying.
func (d *docker) waitSocket(ctx context.Context) error {
	const retry = 10 * time.Millisecond
	for {
		if err := waitFor(ctx, filepath.Dir(d.socket), func() bool { return exists(d.socket) }); err != nil {
			return err
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
		if err == nil {
			return conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.ENOENT) {
			return err
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// dockerInfo is the part of Docker's /info that we look at.
type dockerInfo struct {
	ID             string
	ServerVersion  string
	RegistryConfig struct {
		IndexConfigs map[string]struct{ Secure bool }
	}
}

func (d *docker) info(ctx context.Context) (*dockerInfo, error) {
	info := &dockerInfo{}
	err := d.do(ctx, http.MethodGet, "/info", info)
	return info, err
}

// running lists the ids of running containers.
func (d *docker) running(ctx context.Context) ([]string, error) {
	var list []struct{ ID string }
	err := d.do(ctx, http.MethodGet, "/containers/json", &list)
	var ids []string
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids, err
}

// stopContainer lets a container end within grace, then kills it.
func (d *docker) stopContainer(ctx context.Context, id string, grace time.Duration) error {
	seconds := max(0, int(grace.Seconds()))
	return d.do(ctx, http.MethodPost, fmt.Sprintf("/containers/%s/stop?t=%d", url.PathEscape(id), seconds), nil)
}

// waitDocker answers the call of that name.
func (g *Guest) waitDocker(ctx context.Context, req *guestv1.WaitDockerRequest) (*guestv1.WaitDockerResponse, error) {
	const op = "wait for Docker"
	if g.broken != nil {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "Docker cannot run in this machine: %w", g.broken)
	}
	timeout := time.Duration(req.TimeoutMillis) * time.Millisecond
	begin := time.Now()
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	version, err := g.docker.pingOnce(limited)
	if err != nil { // not so in a clone, whose user waits
		version, err = g.pingWithHope(limited)
	}
	var ours *warmboot.Error
	switch {
	case errors.As(err, &ours):
		return nil, err
	case err != nil:
		return nil, warmboot.Errorf(warmboot.CodeOf(err), op, "Docker did not answer within %v: %w%s%s", timeout, err, g.restartNote(), g.otherNote(ctx))
	}
	return g.dockerAnswered(version, begin), nil
}

// pingPatience is how long a Docker that is there may take to answer.
const pingPatience = 2 * time.Second

// pingDocker asks Docker once; nil if it does not answer.
func (g *Guest) pingDocker(ctx context.Context) *guestv1.WaitDockerResponse {
	begin := time.Now()
	ctx, cancel := context.WithTimeout(ctx, pingPatience)
	defer cancel()
	version, err := g.docker.pingOnce(ctx)
	if err != nil {
		return nil
	}
	return g.dockerAnswered(version, begin)
}

func (g *Guest) dockerAnswered(version string, begin time.Time) *guestv1.WaitDockerResponse {
	if g.staleJournal.Swap(false) { // not sooner: the machine may be booting, and a clone's user waited for this
		g.renewJournal()
	}
	return &guestv1.WaitDockerResponse{ApiVersion: version, WaitedMicros: time.Since(begin).Microseconds()}
}

// pingWithHope waits for Docker's first answer as long as something may still start Docker.
func (g *Guest) pingWithHope(ctx context.Context) (apiVersion string, err error) {
	ctx, giveUp := context.WithCancelCause(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer giveUp(nil)
	asking.Go(func() {
		if err := g.deadDocker(ctx); err != nil && ctx.Err() == nil {
			giveUp(err)
		}
	})
	version, err := g.docker.ping(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return version, err
}

// restartNote tells where Docker's log is, if we started Docker, and whether the services keep failing.
func (g *Guest) restartNote() string {
	if g.dockerd == nil {
		return ""
	}
	note := "; its log is " + runDir + "/dockerd.log in the guest"
	for _, s := range []*service{g.containerd, g.dockerd} {
		if h := s.health(); h.Restarts > 0 {
			note += fmt.Sprintf("; %s was started again %d times", h.Name, h.Restarts)
		}
	}
	return note
}
