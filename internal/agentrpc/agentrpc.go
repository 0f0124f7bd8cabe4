// Package agentrpc is how managers and hosts speak to each other: Connect over HTTP/2, with certificates of the cluster's own authority at
// both ends. A manager commands a host (HostHandler, Hosts), a host reports to a manager (ManagerHandler, Managers), and hosts fetch
// files from each other (ArtifactHandler, Peers).
//
// The messages are the Go types that the control plane and the agent use anyway, as JSON: see docs/adr/0017-agent-rpc.md.
package agentrpc

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/telemetry/span"
)

// codec is JSON of Go types in place of Connect's JSON of protobuf messages.
type codec struct{}

func (codec) Name() string                        { return "json" }
func (codec) Marshal(v any) ([]byte, error)       { return json.Marshal(v) }
func (codec) Unmarshal(text []byte, v any) error  { return json.Unmarshal(text, v) }
func (codec) IsBinary() bool                      { return false }
func (codec) MarshalStable(v any) ([]byte, error) { return json.Marshal(v) }

// messageLimit is how large a message may be, in bytes: an inventory of a host with thousands of containers, or a piece of output.
const messageLimit = 16 << 20

func clientOptions() []connect.ClientOption {
	return []connect.ClientOption{connect.WithCodec(codec{}), connect.WithSendCompression(""), connect.WithReadMaxBytes(messageLimit)}
}

func handlerOptions() []connect.HandlerOption {
	return []connect.HandlerOption{connect.WithCodec(codec{}), connect.WithReadMaxBytes(messageLimit), connect.WithCompressMinBytes(4096)}
}

// The headers in which an error crosses; what Connect has of its own loses our codes.
const (
	codeHeader  = "Warmboot-Code"
	causeHeader = "Warmboot-Cause"
)

// causes are the errors that whoever is at the other end looks for.
var causes = map[string]error{"machine-size": controlplane.ErrMachineSize, "not-started": controlplane.ErrNotStarted}

// toWire makes an error one of Connect's.
func toWire(err error) error {
	if err == nil {
		return nil
	}
	code := warmboot.CodeOf(err)
	var rpc connect.Code
	if rpc.UnmarshalText([]byte(code.Outcome().RPC)) != nil {
		rpc = connect.CodeInternal
	}
	e := connect.NewError(rpc, errors.New(err.Error()))
	e.Meta().Set(codeHeader, string(code))
	for name, cause := range causes {
		if errors.Is(err, cause) {
			e.Meta().Set(causeHeader, name)
		}
	}
	return e
}

// fromWire makes Connect's error ours again. One that the other end has not sent means that it could not be reached, or has gone.
func fromWire(ctx context.Context, who string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	var e *connect.Error
	if !errors.As(err, &e) {
		return unreachable(who, err)
	}
	code := warmboot.Code(e.Meta().Get(codeHeader))
	switch {
	case code != "":
		return &warmboot.Error{Code: code, Msg: e.Message(), Err: silent{causes[e.Meta().Get(causeHeader)]}}
	case e.Code() == connect.CodeUnimplemented:
		return warmboot.Errorf(warmboot.Incompatible, "speak to "+who, "%w; it runs another version of warmboot, update it", controlplane.ErrUnknownCall)
	}
	return unreachable(who, e)
}

func unreachable(who string, err error) error {
	return &warmboot.Error{Code: warmboot.Unavailable, Op: "reach " + who, Msg: controlplane.ErrUnreachable.Error(), Err: join{err, controlplane.ErrUnreachable}}
}

// join tells the text of one error and can be found as another too.
type join struct{ text, also error }

func (j join) Error() string   { return j.text.Error() }
func (j join) Unwrap() []error { return []error{j.text, j.also} }

// silent can be found as an error whose text has been told already.
type silent struct{ error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.error }

// empty is a message without content.
type empty struct{}

// handle registers a call that is one message each way.
func handle[Req, Res any](mux *http.ServeMux, procedure string, f func(context.Context, *Req) (*Res, error)) {
	mux.Handle(procedure, connect.NewUnaryHandlerSimple(procedure, func(ctx context.Context, req *Req) (*Res, error) {
		res, err := f(ctx, req)
		if err != nil {
			return nil, toWire(err)
		}
		return res, nil
	}, handlerOptions()...))
}

// progress is a message of a call that tells what it is doing until its result is there.
type progress[T any] struct {
	Step   string `json:"step,omitempty"`
	Result *T     `json:"result,omitempty"`
}

// handleSteps registers a call that tells its steps.
func handleSteps[Req, Res any](mux *http.ServeMux, procedure string, f func(ctx context.Context, req *Req, step func(string)) (*Res, error)) {
	mux.Handle(procedure, connect.NewServerStreamHandlerSimple(procedure, func(ctx context.Context, req *Req, stream *connect.ServerStream[progress[Res]]) error {
		res, err := f(ctx, req, func(step string) {
			_ = stream.Send(&progress[Res]{Step: step}) // if the other end is gone, ctx ends
		})
		if err != nil {
			return toWire(err)
		}
		return stream.Send(&progress[Res]{Result: res})
	}, handlerOptions()...))
}

// remote is the other end of a connection.
type remote struct {
	http *http.Client
	base string // https://host:port
	who  string // for errors: "host a"
}

// call makes a call that is one message each way.
func call[Req, Res any](ctx context.Context, r remote, procedure string, req *Req) (*Res, error) {
	res, err := connect.NewClient[Req, Res](r.http, r.base+procedure, clientOptions()...).CallUnary(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, fromWire(ctx, r.who, err)
	}
	return res.Msg, nil
}

// callSteps makes a call that tells its steps.
func callSteps[Req, Res any](ctx context.Context, r remote, procedure string, req *Req, step func(string)) (*Res, error) {
	stream, err := connect.NewClient[Req, progress[Res]](r.http, r.base+procedure, clientOptions()...).CallServerStream(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, fromWire(ctx, r.who, err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if m := stream.Msg(); m.Result != nil {
			return m.Result, nil
		} else if step != nil {
			step(m.Step)
		}
	}
	err = stream.Err()
	if err == nil {
		err = errors.New("the answer broke off")
	}
	return nil, fromWire(ctx, r.who, err)
}

// How soon a connection whose other end is gone is noticed: nothing is heard for the first, and then the ping is not answered for the second.
const (
	pingAfter   = 5 * time.Second
	pingTimeout = 5 * time.Second
)

// newClient is an HTTP/2 client with one TLS configuration.
func newClient(config *tls.Config) *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Client{Transport: traced{&http.Transport{
		TLSClientConfig: config, Protocols: protocols, TLSHandshakeTimeout: 5 * time.Second, DialContext: dialer.DialContext,
		HTTP2:           &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		IdleConnTimeout: 5 * time.Minute,
	}}}
}

// traced tells the other end what a call is a part of.
type traced struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (t traced) RoundTrip(r *http.Request) (*http.Response, error) {
	if span.TraceID(r.Context()) != "" {
		r = r.Clone(r.Context()) // it is not ours to change
		span.Inject(r.Context(), r.Header)
	}
	return t.Transport.RoundTrip(r)
}

// NewServer is an HTTP/2 server for handlers of this package.
func NewServer(handler http.Handler, config *tls.Config) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	return &http.Server{
		Handler: handler, TLSConfig: config, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Minute, MaxHeaderBytes: 64 << 10,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, MaxConcurrentStreams: 1000},
	}
}
