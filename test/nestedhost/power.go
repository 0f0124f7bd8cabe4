package nestedhost

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"warmboot"
	"warmboot/internal/guestrpc"
)

// power is the time from a machine's power button to its power cut: one QEMU process.
type power struct {
	cmd     *exec.Cmd
	socket  string
	console console
	said    console         // by QEMU
	panics  <-chan struct{} // closed when the kernel has panicked
	done    chan struct{}   // closed when QEMU has ended
	hung    chan struct{}   // closed when the machine has missed a pulse
	hangs   sync.Once

	mu     sync.Mutex
	client *guestrpc.Client // nil until somebody asks for it
}

// startPower starts QEMU. It ends with our process, whatever happens to that.
func startPower(args []string, socket string) (*power, error) {
	p := &power{cmd: exec.Command("qemu-system-x86_64", args...), socket: socket, done: make(chan struct{}), hung: make(chan struct{})}
	p.panics = p.console.next(panicMark)
	p.cmd.Stdout, p.cmd.Stderr = &p.console, &p.said
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the process ends, so this one must last.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended is in what it said
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

func (p *power) cut() error {
	err := p.cmd.Process.Kill()
	<-p.done
	p.forgetAgent()
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// agent returns the conversation with the machine's agent, or begins one.
func (p *power) agent(ctx context.Context, op string) (*guestrpc.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		select {
		case <-p.client.Done():
		default:
			return p.client, nil
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	connected := make(chan struct{})
	defer close(connected)
	go func() {
		select {
		case <-p.done:
		case <-p.panics:
		case <-connected:
		}
		cancel()
	}()
	client, err := guestrpc.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
	})
	if err != nil {
		return nil, p.explain(op, err)
	}
	p.client = client
	go p.pulse(client)
	return client, nil
}

const (
	pulseEvery = time.Second
	// pulseLimit is far longer than a machine that has little of a processor takes to answer.
	pulseLimit = 2 * time.Minute
)

// pulse asks the machine again and again whether it is there. Two machines that ran Firecracker's fell asleep with much to do, their processor halted
// and no timer set, as if QEMU's emulation had lost the interrupt that was to wake them. A question is another one. If it does not help
// either, nobody need wait any longer.
func (p *power) pulse(client *guestrpc.Client) {
	for {
		select {
		case <-time.After(pulseEvery):
		case <-client.Done():
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), pulseLimit)
		_, err := client.Health(ctx)
		cancel()
		if warmboot.CodeOf(err) == warmboot.Timeout {
			p.hangs.Do(func() { close(p.hung) })
			return
		}
	}
}

// forgetAgent ends the conversation; the next command begins another.
func (p *power) forgetAgent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.client != nil {
		_ = p.client.Close()
		p.client = nil
	}
}

// explain says what became of the machine that made something fail, and quotes its last words.
func (p *power) explain(op string, err error) error {
	code, what, quoted := warmboot.CodeOf(err), "the machine does not answer", 30
	select {
	case <-p.hung:
		code, what = warmboot.Timeout, "the machine hangs"
	default:
	}
	select {
	case <-p.done:
		code, what = warmboot.Unavailable, "the machine is off; QEMU said: "+end(p.said.String(), 3)
	default:
	}
	if p.panicked() {
		code, what, quoted = warmboot.Internal, "the machine's kernel panicked", 100
	}
	return warmboot.Errorf(code, op, "%s: %w; its console ends with:\n%s", what, err, end(p.console.String(), quoted))
}

func (p *power) panicked() bool {
	select {
	case <-p.panics:
		return true
	default:
		return false
	}
}
