package agentrpc

import (
	"context"
	"errors"
	"io"
	"net/http"

	"connectrpc.com/connect"

	"warmboot"
	"warmboot/internal/controlplane"
)

type logsCall struct {
	Container warmboot.ID             `json:"container"`
	Options   controlplane.LogOptions `json:"options"`
}

func logHandler(mux *http.ServeMux, h controlplane.Host) {
	const procedure = hostService + "Logs"
	mux.Handle(procedure, connect.NewServerStreamHandlerSimple(procedure, func(ctx context.Context, r *logsCall, stream *connect.ServerStream[controlplane.LogLine]) error {
		reader, err := h.Logs(ctx, r.Container, r.Options)
		if err != nil {
			return toWire(err)
		}
		defer func() { _ = reader.Close() }()
		for {
			line, err := reader.Next()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return toWire(err)
			}
			if err := stream.Send(&line); err != nil {
				return err
			}
		}
	}, handlerOptions()...))
}

func (h host) Logs(ctx context.Context, id warmboot.ID, opts controlplane.LogOptions) (controlplane.LogReader, error) {
	lctx, cancel := context.WithCancel(ctx)
	stream, err := connect.NewClient[logsCall, controlplane.LogLine](h.http, h.base+hostService+"Logs", clientOptions()...).
		CallServerStream(lctx, connect.NewRequest(&logsCall{id, opts}))
	if err != nil {
		cancel()
		return nil, fromWire(ctx, h.who, err)
	}
	r := &logReader{ctx: ctx, cancel: cancel, stream: stream, who: h.who}
	// An error of the call itself comes instead of the first line, and belongs here.
	if r.first, r.err = r.receive(); r.err != nil && !errors.Is(r.err, io.EOF) {
		_ = r.Close()
		return nil, r.err
	}
	r.read = true
	return r, nil
}

// logReader is a controlplane.LogReader.
type logReader struct {
	ctx    context.Context
	cancel context.CancelFunc
	stream *connect.ServerStreamForClient[controlplane.LogLine]
	who    string
	first  controlplane.LogLine // has been received already, if read
	err    error
	read   bool
}

func (r *logReader) Next() (controlplane.LogLine, error) {
	if r.read {
		r.read = false
		return r.first, r.err
	}
	return r.receive()
}

func (r *logReader) receive() (controlplane.LogLine, error) {
	if r.stream.Receive() {
		return *r.stream.Msg(), nil
	}
	if err := r.stream.Err(); err != nil {
		return controlplane.LogLine{}, fromWire(r.ctx, r.who, err)
	}
	return controlplane.LogLine{}, io.EOF
}

func (r *logReader) Close() error {
	r.cancel()
	return r.stream.Close()
}
