package standin

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Server is the stand-in inside this process, for tests of what talks to Firecracker but does not start it. It is what the program is, on the
// same kind of socket. Where the program exits, everything of a Server is closed. Names of files are this process's.
type Server struct {
	Socket string // of the API

	stop   context.CancelFunc
	once   sync.Once
	status int
	done   chan struct{}
}

// Serve makes a Server, which ends with the test if not before.
func Serve(t testing.TB, p Profile) *Server {
	t.Helper()
	if p.Faults.NoSocket || p.Faults.ExitAtStart != 0 {
		t.Fatal("a start that goes wrong takes the program: Install")
	}
	dir, err := os.MkdirTemp("", "standin-") // t.TempDir may be too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &Server{Socket: filepath.Join(dir, "api.sock"), done: make(chan struct{})}
	listen, err := net.Listen("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	l := &life{end: s.end}
	l.Context, s.stop = context.WithCancel(context.Background())
	a := newAPI(p, "anonymous-instance", l)
	l.run(func() { a.serve(listen) })
	go func() {
		defer close(s.done)
		<-l.Done()
		a.vm.mu.Lock()
		a.vm.changed.Broadcast()
		a.vm.mu.Unlock()
		l.work.Wait()
		if err := a.vm.closeAll(); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		s.stop()
		<-s.done
	})
	return s
}

// end is the end of its life, called from what is a part of it.
func (s *Server) end(status int) {
	s.once.Do(func() {
		s.status = status
		s.stop()
	})
	runtime.Goexit()
}

// Done is closed when nothing of it is left.
func (s *Server) Done() <-chan struct{} { return s.done }

// Status is what the program would have exited with, once it is done; 0 too if the test has ended it.
func (s *Server) Status() int { return s.status }
