package guestrpc

import (
	"context"
	"io"
	"sync"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

// Process is a command that runs in the guest's operating system (not in a container). Output must be called, once, for the
// process to make progress when it writes much; Wait does it if nobody did.
type Process struct {
	PID   int            // in the guest
	Stdin io.WriteCloser // closing it is end of file for the command
	call  *call

	sendMu  sync.Mutex // one message at a time
	readMu  sync.Mutex
	exited  bool
	code    int
	readErr error
}

// Exec starts a command in the guest. ctx bounds the start only; Close, or the end of the client, kills what still runs.
func (c *Client) Exec(ctx context.Context, req *guestv1.ExecRequest) (*Process, error) {
	k, resp, err := c.start(ctx, "run command in guest", &guestv1.Request{Call: &guestv1.Request_Exec{Exec: req}})
	if err != nil {
		return nil, err
	}
	p := &Process{PID: int(resp.GetExec().GetPid()), call: k}
	p.Stdin = &processStdin{p}
	return p, nil
}

// Output hands what the process writes to f, piece by piece and in order, until it has ended. The slices are f's to keep.
func (p *Process) Output(f func(stdout, stderr []byte)) {
	p.readMu.Lock()
	defer p.readMu.Unlock()
	for !p.exited && p.readErr == nil {
		out := &guestv1.ExecOutput{}
		if err := ReadMessage(p.call.r, out); err != nil {
			p.readErr = gone(p.call.op, err)
			return
		}
		if len(out.Stdout)+len(out.Stderr) > 0 {
			f(out.Stdout, out.Stderr)
		}
		if out.Exited {
			p.exited, p.code = true, int(out.ExitCode)
		}
	}
}

// Wait returns the exit code once the process has ended: 128+n if signal n ended it. Output that nobody asked for is lost.
func (p *Process) Wait() (int, error) {
	p.Output(func([]byte, []byte) {})
	_ = p.call.stream.Close()
	return p.code, p.readErr
}

// Signal sends a signal to the process and what it started.
func (p *Process) Signal(signal int) error {
	return p.send(&guestv1.ExecInput{Signal: int32(signal)})
}

// Close kills the process if it still runs.
func (p *Process) Close() error { return p.call.stream.Close() }

func (p *Process) send(in *guestv1.ExecInput) error {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	if err := WriteMessage(p.call.stream, in); err != nil {
		return gone(p.call.op, err)
	}
	return nil
}

type processStdin struct{ p *Process }

func (s *processStdin) Write(b []byte) (int, error) {
	const part = MaxMessage / 4
	for done := 0; done < len(b); done += part {
		if err := s.p.send(&guestv1.ExecInput{Stdin: b[done:min(len(b), done+part)]}); err != nil {
			return done, err
		}
	}
	return len(b), nil
}

func (s *processStdin) Close() error {
	err := s.p.send(&guestv1.ExecInput{CloseStdin: true})
	if warmboot.CodeOf(err) == warmboot.Unavailable {
		return nil // the process has ended, and with it its input
	}
	return err
}
