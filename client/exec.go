package client

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/telemetry/span"
)

// Sizes of messages on the WebSocket, in bytes.
const (
	frameLimit = 1 << 20  // of one that we accept
	stdinChunk = 32 << 10 // of input in one that we send
)

// ExecSession is a command that runs in a container. Next is for one goroutine; the other methods may be called at the
// same time from others.
type ExecSession struct {
	ctx   context.Context
	conn  *websocket.Conn
	c     *Client
	stdin sync.Mutex // Write and Close of Stdin, which may come from two goroutines
	shut  bool       // Stdin is closed

	pending api.ExecFrame // output that came and was not given out yet
	exit    *int
	err     error // what Next goes on returning
}

// Exec runs a command in a running container. The session ends with ctx.
func (c *Client) Exec(ctx context.Context, idOrName string, cmd api.Exec) (*ExecSession, error) {
	path, err := ref("/v1/containers/", idOrName, "/exec")
	if err != nil {
		return nil, err
	}
	header := c.header()
	span.Inject(ctx, header)
	conn, res, err := websocket.Dial(ctx, c.base+path, &websocket.DialOptions{HTTPClient: c.http, HTTPHeader: header}) //nolint:bodyclose // the library sees to it
	if err != nil {
		if res != nil && res.StatusCode >= 300 {
			return nil, problem(res)
		}
		return nil, c.unreachable(ctx, err)
	}
	conn.SetReadLimit(frameLimit)
	s := &ExecSession{ctx: ctx, conn: conn, c: c}
	if err := s.write(api.ExecFrame{Start: &cmd}); err != nil {
		_ = conn.CloseNow()
		return nil, err
	}
	return s, nil
}

func (s *ExecSession) write(f api.ExecFrame) error {
	if err := wsjson.Write(s.ctx, s.conn, f); err != nil {
		return s.c.broken(s.ctx, err)
	}
	return nil
}

// Stdin is the command's standard input, if the session was opened with Stdin. Closing it is end of file.
func (s *ExecSession) Stdin() io.WriteCloser { return execStdin{s} }

type execStdin struct{ s *ExecSession }

func (w execStdin) Write(p []byte) (int, error) {
	w.s.stdin.Lock()
	defer w.s.stdin.Unlock()
	if w.s.shut {
		return 0, io.ErrClosedPipe
	}
	for n := 0; n < len(p); n += stdinChunk {
		if err := w.s.write(api.ExecFrame{Stdin: p[n:min(n+stdinChunk, len(p))]}); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

func (w execStdin) Close() error {
	w.s.stdin.Lock()
	defer w.s.stdin.Unlock()
	if w.s.shut {
		return nil
	}
	w.s.shut = true
	return w.s.write(api.ExecFrame{CloseStdin: true})
}

// Next returns the next piece of output and which stream it is of, "stdout" or "stderr". It returns io.EOF when the
// command has ended and all its output is out; ExitCode is known then.
func (s *ExecSession) Next() (stream string, data []byte, err error) {
	for {
		switch f := &s.pending; {
		case len(f.Stdout) > 0:
			data, f.Stdout = f.Stdout, nil
			return "stdout", data, nil
		case len(f.Stderr) > 0:
			data, f.Stderr = f.Stderr, nil
			return "stderr", data, nil
		case s.err != nil:
			return "", nil, s.err
		}
		s.pending = api.ExecFrame{}
		if err := wsjson.Read(s.ctx, s.conn, &s.pending); err != nil {
			s.err = s.c.broken(s.ctx, err)
			continue
		}
		switch f := s.pending; {
		case f.Error != "":
			s.err = &warmboot.Error{Code: s.closeCode(), Msg: f.Error}
		case f.ExitCode != nil:
			s.exit, s.err = f.ExitCode, io.EOF
		}
	}
}

// closeCode is the code of the error that the server has just told: it closes the connection with it as the reason.
func (s *ExecSession) closeCode() warmboot.Code {
	_, _, err := s.conn.Read(s.ctx)
	var closed websocket.CloseError
	if errors.As(err, &closed) && closed.Reason != "" {
		return warmboot.Code(closed.Reason)
	}
	return warmboot.Internal
}

// Resize tells the command's terminal its new size, in characters.
func (s *ExecSession) Resize(columns, rows uint) error {
	return s.write(api.ExecFrame{Resize: &api.Size{Columns: columns, Rows: rows}})
}

// ExitCode is the command's, once Next has returned io.EOF; -1 before.
func (s *ExecSession) ExitCode() int {
	if s.exit == nil {
		return -1
	}
	return *s.exit
}

// Close ends the session; a command that still runs goes on without it.
func (s *ExecSession) Close() error { return s.conn.CloseNow() }
