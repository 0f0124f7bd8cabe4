package hosttest

import (
	"context"
	"io"

	"warmboot"
	"warmboot/internal/controlplane"
)

// Print makes a container's command write a line.
func (h *Host) Print(id warmboot.ID, line controlplane.LogLine) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[id]
	m.logs = append(m.logs, line)
	close(m.more)
	m.more = make(chan struct{})
}

// Logs implements controlplane.Host.
func (h *Host) Logs(ctx context.Context, id warmboot.ID, opts controlplane.LogOptions) (controlplane.LogReader, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	m := h.machines[id]
	if m == nil {
		return nil, warmboot.Errorf(warmboot.NotFound, "read logs", "the host has no container %s", id)
	}
	next := 0
	if opts.Tail >= 0 {
		next = max(0, len(m.logs)-opts.Tail)
	}
	rctx, cancel := context.WithCancel(ctx)
	return &logReader{h: h, m: m, next: next, follow: opts.Follow, ctx: rctx, cancel: cancel}, nil
}

type logReader struct {
	h      *Host
	m      *machine
	next   int
	follow bool
	ctx    context.Context
	cancel context.CancelFunc
}

func (r *logReader) Next() (controlplane.LogLine, error) {
	for {
		r.h.mu.Lock()
		if r.next < len(r.m.logs) {
			defer r.h.mu.Unlock()
			r.next++
			return r.m.logs[r.next-1], nil
		}
		more, ended, crashed := r.m.more, false, r.m.crashed
		select {
		case <-r.m.exited:
			ended = true
		default:
		}
		r.h.mu.Unlock()
		if crashed && r.follow {
			return controlplane.LogLine{}, warmboot.Errorf(warmboot.Unavailable, "read logs", "the microVM ended unexpectedly")
		}
		if ended || !r.follow {
			return controlplane.LogLine{}, io.EOF
		}
		select {
		case <-more:
		case <-r.ctx.Done():
			return controlplane.LogLine{}, r.ctx.Err()
		}
	}
}

func (r *logReader) Close() error {
	r.cancel()
	return nil
}
