package agent

import (
	"context"
	"io"
	"slices"
	"sync"

	"github.com/moby/moby/client"

	"warmboot"
	"warmboot/internal/controlplane"
)

// Exec runs a command in a running container.
func (a *Agent) Exec(ctx context.Context, id warmboot.ID, spec controlplane.ExecSpec) (controlplane.ExecSession, error) {
	c, err := a.find(id)
	if err != nil {
		return nil, err
	}
	vm, err := c.vm()
	if err != nil {
		return nil, err
	}
	opts := client.ExecCreateOptions{
		User: spec.User, TTY: spec.TTY, WorkingDir: spec.Workdir, Cmd: spec.Command,
		AttachStdin: spec.Stdin, AttachStdout: true, AttachStderr: true,
	}
	for k, v := range spec.EnvVars {
		opts.Env = append(opts.Env, k+"="+v)
	}
	slices.Sort(opts.Env)
	created, err := vm.docker.ExecCreate(ctx, ociContainer, opts)
	if err != nil {
		return nil, dockerError("exec", err)
	}
	s, err := startExec(ctx, vm.docker, created.ID, spec.TTY)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// startExec starts a command that Docker has created. The session outlives ctx; Close ends it.
func startExec(ctx context.Context, d *dockerClient, id string, tty bool) (*execSession, error) {
	conn, err := d.attach(ctx, id, tty)
	if err != nil {
		return nil, dockerError("exec", err)
	}
	s := &execSession{docker: d, id: id, conn: conn, output: make(chan execOutput), closed: make(chan struct{})}
	go s.copyOutput(tty)
	return s, nil
}

// execSession is a command that runs in a guest's Docker.
type execSession struct {
	docker *dockerClient
	id     string
	conn   duplex
	output chan execOutput
	err    error // why output ended; set before output is closed
	closed chan struct{}
	once   sync.Once
}

type execOutput struct {
	stream string
	data   []byte
}

// copyOutput takes Docker's stream apart. With a terminal there is only one.
func (s *execSession) copyOutput(tty bool) {
	defer close(s.output)
	stdout := execWriter{s, "stdout"}
	if tty {
		_, s.err = io.Copy(stdout, s.conn)
		return
	}
	s.err = splitOutput(stdout, execWriter{s, "stderr"}, s.conn)
}

type execWriter struct {
	s      *execSession
	stream string
}

func (w execWriter) Write(p []byte) (int, error) {
	select {
	case w.s.output <- execOutput{w.stream, slices.Clone(p)}:
		return len(p), nil
	case <-w.s.closed:
		return 0, io.ErrClosedPipe
	}
}

// Stdin is written to the command; closing it is end of file.
func (s *execSession) Stdin() io.WriteCloser { return execStdin{s} }

type execStdin struct{ s *execSession }

func (w execStdin) Write(p []byte) (int, error) { return w.s.conn.Write(p) }
func (w execStdin) Close() error                { return w.s.conn.CloseWrite() }

// Next gives the next piece of output; io.EOF when the command has ended and all its output is out.
func (s *execSession) Next() (string, []byte, error) {
	if o, ok := <-s.output; ok {
		return o.stream, o.data, nil
	}
	if s.err != nil {
		return "", nil, &warmboot.Error{Code: warmboot.Unavailable, Op: "exec", Msg: "the connection to the microVM was lost", Err: s.err}
	}
	return "", nil, io.EOF
}

// Resize sets the size of the command's terminal.
func (s *execSession) Resize(ctx context.Context, columns, rows uint) error {
	_, err := s.docker.ExecResize(ctx, s.id, client.ExecResizeOptions{Width: columns, Height: rows})
	if err != nil {
		return dockerError("resize terminal", err)
	}
	return nil
}

// ExitCode is valid after Next has returned io.EOF.
func (s *execSession) ExitCode(ctx context.Context) (int, error) {
	res, err := s.docker.ExecInspect(ctx, s.id, client.ExecInspectOptions{})
	if err != nil {
		return -1, dockerError("exec", err)
	}
	if res.Running {
		return -1, warmboot.Errorf(warmboot.Conflict, "exec", "the command still runs")
	}
	return res.ExitCode, nil
}

// Close ends the session. The command is not killed. Idempotent.
func (s *execSession) Close() error {
	s.once.Do(func() {
		close(s.closed)
		s.conn.Close()
	})
	return nil
}
