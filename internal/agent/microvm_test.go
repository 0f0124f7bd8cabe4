package agent

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
	"warmboot/internal/vmm"
)

// testMachine is a machine whose guest agent is a goroutine.
type testMachine struct {
	vmm.Machine // what is not here is not used
	socket      string
	done        chan struct{}
}

func (m *testMachine) Done() <-chan struct{} { return m.done }

func (m *testMachine) DialGuest(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", m.socket)
}

// startMachine starts a machine that treats each connection with agent.
func startMachine(t *testing.T, agent func(net.Conn)) *testMachine {
	t.Helper()
	return &testMachine{socket: listen(t, agent), done: make(chan struct{})}
}

// listen makes a socket that treats each connection with serve until the test ends.
func listen(t *testing.T, serve func(net.Conn)) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "socket")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return socket
}

// healthy answers every call as if it were for the guest's health, until the connection ends.
func healthy(conn net.Conn) {
	session, err := guestrpc.Accept(conn, nil)
	if err != nil {
		return
	}
	defer session.Close()
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		if guestrpc.ReadMessage(bufio.NewReader(stream), &guestv1.Request{}) == nil {
			guestrpc.WriteMessage(stream, &guestv1.Response{Result: &guestv1.Response_Health{Health: &guestv1.HealthResponse{}}})
		}
		stream.Close()
	}
}

func TestMicroVMIsReachedAgain(t *testing.T) {
	t.Parallel()
	var agents atomic.Int32
	vm := newMicroVM(startMachine(t, func(conn net.Conn) {
		agents.Add(1)
		healthy(conn)
	}), nil)
	defer vm.hangUp()
	ask := func() *guestrpc.Client {
		t.Helper()
		g, err := vm.reach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.Health(t.Context()); err != nil {
			t.Fatal(err)
		}
		return g
	}
	first := ask()
	if second := ask(); second != first || agents.Load() != 1 {
		t.Errorf("a connection that is well was not used again: %d agents", agents.Load())
	}
	first.Close()
	if third := ask(); third == first || agents.Load() != 2 {
		t.Errorf("a connection that has ended was not made anew: %d agents", agents.Load())
	}
	vm.hangUp()
	if _, err := vm.reach(t.Context()); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("after hanging up: %v", err)
	}
}

// TestReidentifyOutlivesALostConnection: what breaks the first connection to a clone does not break the clone.
func TestReidentifyOutlivesALostConnection(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string]int32{"none": 0, "one": 1, "two": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var agents atomic.Int32
			vm := newMicroVM(startMachine(t, func(conn net.Conn) {
				session, err := guestrpc.Accept(conn, nil)
				if err != nil {
					return
				}
				defer session.Close()
				stream, err := session.AcceptStream()
				if err != nil {
					return
				}
				req := &guestv1.Request{}
				if err := guestrpc.ReadMessage(bufio.NewReader(stream), req); err != nil || agents.Add(1) <= lost {
					return
				}
				guestrpc.WriteMessage(stream, &guestv1.Response{Result: &guestv1.Response_Reidentify{Reidentify: &guestv1.ReidentifyResponse{
					Identity: req.GetReidentify().GetIdentity(), UnixNanos: time.Now().UnixNano(),
				}}})
				stream.Close()
				bufio.NewReader(conn).WriteTo(nowhere{})
			}), nil)
			defer vm.hangUp()
			err := vm.reidentify(t.Context(), vmm.Network{Subnet: netip.MustParsePrefix("10.0.0.0/24")}, machineIdentity(warmboot.NewID(), "web", ""), false)
			if (err == nil) != (lost < 2) || agents.Load() != min(lost+1, 2) {
				t.Errorf("after %d connections: %v", agents.Load(), err)
			}
		})
	}
}

// A clone's Docker that answers together with the guest is not asked again; one that does not is waited for.
func TestDockerIsAskedWithTheIdentity(t *testing.T) {
	t.Parallel()
	for name, answers := range map[string]bool{"it answers": true, "it does not, or the guest's agent is older": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var waits atomic.Int32
			vm := newMicroVM(startMachine(t, func(conn net.Conn) {
				session, err := guestrpc.Accept(conn, nil)
				if err != nil {
					return
				}
				defer session.Close()
				for {
					stream, err := session.AcceptStream()
					if err != nil {
						return
					}
					req, docker := &guestv1.Request{}, &guestv1.WaitDockerResponse{ApiVersion: "1.47"}
					if err := guestrpc.ReadMessage(bufio.NewReader(stream), req); err != nil {
						return
					}
					resp := &guestv1.Response{Result: &guestv1.Response_WaitDocker{WaitDocker: docker}}
					if r := req.GetReidentify(); r != nil {
						id := &guestv1.ReidentifyResponse{Identity: r.GetIdentity(), UnixNanos: time.Now().UnixNano()}
						if answers && r.GetPingDocker() {
							id.Docker = docker
						}
						resp = &guestv1.Response{Result: &guestv1.Response_Reidentify{Reidentify: id}}
					} else {
						waits.Add(1)
					}
					guestrpc.WriteMessage(stream, resp)
					stream.Close()
				}
			}), nil)
			defer vm.hangUp()
			if err := vm.reidentify(t.Context(), vmm.Network{Subnet: netip.MustParsePrefix("10.0.0.0/24")}, machineIdentity(warmboot.NewID(), "web", ""), true); err != nil {
				t.Fatal(err)
			}
			want := int32(1)
			if answers {
				want = 0
			}
			for range 2 { // what has been said once is no answer to the second question
				if err := vm.awaitDocker(t.Context()); err != nil || vm.docker == nil {
					t.Fatal(err)
				}
				if n := waits.Load(); n != want {
					t.Errorf("the guest was asked %d times to wait for Docker, want %d", n, want)
				}
				want++
			}
		})
	}
}

// A phase's end that belongs to the next one goes there, and no more than all of it, whatever the guest says.
func TestShift(t *testing.T) {
	t.Parallel()
	for said, left := range map[time.Duration]time.Duration{3 * time.Second: 7 * time.Second, -time.Second: 10 * time.Second, time.Hour: 0} {
		end := time.Now()
		l := &launch{phases: []warmboot.Phase{{Name: warmboot.PhaseReidentify, Duration: 10 * time.Second}}, timed: end}
		l.shift(said)
		if got := l.phases[0].Duration; got != left || end.Sub(l.timed) != 10*time.Second-left {
			t.Errorf("of 10s, %v of which are the next phase's, %v are left, and the next began %v before", said, got, end.Sub(l.timed))
		}
	}
}

// TestNobodyWaitsForAMuteAgent: a reconnection ends with whoever asked for it, with the machine, and when the machine is to be ended.
func TestNobodyWaitsForAMuteAgent(t *testing.T) {
	t.Parallel()
	mute := func(conn net.Conn) { bufio.NewReader(conn).WriteTo(nowhere{}) }
	for name, end := range map[string]func(vm *microVM, m *testMachine, giveUp func()){
		"the caller gives up":     func(_ *microVM, _ *testMachine, giveUp func()) { giveUp() },
		"the machine ends":        func(_ *microVM, m *testMachine, _ func()) { close(m.done) },
		"the machine is shut off": func(vm *microVM, _ *testMachine, _ func()) { vm.hangUp() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := startMachine(t, mute)
			vm := newMicroVM(m, nil)
			defer vm.hangUp()
			ctx, giveUp := context.WithCancel(t.Context())
			defer giveUp()
			failed := make(chan error)
			for range 2 { // one that connects, and one that waits for it
				go func() {
					_, err := vm.reach(ctx)
					failed <- err
				}()
			}
			time.Sleep(20 * time.Millisecond) // nobody tells when they wait
			go end(vm, m, giveUp)
			for range 2 {
				select {
				case err := <-failed:
					if err == nil {
						t.Error("a mute agent was reached")
					}
				case <-time.After(10 * time.Second):
					t.Fatal("somebody still waits")
				}
			}
		})
	}
}

// TestACommandThroughTheTunnel: its input ends before its output, through all that lies between the agent and a guest's Docker.
func TestACommandThroughTheTunnel(t *testing.T) {
	t.Parallel()
	vm := newMicroVM(startMachine(t, func(conn net.Conn) {
		session, err := guestrpc.Accept(conn, nil)
		if err != nil {
			return
		}
		defer session.Close()
		for {
			stream, err := session.AcceptStream()
			if err != nil {
				return
			}
			go func() {
				defer stream.Close()
				r, req := bufio.NewReader(stream), &guestv1.Request{}
				if guestrpc.ReadMessage(r, req) != nil {
					return
				}
				if req.GetTunnel() == nil {
					guestrpc.WriteMessage(stream, &guestv1.Response{Result: &guestv1.Response_WaitDocker{WaitDocker: &guestv1.WaitDockerResponse{ApiVersion: "1.45"}}})
					return
				}
				guestrpc.WriteMessage(stream, &guestv1.Response{Result: &guestv1.Response_Tunnel{Tunnel: &guestv1.TunnelResponse{}}})
				in := bufio.NewReader(&guestrpc.ChunkReader{R: r})
				start, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				io.Copy(io.Discard, start.Body)
				io.WriteString(stream, upgraded)
				text, _ := io.ReadAll(in)
				io.WriteString(stream, whole(1, strings.ToUpper(string(text))))
			}()
		}
	}), nil)
	defer vm.hangUp()
	if err := vm.awaitDocker(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := startExec(t.Context(), vm.docker, "x", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := io.WriteString(s.Stdin(), "input"); err != nil {
		t.Fatal(err)
	}
	if err := s.Stdin().Close(); err != nil {
		t.Fatal(err)
	}
	if stream, data, err := s.Next(); stream != "stdout" || string(data) != "INPUT" || err != nil {
		t.Errorf("%s %q, error %v", stream, data, err)
	}
	if _, _, err := s.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("the end is %v", err)
	}
}

type nowhere struct{}

func (nowhere) Write(p []byte) (int, error) { return len(p), nil }
