package hosttest

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"sync"

	"warmboot"
	"warmboot/internal/controlplane"
)

// Exec implements controlplane.Host with three commands: "cat" gives back its input, "exit N" ends with code N after a line on
// stderr, and "size" waits for a terminal size and prints it.
func (h *Host) Exec(ctx context.Context, id warmboot.ID, spec controlplane.ExecSpec) (controlplane.ExecSession, error) {
	h.mu.Lock()
	m := h.machines[id]
	h.mu.Unlock()
	if m == nil {
		return nil, warmboot.Errorf(warmboot.Conflict, "exec", "container %s has no machine", id)
	}
	in, w := io.Pipe()
	s := &session{stdin: w, output: make(chan chunk), size: make(chan [2]uint, 1), closed: make(chan struct{})}
	switch spec.Command[0] {
	case "cat":
		go s.run(func() int {
			buf := make([]byte, 4096)
			for {
				n, err := in.Read(buf)
				if n > 0 && !s.print("stdout", append([]byte(nil), buf[:n]...)) || err != nil {
					return 0
				}
			}
		})
	case "exit":
		code, err := strconv.Atoi(spec.Command[1])
		if err != nil {
			return nil, warmboot.Errorf(warmboot.Invalid, "exec", "%w", err)
		}
		go s.run(func() int {
			s.print("stderr", []byte("ending\n"))
			return code
		})
	case "size":
		go s.run(func() int {
			select {
			case size := <-s.size:
				s.print("stdout", fmt.Appendf(nil, "%dx%d", size[0], size[1]))
			case <-s.closed:
			}
			return 0
		})
	default:
		return nil, warmboot.Errorf(warmboot.NotFound, "exec", "there is no command %q in the container", spec.Command[0])
	}
	return s, nil
}

type chunk struct {
	stream string
	data   []byte
}

type session struct {
	stdin  *io.PipeWriter
	output chan chunk
	size   chan [2]uint
	code   int
	once   sync.Once
	closed chan struct{}
}

func (s *session) run(command func() int) {
	s.code = command()
	close(s.output)
}

func (s *session) print(stream string, data []byte) bool {
	select {
	case s.output <- chunk{stream, data}:
		return true
	case <-s.closed:
		return false
	}
}

func (s *session) Stdin() io.WriteCloser { return s.stdin }

func (s *session) Next() (string, []byte, error) {
	select {
	case c, ok := <-s.output:
		if !ok {
			return "", nil, io.EOF
		}
		return c.stream, c.data, nil
	case <-s.closed:
		return "", nil, io.ErrClosedPipe
	}
}

func (s *session) Resize(_ context.Context, columns, rows uint) error {
	select {
	case s.size <- [2]uint{columns, rows}:
	case <-s.closed:
	}
	return nil
}

func (s *session) ExitCode(context.Context) (int, error) { return s.code, nil }

func (s *session) Close() error {
	s.once.Do(func() {
		close(s.closed)
		_ = s.stdin.Close()
	})
	return nil
}
