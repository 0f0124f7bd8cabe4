package guest

import (
	"bufio"
	"context"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
)

const (
	execPiece = 32 << 10 // bytes of output in one message
	// outputGrace is how long a process that has ended may leave its output open to something it started, before
	// the call ends without the rest.
	outputGrace = 300 * time.Millisecond
)

// exec runs a command for the host and streams its input and output.
func (g *Guest) exec(stream *yamux.Stream, r *bufio.Reader, req *guestv1.ExecRequest) {
	child, stdin, stdout, stderr, err := g.startPiped(req.Argv, req.Env, req.Dir)
	if err != nil {
		refuse(stream, err)
		return
	}
	defer stdin.Close()
	defer func() { _ = g.processes.signal(child, syscall.SIGKILL) }()
	if guestrpc.WriteMessage(stream, &guestv1.Response{Result: &guestv1.Response_Exec{Exec: &guestv1.ExecResponse{Pid: int32(child.pid)}}}) != nil {
		return
	}
	var sending sync.Mutex
	send := func(out *guestv1.ExecOutput) error {
		sending.Lock()
		defer sending.Unlock()
		return guestrpc.WriteMessage(stream, out)
	}
	var outputs sync.WaitGroup
	outputs.Go(func() {
		pump(stdout, func(b []byte) error { return send(&guestv1.ExecOutput{Stdout: b}) })
	})
	outputs.Go(func() {
		pump(stderr, func(b []byte) error { return send(&guestv1.ExecOutput{Stderr: b}) })
	})
	go g.execInput(child, stdin, r)
	<-child.done
	timer := time.AfterFunc(outputGrace, func() {
		_ = stdout.SetReadDeadline(time.Unix(1, 0))
		_ = stderr.SetReadDeadline(time.Unix(1, 0))
	})
	outputs.Wait()
	timer.Stop()
	_ = send(&guestv1.ExecOutput{Exited: true, ExitCode: int32(exitCode(child.status))})
}

// execInput carries out what the host sends to a running command. A host that closes the stream wants it dead.
func (g *Guest) execInput(child *process, stdin *os.File, r *bufio.Reader) {
	for {
		in := &guestv1.ExecInput{}
		if err := guestrpc.ReadMessage(r, in); err != nil {
			_ = g.processes.signal(child, syscall.SIGKILL)
			return
		}
		if len(in.Stdin) > 0 {
			_, _ = stdin.Write(in.Stdin) // a command that does not read its input is no error
		}
		if in.CloseStdin {
			stdin.Close()
		}
		if in.Signal != 0 {
			_ = g.processes.signal(child, syscall.Signal(in.Signal))
		}
	}
}

func pump(r *os.File, send func([]byte) error) {
	defer r.Close()
	buf := make([]byte, execPiece)
	for {
		n, err := r.Read(buf)
		if n > 0 && send(buf[:n]) != nil || err != nil {
			return
		}
	}
}

// startPiped starts a command with pipes for its input and outputs.
func (g *Guest) startPiped(argv, env []string, dir string) (child *process, stdin, stdout, stderr *os.File, err error) {
	const op = "run command in guest"
	if len(argv) == 0 || argv[0] == "" {
		return nil, nil, nil, nil, warmboot.Errorf(warmboot.Invalid, op, "there is no command; argv must not be empty")
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return nil, nil, nil, nil, &warmboot.Error{Code: warmboot.NotFound, Op: op, Err: err}
	}
	var theirs []*os.File // the ends that the child inherits
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	var ours [3]*os.File
	for i := range ours {
		r, w, err := os.Pipe()
		if err != nil {
			for _, f := range ours[:i] {
				f.Close()
			}
			return nil, nil, nil, nil, internal(op, err)
		}
		if i == 0 {
			r, w = w, r
		}
		ours[i], theirs = r, append(theirs, w)
	}
	if dir == "" {
		dir = "/"
	}
	var files []uintptr
	for _, f := range theirs {
		_ = syscall.SetNonblock(int(f.Fd()), false) // few programs expect anything else
		files = append(files, f.Fd())
	}
	child, err = g.processes.start(append([]string{path}, argv[1:]...), &syscall.ProcAttr{Dir: dir, Env: append([]string{searchPath, "HOME=/root"}, env...), Files: files})
	if err != nil {
		for _, f := range ours {
			f.Close()
		}
		return nil, nil, nil, nil, &warmboot.Error{Code: warmboot.Invalid, Op: op, Msg: "cannot start " + path, Err: err}
	}
	return child, ours[0], ours[1], ours[2], nil
}

// run runs a command to its end and returns its exit code and the beginning of what it wrote.
func (g *Guest) run(ctx context.Context, argv ...string) (code int, output string, err error) {
	child, stdin, stdout, stderr, err := g.startPiped(argv, nil, "")
	if err != nil {
		return 0, "", err
	}
	stdin.Close()
	stop := context.AfterFunc(ctx, func() { _ = g.processes.signal(child, syscall.SIGKILL) })
	defer stop()
	var text [2][]byte
	var reading sync.WaitGroup
	for i, f := range []*os.File{stdout, stderr} {
		reading.Go(func() {
			defer f.Close()
			text[i], _ = io.ReadAll(io.LimitReader(f, 64<<10))
			_, _ = io.Copy(io.Discard, f)
		})
	}
	reading.Wait()
	<-child.done
	return exitCode(child.status), string(text[0]) + string(text[1]), ctx.Err()
}
