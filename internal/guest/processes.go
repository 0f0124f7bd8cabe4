package guest

import (
	"errors"
	"sync"
	"syscall"
)

// processes starts processes and waits for them. Whoever is PID 1 inherits every orphan of the machine and must wait for any
// child; that would take the exit status away from os/exec, so as PID 1 all waiting is done in one place (reap) and
// os/exec is not used.
type processes struct {
	init    bool
	mu      sync.Mutex // held while forking, so that reap knows every child of ours
	started *sync.Cond
	running map[int]*process
}

// process is a child of ours. status is valid once done is closed.
type process struct {
	pid    int
	done   chan struct{}
	status syscall.WaitStatus
}

func newProcesses(init bool) *processes {
	p := &processes{init: init, running: map[int]*process{}}
	p.started = sync.NewCond(&p.mu)
	return p
}

// start runs argv, whose first element is a path, in a session of its own. attr.Env is the whole environment.
func (p *processes) start(argv []string, attr *syscall.ProcAttr) (*process, error) {
	attr.Sys = &syscall.SysProcAttr{Setsid: true}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return nil, err
	}
	child := &process{pid: pid, done: make(chan struct{})}
	p.running[pid] = child
	p.started.Broadcast()
	if !p.init {
		go func() { _ = p.wait(pid) }()
	}
	return child, nil
}

// signal sends sig to the process and all others of its session that stayed in its process group. It does nothing once the
// process has been waited for, when its id may mean another one.
func (p *processes) signal(child *process, sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.running[child.pid] != child {
		return nil
	}
	return syscall.Kill(-child.pid, sig)
}

// reap waits for every child there is, ours and orphans, for ever.
func (p *processes) reap() {
	for {
		if err := p.wait(-1); errors.Is(err, syscall.ECHILD) {
			// Orphans are descendants of our children, so there is nothing to wait for until we start one.
			p.mu.Lock()
			for len(p.running) == 0 {
				p.started.Wait()
			}
			p.mu.Unlock()
		}
	}
}

func (p *processes) wait(pid int) error {
	var status syscall.WaitStatus
	for {
		got, err := syscall.Wait4(pid, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if child := p.running[got]; child != nil {
			delete(p.running, got)
			child.status = status
			close(child.done)
		}
		return nil
	}
}

// exitCode is the shell's: 128+n for a process that signal n ended.
func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}
