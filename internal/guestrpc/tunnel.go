package guestrpc

import (
	"bufio"
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"

	guestv1 "warmboot/gen/guest/v1"
)

// DialDocker connects to Docker's socket in the guest. The connection also has CloseWrite() error, which Docker's client
// uses to end a command's input. ctx is about connecting only.
func (c *Client) DialDocker(ctx context.Context) (net.Conn, error) {
	req := &guestv1.TunnelRequest{Target: guestv1.TunnelRequest_TARGET_DOCKER}
	k, _, err := c.start(ctx, "connect to Docker", &guestv1.Request{Call: &guestv1.Request_Tunnel{Tunnel: req}})
	if err != nil {
		return nil, err
	}
	return &tunnel{Stream: k.stream, r: k.r}, nil
}

// tunnel is the host's end of a tunnel; deadlines and addresses are those of the stream.
type tunnel struct {
	*yamux.Stream
	r      *bufio.Reader
	mu     sync.Mutex // one chunk at a time
	ended  bool       // CloseWrite was called
	closed atomic.Bool
}

func (t *tunnel) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && t.closed.Load() {
		err = net.ErrClosed
	}
	return n, err
}

func (t *tunnel) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || t.closed.Load() {
		return 0, net.ErrClosed
	}
	return writeChunks(t.Stream, p)
}

// CloseWrite tells the guest that no more input comes; reading goes on.
func (t *tunnel) CloseWrite() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended || t.closed.Load() {
		return nil
	}
	t.ended = true
	return writeChunk(t.Stream, nil)
}

// Close ends the connection both ways and wakes whoever reads or writes.
func (t *tunnel) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	_ = t.SetDeadline(time.Unix(1, 0))
	return t.Stream.Close()
}
