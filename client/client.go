// Package client is the Go client of warmboot's REST API. Its methods follow the API one to one; errors come back as
// *warmboot.Error with the code and the text that the server gave them.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/telemetry/span"
)

// DefaultAddr is where `warmboot serve` listens unless it is told otherwise.
const DefaultAddr = "http://127.0.0.1:18080"

// answerLimit is how much of an answer is read, in bytes: far more than any list, far less than memory.
const answerLimit = 64 << 20

// Config says how to reach a server.
type Config struct {
	Addr  string // "http://host:port" or "host:port"; DefaultAddr if empty
	Token string // sent as a Bearer token
	// TLSCA is whom an https server is believed to be: a PEM file with its certificate or its authority's, or "sha256:" and the
	// fingerprint of its certificate. Empty: whom this machine trusts. It needs HTTP to be nil.
	TLSCA string
	// HTTP does the requests; a client with no time limit of its own if nil. A limit would end Wait, Logs and Exec.
	HTTP *http.Client
}

// Client talks to one server. It is safe for concurrent use.
type Client struct {
	base  string // without a slash at its end
	token string
	http  *http.Client
}

// New returns a client. It does not connect yet.
func New(c Config) (*Client, error) {
	addr := c.Addr
	if addr == "" {
		addr = DefaultAddr
	}
	if !strings.Contains(addr, "://") {
		addr = "http://" + addr
	}
	u, err := url.Parse(addr)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, warmboot.Errorf(warmboot.Invalid, "", "%q is not a server's address; use a form like %s", c.Addr, DefaultAddr)
	}
	switch {
	case c.TLSCA != "" && c.HTTP != nil:
		return nil, warmboot.Errorf(warmboot.Invalid, "", "an HTTP client of your own must know itself whom to trust: leave TLSCA out")
	case c.TLSCA != "":
		if c.HTTP, err = trusting(c.TLSCA); err != nil {
			return nil, err
		}
	case c.HTTP == nil:
		c.HTTP = &http.Client{}
	}
	return &Client{base: u.Scheme + "://" + u.Host + strings.TrimRight(u.Path, "/"), token: c.Token, http: c.HTTP}, nil
}

// Version tells what is serving.
func (c *Client) Version(ctx context.Context) (api.Version, error) {
	var v api.Version
	return v, c.do(ctx, http.MethodGet, "/v1/version", nil, &v)
}

// do sends in as JSON, unless it is nil, and reads the answer into out, unless that is nil.
func (c *Client) do(ctx context.Context, method, path string, in, out any) error {
	_, err := c.exchange(ctx, method, path, nil, in, out)
	return err
}

// tries is how often a create is sent whose outcome is not known, and tryAgainAfter the first of the waits between, which double.
const (
	tries         = 4
	tryAgainAfter = 200 * time.Millisecond
)

// create sends a POST that makes something. It has a key by which the server knows it again, so it is sent again where the answer was lost or the
// server could not do it just then, and still makes one thing only.
func (c *Client) create(ctx context.Context, path string, in, out any) error {
	header := http.Header{"Idempotency-Key": {string(warmboot.NewID())}}
	wait := tryAgainAfter
	for left := tries; ; left-- {
		_, err := c.exchange(ctx, http.MethodPost, path, header, in, out)
		if warmboot.CodeOf(err) != warmboot.Unavailable || errors.Is(err, errNobody) || left == 1 {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ended(ctx)
		}
		wait *= 2
	}
}

// errNobody is the cause of an Unavailable error when nothing was sent, because nobody listens.
var errNobody = errors.New("nobody listens")

// exchange is do with more headers, in both directions.
func (c *Client) exchange(ctx context.Context, method, path string, header http.Header, in, out any) (http.Header, error) {
	res, err := c.send(ctx, method, path, header, in)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body := io.LimitReader(res.Body, answerLimit)
	if out == nil {
		_, err = io.Copy(io.Discard, body) // so that the connection can be used again
	} else {
		err = json.NewDecoder(body).Decode(out)
	}
	if err != nil {
		return nil, c.broken(ctx, err)
	}
	return res.Header, nil
}

// A server that is asked too often does nothing, and says when to ask again. So much patience a client has.
const (
	patience = 2 * time.Second // with one answer
	askAgain = 10              // times
)

// send returns an answer that is not an error; its body is the caller's to close.
func (c *Client) send(ctx context.Context, method, path string, header http.Header, in any) (*http.Response, error) {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return nil, warmboot.Errorf(warmboot.Invalid, "", "the request cannot be put as JSON: %w", err)
		}
	}
	for again := askAgain; ; again-- {
		res, wait, err := c.once(ctx, method, path, header, body)
		if wait == 0 || wait > patience || again == 0 {
			return res, err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, ended(ctx)
		}
	}
}

// once sends a request. If the server has been asked too often, wait is after what time to ask it again.
func (c *Client) once(ctx context.Context, method, path string, header http.Header, in []byte) (_ *http.Response, wait time.Duration, err error) {
	var body io.Reader
	if in != nil {
		body = bytes.NewReader(in)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, 0, warmboot.Errorf(warmboot.Invalid, "", "the request is not valid: %w", err)
	}
	req.Header = c.header()
	span.Inject(ctx, req.Header)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	maps.Copy(req.Header, header)
	res, err := c.http.Do(req)
	if err != nil {
		return nil, 0, c.unreachable(ctx, err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		if seconds, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && res.StatusCode == http.StatusTooManyRequests {
			wait = time.Duration(seconds) * time.Second
		}
		return nil, wait, problem(res)
	}
	return res, 0, nil
}

func (c *Client) header() http.Header {
	h := http.Header{"User-Agent": {"warmboot-client"}, "Accept": {"application/json"}}
	if c.token != "" {
		h.Set("Authorization", "Bearer "+c.token)
	}
	return h
}

// unreachable is the error for a request that got no answer.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	// What net/http says begins with the method and the whole URL, which help nobody here.
	var inner *url.Error
	if errors.As(err, &inner) {
		err = inner.Err
	}
	var ours *warmboot.Error
	if errors.As(err, &ours) { // its certificate is not the one that is trusted
		return ours
	}
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		return warmboot.Errorf(warmboot.Denied, "", "the certificate of %s cannot be trusted: %w; if it is the server's own, give its file or its fingerprint, which the server's log tells, with WARMBOOT_TLS_CA or --tls-ca", c.base, err)
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return warmboot.Errorf(warmboot.Unavailable, "", "%s does not speak TLS: use http:// (%w)", c.base, err)
	}
	var dial *net.OpError
	if errors.As(err, &dial) && dial.Op == "dial" {
		return warmboot.Errorf(warmboot.Unavailable, "", "cannot reach warmboot at %s: is `warmboot serve` running? (%w)", c.base, nobody{err})
	}
	return warmboot.Errorf(warmboot.Unavailable, "", "the connection to warmboot at %s broke: is `warmboot serve` running? (%w)", c.base, err)
}

// nobody is an error of a dialer that is an errNobody too.
type nobody struct{ error }

func (n nobody) Is(target error) bool { return target == errNobody }
func (n nobody) Unwrap() error        { return n.error }

// broken is the error for an answer that did not come whole.
func (c *Client) broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	if errors.Is(err, io.EOF) { // of the connection; callers take io.EOF for the end of what was to come
		err = io.ErrUnexpectedEOF
	}
	return warmboot.Errorf(warmboot.Unavailable, "", "the answer of warmboot at %s broke off: %w", c.base, err)
}

func ended(ctx context.Context) error {
	if warmboot.CodeOf(ctx.Err()) == warmboot.Timeout {
		return warmboot.Errorf(warmboot.Timeout, "", "warmboot took longer than it was given: %w", ctx.Err())
	}
	return warmboot.Errorf(warmboot.Canceled, "", "interrupted: %w", ctx.Err())
}

// problem reads the error that an answer carries.
func problem(res *http.Response) error {
	var p api.Problem
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil {
		err = json.Unmarshal(body, &p)
	}
	if err != nil || p.Code == "" {
		if bytes.Contains(body, []byte("HTTP request to an HTTPS server")) { // net/http's words
			return warmboot.Errorf(warmboot.Unavailable, "", "%s speaks TLS: use https://%[1]s", res.Request.URL.Host)
		}
		code := warmboot.Internal
		if res.StatusCode/100 == 5 {
			code = warmboot.Unavailable
		}
		return warmboot.Errorf(code, "", "%s answered %s, which is not how warmboot tells an error: is the address right?", res.Request.URL.Host, res.Status)
	}
	text := p.Detail
	for _, d := range p.Errors {
		text += fmt.Sprintf("\n  %s: %s", strings.TrimPrefix(d.Location, "body."), d.Message)
	}
	return &warmboot.Error{Code: warmboot.Code(p.Code), Msg: text}
}

// get reads one entity out of its envelope.
func get[T any](ctx context.Context, c *Client, path string) (T, error) {
	var e api.Item[T]
	err := c.do(ctx, http.MethodGet, path, nil, &e)
	return e.Item, err
}

// ref puts what a person typed into a path.
func ref(prefix, typed, suffix string) (string, error) {
	if typed == "" || typed == "." || typed == ".." {
		return "", warmboot.Errorf(warmboot.Invalid, "", "%q is neither a name nor an id", typed)
	}
	return prefix + url.PathEscape(typed) + suffix, nil
}
