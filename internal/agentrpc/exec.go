package agentrpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	"warmboot"
	"warmboot/internal/controlplane"
)

// execInput is a message to a command: first Start, then the others.
type execInput struct {
	Start      *execStart `json:"start,omitempty"`
	Stdin      []byte     `json:"stdin,omitempty"`
	CloseStdin bool       `json:"close_stdin,omitempty"`
	Resize     *execSize  `json:"resize,omitempty"`
}

type execStart struct {
	Container warmboot.ID           `json:"container"`
	Spec      controlplane.ExecSpec `json:"spec"`
}

type execSize struct{ Columns, Rows uint }

// execOutput is a message from a command: first Started, then output, and last ExitCode.
type execOutput struct {
	Started  bool   `json:"started,omitempty"`
	Stream   string `json:"stream,omitempty"`
	Data     []byte `json:"data,omitempty"`
	ExitCode *int   `json:"exit_code,omitempty"`
}

const execProcedure = hostService + "Exec"

func execHandler(mux *http.ServeMux, h controlplane.Host) {
	mux.Handle(execProcedure, connect.NewBidiStreamHandler(execProcedure, func(ctx context.Context, stream *connect.BidiStream[execInput, execOutput]) error {
		first, err := stream.Receive()
		if err != nil {
			return err
		}
		if first.Start == nil {
			return toWire(warmboot.Errorf(warmboot.Invalid, "exec", "the first message has no command"))
		}
		session, err := h.Exec(ctx, first.Start.Container, first.Start.Spec)
		if err != nil {
			return toWire(err)
		}
		defer func() { _ = session.Close() }()
		if err := stream.Send(&execOutput{Started: true}); err != nil {
			return err
		}
		go func() { // ends with the stream
			for {
				in, err := stream.Receive()
				if err != nil {
					_ = session.Stdin().Close()
					return
				}
				switch {
				case in.CloseStdin:
					_ = session.Stdin().Close()
				case in.Resize != nil:
					_ = session.Resize(ctx, in.Resize.Columns, in.Resize.Rows) // a terminal of the wrong size is no reason to end
				default:
					_, _ = session.Stdin().Write(in.Stdin) // a command that does not read any more says so by its end
				}
			}
		}()
		// The other end may be gone without a word, and the command silent: then ctx ends.
		stop := context.AfterFunc(ctx, func() { _ = session.Close() })
		defer stop()
		for {
			name, data, err := session.Next()
			if errors.Is(err, io.EOF) {
				code, err := session.ExitCode(ctx)
				if err != nil {
					return toWire(err)
				}
				return stream.Send(&execOutput{ExitCode: &code})
			}
			if err != nil {
				return toWire(err)
			}
			if err := stream.Send(&execOutput{Stream: name, Data: data}); err != nil {
				return err
			}
		}
	}, handlerOptions()...))
}

func (h host) Exec(ctx context.Context, id warmboot.ID, spec controlplane.ExecSpec) (controlplane.ExecSession, error) {
	// The session outlives the call that asked for it; Close ends it.
	ectx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stream := connect.NewClient[execInput, execOutput](h.http, h.base+execProcedure, clientOptions()...).CallBidiStream(ectx)
	s := &execSession{ctx: ectx, cancel: cancel, stream: stream, who: h.who}
	err := stream.Send(&execInput{Start: &execStart{id, spec}})
	if err == nil || errors.Is(err, io.EOF) { // EOF: the answer says why
		_, err = stream.Receive()
	}
	if err != nil {
		err = fromWire(ctx, h.who, err)
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// execSession is a controlplane.ExecSession.
type execSession struct {
	ctx    context.Context
	cancel context.CancelFunc
	stream *connect.BidiStreamForClient[execInput, execOutput]
	who    string
	send   sync.Mutex // a stream has one sender at a time
	code   int
}

func (s *execSession) Stdin() io.WriteCloser { return execStdin{s} }

type execStdin struct{ s *execSession }

func (w execStdin) Write(p []byte) (int, error) {
	if err := w.s.tell(&execInput{Stdin: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

func (w execStdin) Close() error { return w.s.tell(&execInput{CloseStdin: true}) }

func (s *execSession) tell(m *execInput) error {
	s.send.Lock()
	defer s.send.Unlock()
	return s.stream.Send(m)
}

func (s *execSession) Next() (string, []byte, error) {
	m, err := s.stream.Receive()
	if err != nil {
		return "", nil, fromWire(s.ctx, s.who, err)
	}
	if m.ExitCode != nil {
		s.code = *m.ExitCode
		return "", nil, io.EOF
	}
	return m.Stream, m.Data, nil
}

func (s *execSession) Resize(_ context.Context, columns, rows uint) error {
	return s.tell(&execInput{Resize: &execSize{columns, rows}})
}

func (s *execSession) ExitCode(context.Context) (int, error) { return s.code, nil }

func (s *execSession) Close() error {
	s.cancel()
	_ = s.stream.CloseRequest()
	_ = s.stream.CloseResponse() // it was cancelled, which is no error here
	return nil
}
