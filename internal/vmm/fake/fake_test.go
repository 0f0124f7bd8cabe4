package fake

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/vmm"
	"warmboot/internal/vmm/vmmtest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("kernel"), 0o644); err != nil {
		t.Fatal(err)
	}
	vmmtest.Run(t, vmmtest.Suite{
		New:   func(*testing.T) vmm.Driver { return New(Config{Guest: guest}) },
		Again: func(_ *testing.T, d vmm.Driver) vmm.Driver { return d },
		Spec: func(*testing.T) vmm.Spec {
			return vmm.Spec{VCPUs: 1, MemoryMiB: 32, Kernel: kernel}
		},
		Kill: func(t *testing.T, d vmm.Driver, m vmm.Machine) {
			if !d.(*Driver).Kill(m.Handle().ID) {
				t.Fatalf("no machine %s", m.Handle().ID)
			}
		},
		Alive: func(_ *testing.T, d vmm.Driver, id string) bool { return d.(*Driver).Alive(id) },
	})
}

// guest does what vmmtest/guest does. Its memory holds the number of MiB that are filled, and those.
func guest(conn net.Conn, s *State) {
	in := bufio.NewScanner(conn)
	for in.Scan() {
		var answer any = "unknown command"
		var n, b int
		ran := s.Run(func(memory []byte) {
			switch k, _ := fmt.Sscanf(in.Text(), "fill %d %d", &n, &b); {
			case k == 2:
				memory[0] = byte(n)
				for i := range n << 20 {
					memory[1+i] = byte(b)
				}
				answer = "ok"
			case in.Text() == "read":
				answer = memory[1]
				for _, b := range memory[1 : 1+int(memory[0])<<20] {
					if b != memory[1] {
						answer = -1
					}
				}
			case in.Text() == "ping":
				answer = "pong"
			}
		})
		switch {
		case !ran:
			return
		case in.Text() == "counter":
			answer = s.Uptime().Milliseconds()
		case in.Text() == "poweroff":
			s.PowerOff()
			return
		}
		fmt.Fprintln(conn, answer)
	}
}

func TestStepsFailAsTold(t *testing.T) {
	t.Parallel()
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	for _, at := range []Step{StepProbe, StepCreate, StepPause, StepResume, StepSnapshot, StepDial, StepStop} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			d := New(Config{Fail: func(_ context.Context, s Step, _ string) error {
				if s == at {
					return broken
				}
				return nil
			}})
			dir := t.TempDir()
			if got := life(d, kernel, dir); !errors.Is(got, broken) {
				t.Errorf("the machine's life ended with %v", got)
			}
			if d.Alive("one") {
				t.Error("the machine is left")
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "memory")); at == StepCreate && left != nil {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// life takes a machine through every step, as far as it gets.
func life(d *Driver, kernel, dir string) (err error) {
	ctx := context.Background()
	if _, err := d.Probe(ctx); err != nil {
		return err
	}
	m, err := d.Create(ctx, vmm.Spec{ID: "one", Kernel: kernel, MemoryMiB: 1, MemoryFile: filepath.Join(dir, "memory")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Stop(ctx, 0)) }()
	conn, err := m.DialGuest(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := m.Pause(ctx); err != nil {
		return err
	}
	if _, err := m.Snapshot(ctx, vmm.SnapshotOptions{StateFile: filepath.Join(dir, "state")}); err != nil {
		return err
	}
	return m.Resume(ctx)
}

func TestPublishedPortIsServedAndFreed(t *testing.T) {
	t.Parallel()
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	d := New(Config{Forwarded: func(c net.Conn, port uint16, s *State) { fmt.Fprint(c, port, " of ", s.ID()) }})
	m, err := d.Create(t.Context(), vmm.Spec{ID: "web", Kernel: kernel, MemoryMiB: 1, Network: vmm.Network{
		Subnet:   netip.MustParsePrefix("100.64.0.0/24"),
		Forwards: []vmm.Forward{{Protocol: warmboot.TCP, HostIP: at.Addr(), HostPort: at.Port(), GuestPort: 80}}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTimeout("tcp", at.String(), time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got, err := io.ReadAll(c); string(got) != "80 of web" {
		t.Errorf("read %q, %v", got, err)
	}
	if err := m.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if l, err = net.Listen("tcp4", at.String()); err != nil {
		t.Fatalf("the port is still taken: %v", err)
	}
	l.Close()
}
