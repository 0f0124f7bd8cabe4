package guest

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	guestv1 "warmboot/gen/guest/v1"
)

// service keeps one program running: it is started again whenever it ends, after a pause that grows while it keeps failing.
type service struct {
	name      string
	argv      []string
	env       []string
	output    io.Writer
	processes *processes
	log       *slog.Logger
	ready     func(context.Context) error // what must be there before each start; may be nil
	firstPause, lastPause,
	steady time.Duration // an instance that ran this long has not failed to start

	mu       sync.Mutex
	current  *process
	restarts int32
	stop     context.CancelFunc
	ended    chan struct{}
}

const (
	stopPatience = 15 * time.Second // dockerd stops its containers, with 10 s each, all at once
)

// start begins to supervise.
func (s *service) start() {
	ctx, stop := context.WithCancel(context.Background())
	s.stop, s.ended = stop, make(chan struct{})
	go func() {
		defer close(s.ended)
		s.supervise(ctx)
	}()
}

// halt ends the program and its supervision: SIGTERM, and SIGKILL when it takes too long.
func (s *service) halt() {
	s.stop()
	<-s.ended
}

func (s *service) supervise(ctx context.Context) {
	pause := s.firstPause
	for {
		begin := time.Now()
		err := s.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(begin) >= s.steady {
			pause = s.firstPause
		}
		s.log.Error("service ended; it is started again", "service", s.name, "why", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, s.lastPause)
		s.mu.Lock()
		s.restarts++
		s.mu.Unlock()
	}
}

// once runs the program until it ends; the end of ctx ends it.
func (s *service) once(ctx context.Context) error {
	if s.ready != nil {
		if err := s.ready(ctx); err != nil {
			return err
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	child, err := s.processes.start(s.argv, &syscall.ProcAttr{Dir: "/", Env: s.env, Files: []uintptr{null.Fd(), w.Fd(), w.Fd()}})
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	go func() { // until the last of its descendants has closed the pipe
		defer r.Close()
		_, _ = io.Copy(s.output, r)
	}()
	s.set(child)
	defer s.set(nil)
	select {
	case <-child.done:
	case <-ctx.Done():
		_ = s.processes.signal(child, syscall.SIGTERM)
		select {
		case <-child.done:
		case <-time.After(stopPatience):
			_ = s.processes.signal(child, syscall.SIGKILL)
			<-child.done
		}
	}
	return statusError(child.status)
}

func (s *service) set(child *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = child
}

// pid is 0 while the program does not run.
func (s *service) pid() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return 0
	}
	return s.current.pid
}

func (s *service) health() *guestv1.Service {
	pid := s.pid()
	s.mu.Lock()
	defer s.mu.Unlock()
	return &guestv1.Service{Name: s.name, Pid: int32(pid), Restarts: s.restarts}
}

type statusError syscall.WaitStatus

func (e statusError) Error() string {
	s := syscall.WaitStatus(e)
	if s.Signaled() {
		return "ended by signal: " + s.Signal().String()
	}
	return "ended with exit status " + strconv.Itoa(s.ExitStatus())
}
