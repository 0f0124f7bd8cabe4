package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// errGone says that a process is not there any more, or that its number belongs to another one now.
var errGone = errors.New("the process is gone")

// process is a QEMU process, held by a file descriptor: a signal can never reach another process that got its number.
type process struct {
	pid       int
	startTime uint64
	fd        *os.File
	done      chan struct{} // closed when it has ended
}

// spawn starts a command as owner, in a session of its own.
func spawn(cmd *exec.Cmd, owner vmm.Owner, ambient []uintptr) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if confined(owner) {
		groups, err := kvmGroup()
		if err != nil {
			return nil, err
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: owner.UID, Gid: owner.GID, Groups: groups}
		cmd.SysProcAttr.AmbientCaps = ambient
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var undo rollback.Stack
	defer undo.Unwind()
	undo.Push("start process", func() error { return errors.Join(cmd.Process.Kill(), cmd.Wait()) })
	// A child that nobody has waited for yet keeps its number, so this finds the right process.
	p, err := openProcess(cmd.Process.Pid)
	if err != nil {
		return nil, err
	}
	undo.Move()
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		p.ended()
	}()
	return p, nil
}

// kvmGroup is the group that may use KVM, so that a VMM that is not root can.
func kvmGroup() ([]uint32, error) {
	info, err := os.Stat(kvmDevice)
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

// findProcess finds a process that we, or a process before us, started at startTime. It is an errGone if it has ended.
func findProcess(pid int, startTime uint64) (*process, error) {
	if pid <= 1 {
		return nil, errGone
	}
	p, err := openProcess(pid)
	if err != nil {
		return nil, err
	}
	if p.startTime != startTime {
		p.fd.Close()
		return nil, errGone
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

// openProcess takes hold of a process by its number.
func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, errGone
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd"), done: make(chan struct{})}
	// Read after the descriptor was opened: this is the process it stands for, or that has ended.
	if p.startTime, err = startTime(pid); err != nil {
		p.fd.Close()
		return nil, err
	}
	return p, nil
}

// startTime is when a process was started, in clock ticks since the host booted. A zombie is gone.
func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, errGone
	}
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses, which may itself contain any of these characters.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("process %d: cannot read %q", pid, stat)
	}
	if s := fields[0][0]; s == 'Z' || s == 'X' {
		return 0, errGone
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

func (p *process) ended() {
	close(p.done)
	p.fd.Close()
}

// signal sends a signal; to a process that has ended it is no error.
func (p *process) signal(sig unix.Signal) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return nil //nolint:nilerr // closed: it has ended
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return nil //nolint:nilerr // closed meanwhile
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// wait returns whether the process has ended before ctx did.
func (p *process) wait(ctx context.Context) bool {
	select {
	case <-p.done:
		return true
	case <-ctx.Done():
		return false
	}
}
