package fake

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"warmboot"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// machine is one fake microVM.
type machine struct {
	driver  *Driver
	spec    vmm.Spec
	handle  vmm.Handle
	timings []warmboot.Phase
	state   *State
	release *rollback.Stack

	done   chan struct{}
	once   sync.Once
	guests sync.WaitGroup // connections that are being served
	mu     sync.Mutex
	conns  map[net.Conn]bool // nil once the machine has ended
}

var (
	_ vmm.Machine    = (*machine)(nil)
	_ vmm.CPULimiter = (*machine)(nil)
)

func (m *machine) Handle() vmm.Handle        { return m.handle }
func (m *machine) Timings() []warmboot.Phase { return m.timings }
func (m *machine) Done() <-chan struct{}     { return m.done }

// step begins a step of a machine that must still be there.
func (m *machine) step(ctx context.Context, step Step) error {
	select {
	case <-m.done:
		return warmboot.Errorf(warmboot.Unavailable, string(step)+" machine", "machine %s has ended", m.handle.ID)
	default:
		return m.driver.fail(ctx, step, m.handle.ID)
	}
}

func (m *machine) Pause(ctx context.Context) error {
	if err := m.step(ctx, StepPause); err != nil {
		return err
	}
	m.state.pause()
	return nil
}

func (m *machine) Resume(ctx context.Context) error {
	if err := m.step(ctx, StepResume); err != nil {
		return err
	}
	m.state.resume()
	return nil
}

func (m *machine) Snapshot(ctx context.Context, opts vmm.SnapshotOptions) (vmm.Snapshot, error) {
	const op = "snapshot machine"
	if err := m.step(ctx, StepSnapshot); err != nil {
		return vmm.Snapshot{}, err
	}
	if m.spec.MemoryFile == "" {
		return vmm.Snapshot{}, warmboot.Errorf(warmboot.Invalid, op, "machine %s was not started with a memory file", m.handle.ID)
	}
	uptime, paused := m.state.clock()
	if !paused {
		return vmm.Snapshot{}, warmboot.Errorf(warmboot.Conflict, op, "machine %s is running; pause it first", m.handle.ID)
	}
	text, err := json.Marshal(deviceState{Fake: m.driver.Version, MemoryMiB: m.spec.MemoryMiB, Uptime: uptime})
	if err == nil {
		err = os.WriteFile(opts.StateFile, text, 0o600)
	}
	if err != nil {
		return vmm.Snapshot{}, vmm.FileError(op, err)
	}
	return vmm.Snapshot{
		MemoryFile: m.spec.MemoryFile, StateFile: opts.StateFile, VCPUs: m.spec.VCPUs, MemoryMiB: m.spec.MemoryMiB,
		Kernel: m.spec.Kernel, Initrd: m.spec.Initrd, KernelArgs: m.spec.KernelArgs,
	}, nil
}

// LimitCPU notes the limit. Nothing is held to it.
func (m *machine) LimitCPU(cpus float64) error {
	if err := m.step(context.Background(), StepLimitCPU); err != nil {
		return err
	}
	m.state.limitCPU(min(cpus, float64(m.spec.VCPUs)))
	return nil
}

// DialGuest connects to the guest. The connection is a real socket, so that it has room for words that the guest has
// not heard yet, and deadlines.
func (m *machine) DialGuest(ctx context.Context) (net.Conn, error) {
	if err := m.step(ctx, StepDial); err != nil {
		return nil, err
	}
	ours, theirs, err := connected()
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Internal, "dial guest", "%w", err)
	}
	if !m.serve(theirs, func(c net.Conn) {
		if m.driver.Guest != nil {
			m.driver.Guest(c, m.state)
		}
	}) {
		ours.Close()
		return nil, warmboot.Errorf(warmboot.Unavailable, "dial guest", "machine %s has ended", m.handle.ID)
	}
	return ours, nil
}

// serve lets f serve a connection until it returns or the machine ends, whichever is first. It is false, and the
// connection closed, if the machine has ended already.
func (m *machine) serve(c net.Conn, f func(net.Conn)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.done:
		c.Close()
		return false
	default:
	}
	if m.conns == nil {
		m.conns = map[net.Conn]bool{}
	}
	m.conns[c] = true
	m.guests.Go(func() {
		f(c)
		c.Close()
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.conns, c)
	})
	return true
}

// forward takes a port of the host.
func (m *machine) forward(f vmm.Forward) (interface{ Close() error }, error) {
	at := netip.AddrPortFrom(f.HostIP, f.HostPort)
	if f.Protocol == warmboot.UDP {
		return net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed, with the machine
			}
			m.serve(c, func(c net.Conn) {
				if m.driver.Forwarded != nil {
					m.driver.Forwarded(c, f.GuestPort, m.state)
				}
			})
		}
	}()
	return l, nil
}

// Stop ends the machine.
func (m *machine) Stop(ctx context.Context, _ time.Duration) error {
	err := m.driver.fail(context.WithoutCancel(ctx), StepStop, m.handle.ID)
	m.end()
	return err
}

// end ends the machine and releases everything, once; whoever calls it later waits for that.
func (m *machine) end() {
	m.once.Do(func() {
		m.mu.Lock()
		close(m.done)
		for c := range m.conns {
			c.Close()
		}
		m.mu.Unlock()
		m.state.end()
		m.driver.mu.Lock()
		delete(m.driver.machines, m.handle.StartTime)
		m.driver.mu.Unlock()
		m.release.Unwind()
	})
}

// connected is a pair of connected sockets.
func connected() (ours, theirs net.Conn, err error) {
	l, err := net.Listen("unix", fmt.Sprintf("@warmboot-fake-%d-%d", os.Getpid(), time.Now().UnixNano()))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = l.Close() }()
	if ours, err = net.Dial("unix", l.Addr().String()); err != nil {
		return nil, nil, err
	}
	if theirs, err = l.Accept(); err != nil {
		ours.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}
