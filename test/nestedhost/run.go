package nestedhost

import (
	"bytes"
	"context"
	"io"
	"strings"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
)

const (
	// commandLimit is how long a command may take whose context has no deadline.
	commandLimit = 10 * time.Minute
	// killLimit is how long the machine may take to tell that a command has been killed.
	killLimit = 5 * time.Second
)

// Command is a command to run in the machine, as root.
type Command struct {
	Argv           []string
	Env            []string // KEY=value, added to PATH and HOME
	Dir            string   // "/" if empty
	Stdin          io.Reader
	Stdout, Stderr io.Writer // discarded if nil; written to as the output comes
}

// Exec runs a command to its end, or to that of ctx or, if that has no deadline, for ten minutes, and returns its exit code: 128+n if signal n ended it. A process that is to
// go on must be started by systemd-run. A machine that is off, gone or stuck is an error.
func (m *Machine) Exec(ctx context.Context, c Command) (code int, err error) {
	op := "run " + strings.Join(c.Argv, " ")
	if _, set := ctx.Deadline(); !set {
		limited, cancel := context.WithTimeout(ctx, commandLimit)
		defer cancel()
		ctx = limited
	}
	p, err := m.powered(op)
	if err != nil {
		return 0, err
	}
	client, err := p.agent(ctx, op)
	if err != nil {
		return 0, err
	}
	process, err := client.Exec(ctx, &guestv1.ExecRequest{Argv: c.Argv, Env: c.Env, Dir: c.Dir})
	if err != nil {
		return 0, p.explain(op, err)
	}
	go func() { // ends with the process, unless Stdin itself has nothing to say
		if c.Stdin != nil {
			_, _ = io.Copy(process.Stdin, c.Stdin)
		}
		_ = process.Stdin.Close()
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		process.Output(func(stdout, stderr []byte) {
			write(c.Stdout, stdout)
			write(c.Stderr, stderr)
		})
		code, err = process.Wait()
	}()
	var why error
	select {
	case <-ended:
	case <-ctx.Done():
		why = context.Cause(ctx)
	case <-p.panics:
		why = context.Canceled
		_ = client.Close()
	case <-p.hung:
		why = context.DeadlineExceeded
		_ = client.Close()
	}
	if why != nil {
		abandon(client, process, ended)
		return 0, p.explain(op, why)
	}
	if err != nil {
		return 0, p.explain(op, err)
	}
	return code, nil
}

// abandon kills a command. From a machine that does not even tell that, it hangs up.
func abandon(client *guestrpc.Client, process *guestrpc.Process, ended <-chan struct{}) {
	go func() { _ = process.Close() }()
	select {
	case <-ended:
	case <-time.After(killLimit):
		_ = client.Close()
		<-ended
	}
}

func write(w io.Writer, p []byte) {
	if w != nil && len(p) > 0 {
		_, _ = w.Write(p)
	}
}

// Run runs a command and returns what it wrote to its standard output, without the last line's end. An exit code other than 0 is
// an Internal error that quotes the end of the output.
func (m *Machine) Run(ctx context.Context, argv ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	code, err := m.Exec(ctx, Command{Argv: argv, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return "", err
	}
	if code != 0 {
		return "", warmboot.Errorf(warmboot.Internal, "run "+strings.Join(argv, " "), "exit code %d:\n%s", code, end(stdout.String()+stderr.String(), 30))
	}
	return strings.TrimSuffix(stdout.String(), "\n"), nil
}
