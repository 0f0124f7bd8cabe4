package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/rollback"
)

func (a *app) execCmd() *cobra.Command {
	var (
		env, envFiles []string
		req           api.Exec
	)
	cmd := &cobra.Command{
		Use:                   "exec [FLAGS] CONTAINER COMMAND [ARG...]",
		DisableFlagsInUseLine: true,
		Short:                 "Run a command in a running container",
		Long: `Run a command in a running container.

exec exits with the exit code of the command; 125 means that warmboot itself failed.`,
		Example: `  warmboot exec web nginx -t
  warmboot exec -it web sh`,
		Args:        cobra.MinimumNArgs(2),
		Annotations: map[string]string{passesExitCode: "yes"},
		ValidArgsFunction: a.completeContainers(func(c api.Container) bool {
			return c.State == string(warmboot.ContainerRunning)
		}),
		RunE: a.do(func(ctx context.Context, args []string) error {
			var err error
			if req.EnvVars, err = a.parseEnv(env, envFiles); err != nil {
				return err
			}
			req.Command = args[1:]
			return a.exec(ctx, args[0], req)
		}),
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows CONTAINER is the command's
	f.BoolVarP(&req.Stdin, "interactive", "i", false, "connect standard input")
	f.BoolVarP(&req.TTY, "tty", "t", false, "give the command a terminal")
	f.StringArrayVarP(&env, "env", "e", nil, "environment variable, `NAME=VALUE`; NAME alone hands yours on")
	f.StringArrayVar(&envFiles, "env-file", nil, "`file` of lines like the values of -e")
	f.StringVarP(&req.Workdir, "workdir", "w", "", "`directory` to run in")
	f.StringVarP(&req.User, "user", "u", "", "`user`[:group] to run as")
	return cmd
}

func (a *app) exec(ctx context.Context, ref string, req api.Exec) (err error) {
	if req.TTY && req.Stdin && !isTerminal(a.In) {
		return warmboot.Errorf(warmboot.Invalid, "", "standard input is not a terminal; leave out -t")
	}
	cl, err := a.client()
	if err != nil {
		return err
	}
	session, err := cl.Exec(ctx, ref, req)
	if err != nil {
		return err
	}
	defer func() { _ = session.Close() }() // all there is to know came with Next
	if req.TTY {
		var undo rollback.Stack
		defer func() { err = errors.Join(err, undo.Unwind()) }()
		if err := a.connectTerminal(session, req.Stdin, &undo); err != nil {
			return err
		}
	}
	if req.Stdin {
		go func() {
			stdin := session.Stdin()
			_, _ = io.Copy(stdin, a.In) // an error of the session shows in Next as well
			stdin.Close()
		}()
	}
	for {
		stream, data, err := session.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		w := a.Out
		if stream == "stderr" {
			w = a.Err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	if code := session.ExitCode(); code != 0 {
		return exitStatus(code)
	}
	return nil
}

// connectTerminal makes our terminal one with the command's: raw, so that every key reaches it, and of the same size, now and
// whenever it changes.
func (a *app) connectTerminal(session *client.ExecSession, raw bool, undo *rollback.Stack) error {
	in, ok := a.In.(*os.File)
	if !ok || !isTerminal(in) {
		return nil // output only: the command believes in a terminal, nobody sees its size
	}
	fd := int(in.Fd())
	if raw {
		old, err := term.MakeRaw(fd)
		if err != nil {
			return &warmboot.Error{Code: warmboot.Internal, Op: "prepare terminal", Err: err}
		}
		undo.Push("raw terminal", func() error { return term.Restore(fd, old) })
	}
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	done := make(chan struct{})
	undo.Push("watch the terminal's size", func() error {
		signal.Stop(resized)
		close(done)
		return nil
	})
	go func() {
		for {
			// A size that could not be told leaves the command with the old one; the session's end shows in Next.
			if columns, rows, err := term.GetSize(fd); err == nil && columns > 0 && rows > 0 {
				_ = session.Resize(uint(columns), uint(rows))
			}
			select {
			case <-resized:
			case <-done:
				return
			}
		}
	}()
	return nil
}
