// Package process is for programs that outlive us: a VMM's process is started here, held so that no signal can reach another one
// that got its number, and found again after a restart of ours. It also keeps the end of what such a program prints.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// ErrGone says that a process is not there any more, or that its number belongs to another one now.
var ErrGone = errors.New("the process is gone")

// Process is a process that is held by a file descriptor: a signal can never reach another process that got its number. It is safe
// for concurrent use.
type Process struct {
	PID       int
	StartTime uint64 // in clock ticks since the host booted: field 22 of /proc/PID/stat

	fd   *os.File
	done chan struct{}    // closed when it has ended
	how  *os.ProcessState // how it ended, if it was our child; set before done is closed
}

// Start starts a command as owner, in a session of its own. A process that is not root keeps the capabilities in ambient, and may
// use KVM if a group may.
func Start(cmd *exec.Cmd, owner vmm.Owner, ambient []uintptr) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	if owner.Confined() {
		groups, err := KVMGroup()
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: owner.UID, Gid: owner.GID, Groups: append(groups, owner.Groups()...)}
		cmd.SysProcAttr.AmbientCaps = ambient
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var undo rollback.Stack
	defer undo.Unwind()
	undo.Push("start process", func() error { return errors.Join(cmd.Process.Kill(), cmd.Wait()) })
	// A child that nobody has waited for yet keeps its number, so this finds the right process, even if it has ended already.
	p, _, err := open(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	if err := p.giveUpProtection(); err != nil {
		return nil, err
	}
	undo.Move()
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		p.how = cmd.ProcessState
		p.ended()
	}()
	return p, nil
}

// giveUpProtection makes the process one that the kernel may kill when memory runs out, also where that cannot happen to us: a group of processes
// that has reached its limit and has none to kill never gets any further.
func (p *Process) giveUpProtection() error {
	const ours = "/proc/self/oom_score_adj"
	text, err := os.ReadFile(ours)
	if err != nil {
		return err
	}
	if adj, err := strconv.Atoi(string(bytes.TrimSpace(text))); err != nil || adj >= 0 {
		return err
	}
	err = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.PID), []byte("0"), 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil // it has ended already
	}
	return err
}

// KVMDevice is where the kernel offers KVM.
const KVMDevice = "/dev/kvm"

// KVMGroup is the group that may use KVM, so that a VMM that is not root can; none if there is no such group.
func KVMGroup() ([]uint32, error) {
	info, err := os.Stat(KVMDevice)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	gid := info.Sys().(*syscall.Stat_t).Gid
	if info.Mode().Perm()&0o060 != 0o060 || gid == 0 {
		return nil, nil
	}
	return []uint32{gid}, nil
}

// Find finds a process that we, or a process before us, started at startTime. It is an ErrGone if it has ended.
func Find(pid int, startTime uint64) (*Process, error) {
	if pid <= 1 {
		return nil, ErrGone
	}
	p, ended, err := open(pid)
	if err != nil {
		return nil, err
	}
	if ended || p.StartTime != startTime {
		p.fd.Close()
		return nil, ErrGone
	}
	// The runtime's poller wakes the goroutine when the descriptor becomes readable, which is when the process ends.
	raw, err := p.fd.SyscallConn()
	if err != nil {
		p.fd.Close()
		return nil, err
	}
	go func() {
		_ = raw.Read(func(fd uintptr) bool {
			ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return ready > 0 || (err != nil && err != unix.EINTR)
		})
		p.ended()
	}()
	return p, nil
}

// open takes hold of a process by its number. ended tells that it is a zombie: it has ended, and its parent has not asked how.
func open(pid int) (p *Process, ended bool, err error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, false, ErrGone
	}
	if err != nil {
		return nil, false, fmt.Errorf("open process %d: %w", pid, err)
	}
	p = &Process{PID: pid, fd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	// Read after the descriptor was opened: this is the process it stands for, or that has ended.
	if p.StartTime, ended, err = startTime(pid); err != nil {
		p.fd.Close()
		return nil, false, err
	}
	return p, ended, nil
}

// startTime is when a process was started, in clock ticks since the host booted, and whether it is a zombie.
func startTime(pid int) (ticks uint64, ended bool, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, false, ErrGone
	}
	if err != nil {
		return 0, false, err
	}
	// The second field is the program's name in parentheses, which may itself contain any of these characters.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, false, fmt.Errorf("process %d: cannot read %q", pid, stat)
	}
	state := fields[0][0]
	ticks, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return ticks, state == 'Z' || state == 'X', err
}

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended reports whether the process has ended.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// State tells how the process ended; nil while it runs, and if it is not our child.
func (p *Process) State() *os.ProcessState {
	if !p.Ended() {
		return nil
	}
	return p.how
}

// Killed tells whether a process was ended by force, as the kernel does when memory runs out. nil, which says nothing of how it ended, was not.
func Killed(how *os.ProcessState) bool {
	if how == nil {
		return false
	}
	ws, ok := how.Sys().(syscall.WaitStatus)
	return ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL
}

func (p *Process) ended() {
	close(p.done)
	p.fd.Close()
}

// Signal sends a signal; to a process that has ended it is no error.
func (p *Process) Signal(sig unix.Signal) error {
	if err := p.send(sig); !errors.Is(err, ErrGone) {
		return err
	}
	return nil
}

// send is Signal to a process that may be an ErrGone.
func (p *Process) send(sig unix.Signal) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return ErrGone // closed: it has ended
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return ErrGone // closed meanwhile
	}
	if errors.Is(sent, unix.ESRCH) {
		return ErrGone
	}
	return sent
}

// Wait returns whether the process has ended before ctx did.
func (p *Process) Wait(ctx context.Context) bool {
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// killLimit is how long a killed process may take to be gone.
const killLimit = 5 * time.Second

// Kill ends the process by force and waits until it has ended. op is what that is done for. A process that does not end all the same, because it waits in the
// kernel for a disk, is an Unavailable error.
func (p *Process) Kill(op string) error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return warmboot.Errorf(warmboot.Internal, op, "process %d: %w", p.PID, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(killLimit):
		return warmboot.Errorf(warmboot.Unavailable, op, "process %d does not end even when killed: it waits for a disk; look at the host's storage and try again", p.PID)
	}
}

// Root opens what is the root directory to the process; an ErrGone if it has ended.
func (p *Process) Root() (*os.File, error) {
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", p.PID))
	// As long as nobody has been told of its end, its number is its own, so it was its root that was opened.
	if gone := p.send(0); gone != nil {
		if err == nil {
			root.Close()
		}
		return nil, gone
	}
	return root, err
}
