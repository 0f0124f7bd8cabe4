package guestrpc

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"time"

	"github.com/hashicorp/yamux"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/telemetry/span"
)

// Client is a conversation with the guest agent of one microVM. It is safe for concurrent use. It does not reconnect: once
// Done is closed every call fails with an Unavailable error.
type Client struct {
	session *yamux.Session
}

// How long Connect waits for an answer before it tries again with a new connection. A guest that still boots loses nothing
// by a new attempt; one that is merely slow would, so the patience grows.
const (
	firstPatience = time.Second
	lastPatience  = 4 * time.Second
	redialPause   = 20 * time.Millisecond // the VMM's socket may not be there yet, and tells nobody when it is
)

// Connect reaches the guest agent through dial, which it calls again until the guest answers or ctx ends.
func Connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	patience := firstPatience
	for {
		c, err := connectOnce(ctx, dial, patience)
		if err == nil {
			return c, nil
		}
		patience = min(2*patience, lastPatience)
		select {
		case <-ctx.Done():
			return nil, &warmboot.Error{Code: warmboot.CodeOf(ctx.Err()), Op: "reach guest agent",
				Msg: "the guest did not answer in time; its console log tells how far it came", Err: err}
		case <-time.After(redialPause):
		}
	}
}

func connectOnce(ctx context.Context, dial func(context.Context) (net.Conn, error), patience time.Duration) (*Client, error) {
	conn, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	r, answer, err := greet(conn)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	session, err := yamux.Client(newFence(&buffered{conn, r}, answer), yamuxConfig())
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &Client{session: session}, nil
}

// Done is closed when the conversation is over: Close was called, the machine is gone, or the guest broke the protocol.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// Close ends the conversation and everything in it, processes and tunnels included. The guest goes on.
func (c *Client) Close() error { return c.session.Close() }

// call is one request on a stream of its own.
type call struct {
	op     string
	stream *yamux.Stream
	r      *bufio.Reader
}

// start opens a stream, sends req and waits for the answer. Unless it fails the caller closes the stream.
func (c *Client) start(ctx context.Context, op string, req *guestv1.Request) (_ *call, _ *guestv1.Response, err error) {
	ctx, s := span.StartCall(ctx, "guest: "+op)
	defer func() { s.End(err) }()
	req.Traceparent = span.Header(ctx)
	if err := ctx.Err(); err != nil {
		return nil, nil, &warmboot.Error{Code: warmboot.CodeOf(err), Op: op, Err: err}
	}
	stream, err := c.session.OpenStream()
	if err != nil {
		return nil, nil, gone(op, err)
	}
	k := &call{op: op, stream: stream, r: bufio.NewReader(stream)}
	resp := &guestv1.Response{}
	answered := make(chan error, 1)
	go func() {
		err := WriteMessage(stream, req)
		if err == nil {
			err = ReadMessage(k.r, resp)
		}
		answered <- err
	}()
	select {
	case err = <-answered:
	case <-ctx.Done():
		// Not in line: where the guest has stopped reading, a write (and a close is one) does not heed the deadline.
		_ = stream.SetDeadline(time.Unix(1, 0))
		go func() { _ = stream.Close() }()
		return nil, nil, &warmboot.Error{Code: warmboot.CodeOf(ctx.Err()), Op: op, Msg: "the guest agent has not answered in time", Err: ctx.Err()}
	}
	switch {
	case err != nil:
		go func() { _ = stream.Close() }()
		return nil, nil, gone(op, err)
	case resp.GetFailure() != nil:
		go func() { _ = stream.Close() }()
		return nil, nil, failure(op, resp.GetFailure())
	}
	return k, resp, nil
}

func gone(op string, err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "the connection to the guest agent broke", Err: err}
}

// failure turns what the guest reports into an Error. A guest is not trusted to invent codes, nor to be brief.
func failure(op string, f *guestv1.Failure) error {
	code := warmboot.Code(f.GetCode())
	if code.Outcome() == warmboot.Internal.Outcome() {
		code = warmboot.Internal
	}
	return &warmboot.Error{Code: code, Op: op, Msg: "in the guest: " + Brief(f.GetMessage())}
}
