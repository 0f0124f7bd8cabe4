package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"warmboot/internal/guestrpc"
)

// The Docker in a guest is as hostile as the guest. These are the most that is read of what it answers to a call, in bytes.
const (
	headerLimit = 64 << 10 // Docker's headers are some hundred bytes
	// An inspection, the longest of the other answers, is some kilobytes and the command and variables of the container, of which the API takes 1 MiB.
	answerLimit  = 4 << 20
	refusalLimit = 16 << 10 // an answer that is an error ends up in the log and in the store
	// Docker tells each layer's progress ten times a second: this is enough for some hours.
	pullLimit = 256 << 20
)

// dockerHost is never resolved: the dialer ignores it.
const dockerHost = "http://docker.invalid"

// dockerClient speaks to the Docker of one guest. What it answers is bounded, except the output of containers and commands, which nobody keeps
// on its way.
type dockerClient struct {
	*client.Client
	wire boundedWire
}

// newDockerClient speaks a version of Docker's API ("1.45") through connections that dial makes. The error is for a version that is none.
func newDockerClient(dial func(context.Context) (net.Conn, error), version string) (*dockerClient, error) {
	wire := boundedWire{&http.Transport{ // no proxy: its password is none of a guest's business
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxResponseHeaderBytes: headerLimit,
		DisableCompression:     true, // few bytes would become many
		MaxIdleConns:           6,
		IdleConnTimeout:        30 * time.Second,
	}}
	c, err := client.New(
		client.WithHost(dockerHost),
		client.WithHTTPClient(&http.Client{Transport: wire, CheckRedirect: client.CheckRedirect}),
		client.WithAPIVersion(version),
	)
	if err != nil {
		return nil, err
	}
	return &dockerClient{c, wire}, nil
}

// Close closes the connections that no call uses.
func (d *dockerClient) Close() error {
	d.wire.CloseIdleConnections()
	return d.Client.Close()
}

// duplex is a connection of which one's own side can end first.
type duplex interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// attach starts a command that was created, and is then the connection to it. ctx is about starting only. The client's ExecAttach would read a
// header of any length.
func (d *dockerClient) attach(ctx context.Context, id string, tty bool) (duplex, error) {
	body, err := json.Marshal(dockertypes.ExecStartRequest{Tty: tty})
	if err != nil {
		return nil, err
	}
	start := dockerHost + "/v" + d.ClientVersion() + "/exec/" + url.PathEscape(id) + "/start"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, start, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "tcp")
	res, err := d.wire.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if conn, ok := res.Body.(duplex); ok && res.StatusCode == http.StatusSwitchingProtocols {
		return conn, nil
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, refusalLimit))
	return nil, fmt.Errorf("docker answered the start of a command with status %d: %s", res.StatusCode, guestrpc.Brief(strings.TrimSpace(string(text))))
}

// boundedWire carries calls to a guest's Docker and cuts its answers off.
type boundedWire struct{ *http.Transport }

func (w boundedWire) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := w.Transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	limit := int64(answerLimit)
	switch path := req.URL.Path; {
	case res.StatusCode == http.StatusSwitchingProtocols && req.Header.Get("Upgrade") != "":
		return res, nil
	case res.StatusCode < http.StatusOK, res.StatusCode >= http.StatusBadRequest:
		limit = refusalLimit
	case strings.HasSuffix(path, "/containers/"+ociContainer+"/logs"):
		return res, nil // its reader takes it in pieces
	case strings.HasSuffix(path, "/images/create"):
		limit = pullLimit
	}
	res.Body = &boundedBody{ReadCloser: res.Body, req: req, limit: limit, left: limit}
	return res, nil
}

// boundedBody is an answer's body that fails behind its limit, and is closed then: Docker's client does not close what it cannot read.
type boundedBody struct {
	io.ReadCloser
	req         *http.Request
	limit, left int64
}

func (b *boundedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left < 0 {
		_ = b.Close()
		return 0, fmt.Errorf("docker in the microVM answered %s %s with more than %d bytes", b.req.Method, b.req.URL.Path, b.limit)
	}
	return n, err
}
