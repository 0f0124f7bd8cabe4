package guestrpc

import (
	"bufio"
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// Accept waits on conn for a host to begin a conversation and returns the guest's end of it. The caller closes the session,
// which closes conn.
//
// announce, which may be nil, is told the bytes that answer this host. A guest agent that died leaves a host waiting for ever on a
// channel that does not end with it, as a virtio-serial port; the agent after it writes the same bytes again, and the host knows.
func Accept(conn io.ReadWriteCloser, announce func(answer []byte)) (*yamux.Session, error) {
	r, err := Handshake(conn, announce)
	if err != nil {
		return nil, err
	}
	return yamux.Server(&buffered{conn, r}, yamuxConfig())
}

// yamuxConfig is the same on both sides. Nothing may be written while nobody asks for anything: a machine must be able to
// be frozen, and a keep-alive that runs into a pause ends the session.
func yamuxConfig() *yamux.Config {
	c := yamux.DefaultConfig()
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = 30 * time.Second // a machine in pure emulation can be this slow to read
	c.StreamCloseTimeout = time.Minute
	c.LogOutput = io.Discard
	return c
}

// buffered is a connection of which a reader has already buffered the beginning.
type buffered struct {
	io.WriteCloser
	r *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
