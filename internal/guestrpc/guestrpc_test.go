package guestrpc

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/telemetry"
	"warmboot/internal/telemetry/otlptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guestEnd starts a guest that treats each connection with f, and returns the host's dial.
func guestEnd(t *testing.T, f func(net.Conn)) func(context.Context) (net.Conn, error) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
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
				f(conn)
			}()
		}
	}()
	return func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
	}
}

// answering is a guest that answers every request with what answer makes of it.
func answering(answer func(*guestv1.Request) *guestv1.Response) func(net.Conn) {
	return func(conn net.Conn) {
		session, err := Accept(conn, nil)
		if err != nil {
			return
		}
		defer session.Close()
		for {
			stream, err := session.AcceptStream()
			if err != nil {
				return
			}
			req := &guestv1.Request{}
			if ReadMessage(bufio.NewReader(stream), req) == nil {
				WriteMessage(stream, answer(req))
			}
			stream.Close()
		}
	}
}

func healthy(*guestv1.Request) *guestv1.Response {
	return &guestv1.Response{Result: &guestv1.Response_Health{Health: &guestv1.HealthResponse{AgentVersion: "v1"}}}
}

func connect(t *testing.T, f func(net.Conn)) *Client {
	t.Helper()
	c, err := Connect(t.Context(), guestEnd(t, f))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantCode(t *testing.T, err error, code warmboot.Code) {
	t.Helper()
	var e *warmboot.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("got %v (%s), want a %s", err, warmboot.CodeOf(err), code)
	}
}

// TestHandshakeFindsItsPeer puts whatever bytes before the handshake, in both directions; pieces of marks among them.
func TestHandshakeFindsItsPeer(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		stale := func(name string, mark [8]byte) []byte {
			var b []byte
			for range rapid.IntRange(0, 4).Draw(t, name) {
				b = append(b, rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, name)...)
				b = append(b, mark[:rapid.IntRange(0, 7).Draw(t, name)]...)
			}
			if bytes.Contains(b, mark[:]) {
				t.Skip("a whole mark begins a conversation; internal/guest tests what becomes of one that nobody is in")
			}
			return b
		}
		host, guest := net.Pipe()
		defer host.Close()
		defer guest.Close()
		toGuest, toHost := stale("to guest", hostMark), stale("to host", guestMark)
		go func() {
			r, err := Handshake(&struct {
				io.Reader
				io.Writer
			}{io.MultiReader(bytes.NewReader(toGuest), guest), writerFunc(func(p []byte) (int, error) {
				return guest.Write(append(toHost, p...))
			})}, nil)
			if err == nil {
				io.Copy(guest, r)
			}
		}()
		host.SetDeadline(time.Now().Add(5 * time.Second))
		// net.Pipe hands over piece by piece: the answer must be read whole.
		r, _, err := greet(host)
		if err != nil {
			t.Fatal(err)
		}
		go host.Write([]byte("hello"))
		got := make([]byte, 5)
		if _, err := io.ReadFull(r, got); err != nil || string(got) != "hello" {
			t.Fatalf("after the handshake: %q, %v", got, err)
		}
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestHandshakeAnswersTheLastHost: a host that gave up left its preamble; only the one after it waits.
func TestHandshakeAnswersTheLastHost(t *testing.T) {
	t.Parallel()
	first, second := bytes.Repeat([]byte{1}, nonceLen), bytes.Repeat([]byte{2}, nonceLen)
	in := bytes.Join([][]byte{hostMark[:], first, hostMark[:], second}, nil)
	var out bytes.Buffer
	if _, err := Handshake(&struct {
		io.Reader
		io.Writer
	}{bytes.NewReader(in), &out}, nil); err != nil {
		t.Fatal(err)
	}
	if want := append(guestMark[:], second...); !bytes.Equal(out.Bytes(), want) {
		t.Fatalf("answered %x, want %x", out.Bytes(), want)
	}
}

func TestConnectDialsAgain(t *testing.T) {
	t.Parallel()
	var n atomic.Int32
	dial := guestEnd(t, func(conn net.Conn) {
		if n.Add(1) == 1 {
			io.Copy(io.Discard, conn) // still booting
			return
		}
		answering(healthy)(conn)
	})
	failed := false
	c, err := Connect(t.Context(), func(ctx context.Context) (net.Conn, error) {
		if !failed {
			failed = true
			return nil, errors.New("no socket yet")
		}
		return dial(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if h, err := c.Health(t.Context()); err != nil || h.AgentVersion != "v1" || n.Load() != 2 {
		t.Fatalf("%v %v after %d connections", h, err, n.Load())
	}
}

func TestMuteGuest(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := Connect(ctx, guestEnd(t, func(conn net.Conn) { io.Copy(io.Discard, conn) }))
	wantCode(t, err, warmboot.Timeout)

	// One that shakes hands and then says nothing, or stops reading as well.
	release := make(chan struct{})
	defer close(release)
	c := connect(t, func(conn net.Conn) {
		if _, err := Handshake(conn, nil); err == nil {
			<-release
		}
	})
	for range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		begin := time.Now()
		_, err = c.Health(ctx)
		cancel()
		wantCode(t, err, warmboot.Timeout)
		_, err = c.Reidentify(ctx, &guestv1.ReidentifyRequest{Seed: make([]byte, 900<<10)})
		wantCode(t, err, warmboot.Timeout)
		if took := time.Since(begin); took > 5*time.Second {
			t.Fatalf("the deadline of 50 ms took %v", took)
		}
	}
}

func TestGuestIsGone(t *testing.T) {
	t.Parallel()
	end := make(chan struct{})
	c := connect(t, func(conn net.Conn) {
		go func() { <-end; conn.Close() }()
		answering(healthy)(conn)
	})
	if _, err := c.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(end)
	<-c.Done()
	_, err := c.Health(t.Context())
	wantCode(t, err, warmboot.Unavailable)
	_, err = c.DialDocker(t.Context())
	wantCode(t, err, warmboot.Unavailable)
}

func TestFailuresKeepTheirCode(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]warmboot.Code{"timeout": warmboot.Timeout, "no such code": warmboot.Internal, "": warmboot.Internal} {
		c := connect(t, answering(func(*guestv1.Request) *guestv1.Response {
			return &guestv1.Response{Failure: &guestv1.Failure{Code: code, Message: strings.Repeat("long ", 100_000)}}
		}))
		_, err := c.Quiesce(t.Context())
		wantCode(t, err, want)
		if len(err.Error()) > 10_000 {
			t.Errorf("the guest made us repeat %d bytes", len(err.Error()))
		}
	}
	c := connect(t, answering(healthy))
	_, err := c.Quiesce(t.Context()) // answered as if it were health
	wantCode(t, err, warmboot.Internal)
}

// TestReidentifyIsChecked: the host believes what was read back, not that the call succeeded.
func TestReidentifyIsChecked(t *testing.T) {
	t.Parallel()
	id := func() *guestv1.Identity {
		return &guestv1.Identity{Hostname: "h", MachineId: "m", EngineId: "e", Mac: "02:00:00:00:00:01", Address: "10.0.0.2/24"}
	}
	for name, lie := range map[string]func(*guestv1.ReidentifyResponse){
		"":         func(r *guestv1.ReidentifyResponse) { r.Identity.Mac = strings.ToUpper(r.Identity.Mac) },
		"hostname": func(r *guestv1.ReidentifyResponse) { r.Identity.Hostname = "old" },
		"machine":  func(r *guestv1.ReidentifyResponse) { r.Identity.MachineId = "" },
		"engine":   func(r *guestv1.ReidentifyResponse) { r.Identity.EngineId = "old" },
		"mac":      func(r *guestv1.ReidentifyResponse) { r.Identity.Mac = "02:00:00:00:00:02" },
		"address":  func(r *guestv1.ReidentifyResponse) { r.Identity.Address = "10.0.0.3/24" },
		"nothing":  func(r *guestv1.ReidentifyResponse) { r.Identity = nil },
		"slow":     func(r *guestv1.ReidentifyResponse) { r.UnixNanos -= int64(2 * time.Second) },
		"fast":     func(r *guestv1.ReidentifyResponse) { r.UnixNanos += int64(2 * time.Second) },
	} {
		c := connect(t, answering(func(*guestv1.Request) *guestv1.Response {
			r := &guestv1.ReidentifyResponse{Identity: id(), UnixNanos: time.Now().UnixNano()}
			lie(r)
			return &guestv1.Response{Result: &guestv1.Response_Reidentify{Reidentify: r}}
		}))
		_, err := c.Reidentify(t.Context(), &guestv1.ReidentifyRequest{Identity: id()})
		if name == "" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		wantCode(t, err, warmboot.Internal)
	}
}

// TestHostileFrames: a guest that floods the session with what only costs the host loses it.
func TestHostileFrames(t *testing.T) {
	t.Parallel()
	frame := func(kind byte, flags uint16, stream, length uint32) []byte {
		f := []byte{0, kind}
		f = binary.BigEndian.AppendUint16(f, flags)
		f = binary.BigEndian.AppendUint32(f, stream)
		return binary.BigEndian.AppendUint32(f, length)
	}
	huge := make([]byte, 1<<20)
	rand.Read(huge)
	for name, sent := range map[string][]byte{
		"ping":             frame(framePing, flagSYN, 0, 7),
		"opens a stream":   frame(1, flagSYN, 2, 0),
		"opens with data":  append(frame(frameData, flagSYN, 2, 5), "hello"...),
		"garbage":          huge,
		"pings after data": append(append(frame(frameData, 0, 99, 3), "abc"...), frame(framePing, flagSYN, 0, 1)...),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := connect(t, func(conn net.Conn) {
				if _, err := Handshake(conn, nil); err != nil {
					return
				}
				for i := range sent { // fences must hold wherever the pieces end
					if len(sent) > 1000 {
						conn.Write(sent)
						break
					}
					conn.Write(sent[i : i+1])
				}
				io.Copy(io.Discard, conn)
			})
			select {
			case <-c.Done():
			case <-time.After(5 * time.Second):
				t.Fatal("the session goes on")
			}
		})
	}
}

// TestFloodOfFrames: a guest that sends without end what is allowed and means nothing is read no faster than it may, and its answers still come.
func TestFloodOfFrames(t *testing.T) {
	t.Parallel()
	const missing = 98 // a stream that the host has not opened
	window := []byte{0, 1, 0, 0, 0, 0, 0, missing, 0, 0, 0, 1}
	data := append([]byte{0, frameData, 0, 0, 0, 0, 0, missing, 0, 1, 0, 0}, make([]byte, 1<<16)...)
	for name, c := range map[string]struct {
		piece []byte
		cost  int // of a piece, in frames
	}{"window updates": {bytes.Repeat(window, 100), 100}, "data": {data, 1 + 1<<16/costly}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var read atomic.Int64 // pieces that the host has taken
			client := connect(t, func(conn net.Conn) {
				session, err := Accept(conn, nil)
				if err != nil {
					return
				}
				defer session.Close()
				stream, err := session.AcceptStream()
				if err != nil {
					return
				}
				defer stream.Close()
				// Between frames of yamux's own, and before the answer.
				for begin := time.Now(); time.Since(begin) < time.Second; read.Add(1) {
					if _, err := conn.Write(c.piece); err != nil {
						return
					}
				}
				WriteMessage(stream, healthy(nil))
			})
			begin := time.Now()
			if _, err := client.Health(t.Context()); err != nil {
				t.Fatal(err)
			}
			const underWay = 1 << 20 // bytes in the socket
			most := framesAtOnce + framesPerSecond*time.Since(begin).Seconds()
			if got := float64(read.Load()-underWay/int64(len(c.piece))) * float64(c.cost); got > most {
				t.Errorf("the host has read frames for %.0f, and may have for %.0f", got, most)
			}
		})
	}
}

func TestOversizedMessages(t *testing.T) {
	t.Parallel()
	// From the guest: announced as 1 GiB.
	c := connect(t, func(conn net.Conn) {
		session, err := Accept(conn, nil)
		if err != nil {
			return
		}
		defer session.Close()
		if stream, err := session.AcceptStream(); err == nil {
			stream.Write(binary.AppendUvarint(nil, 1<<30))
			<-session.CloseChan()
		}
	})
	_, err := c.Health(t.Context())
	wantCode(t, err, warmboot.Unavailable)
	// To the guest.
	var b bytes.Buffer
	WriteMessage(&b, &guestv1.ReidentifyRequest{Seed: make([]byte, MaxMessage+1)})
	if err := ReadMessage(bufio.NewReader(&b), &guestv1.ReidentifyRequest{}); err == nil {
		t.Error("a message larger than MaxMessage was read")
	}
}

func TestChunks(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var wire, want bytes.Buffer
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 3*maxChunk), 0, 4).Draw(t, "writes") {
			p := bytes.Repeat([]byte{byte(n)}, n)
			want.Write(p)
			if got, err := writeChunks(&wire, p); got != n || err != nil {
				t.Fatal(got, err)
			}
		}
		cut := rapid.Bool().Draw(t, "cut")
		if !cut {
			writeChunk(&wire, nil)
		}
		got, err := io.ReadAll(&ChunkReader{R: &wire})
		if !bytes.Equal(got, want.Bytes()) {
			t.Fatalf("read %d bytes, want %d", len(got), want.Len())
		}
		if cut != errors.Is(err, io.ErrUnexpectedEOF) || !cut && err != nil {
			t.Fatalf("cut %v: %v", cut, err)
		}
	})
}

// TestAgentBeginsAnew: the answer to the handshake, once more, ends the host's session, wherever the agent before stopped, and does no
// harm to a host that has just come.
func TestAgentBeginsAnew(t *testing.T) {
	t.Parallel()
	body := binary.BigEndian.AppendUint32([]byte{0, frameData, 0, 0, 0, 0, 0, 1}, 1<<18)
	for name, half := range map[string][]byte{"between frames": nil, "within a header": body[:5], "before a body": body, "within a body": append(body, make([]byte, 1000)...)} {
		for _, pieces := range []bool{false, true} {
			t.Run(fmt.Sprint(name, ", in pieces ", pieces), func(t *testing.T) {
				t.Parallel()
				c := connect(t, func(conn net.Conn) {
					var answer []byte
					if _, err := Handshake(conn, func(a []byte) { answer = a }); err != nil {
						return
					}
					conn.Write(half)
					for _, b := range answer {
						if !pieces {
							conn.Write(answer)
							break
						}
						conn.Write([]byte{b})
						time.Sleep(100 * time.Microsecond)
					}
					io.Copy(io.Discard, conn) // a port stays open
				})
				select {
				case <-c.Done():
				case <-time.After(10 * time.Second):
					t.Fatal("the host has not noticed")
				}
				_, err := c.Health(t.Context())
				wantCode(t, err, warmboot.Unavailable)
			})
		}
	}
	var old []byte
	connect(t, func(conn net.Conn) { Handshake(conn, func(a []byte) { old = a }) })
	c := connect(t, func(conn net.Conn) {
		conn.Write(old)
		answering(healthy)(conn)
	})
	if _, err := c.Health(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestAnswerIsFoundInAnyPieces reads a stream in pieces of any size, with or without the answer in it.
func TestAnswerIsFoundInAnyPieces(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		answer := []byte("abcabcd")
		f := &fence{answer: answer}
		stream := rapid.SliceOfN(rapid.SampledFrom([]byte("abcd")), 0, 200).Draw(t, "stream")
		found := false
		for rest := stream; len(rest) > 0 && !found; {
			n := rapid.IntRange(1, min(len(rest), 20)).Draw(t, "piece")
			found = f.answered(rest[:n])
			rest = rest[n:]
		}
		if want := bytes.Contains(stream, answer); found != want {
			t.Fatalf("%q: found is %v", stream, found)
		}
	})
}

// TestCallsAreTraced: the host makes a span of each call, and tells the guest which.
func TestCallsAreTraced(t *testing.T) {
	t.Parallel()
	collector := otlptest.Start(t)
	tracing, err := telemetry.NewTracing(t.Context(), telemetry.TracingConfig{Endpoint: collector.URL, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan string, 3)
	c := connect(t, answering(func(req *guestv1.Request) *guestv1.Response {
		told <- req.GetTraceparent()
		if req.GetQuiesce() != nil {
			return &guestv1.Response{Failure: &guestv1.Failure{Code: "timeout", Message: "Docker does not answer"}}
		}
		return healthy(req)
	}))
	ctx, root := tracing.Start(t.Context(), "boot")
	_, err = c.Health(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Quiesce(ctx)
	wantCode(t, err, warmboot.Timeout)
	if _, err := c.Health(t.Context()); err != nil {
		t.Fatal(err)
	}
	root.End(nil)
	tracing.Close()
	spans := map[string]otlptest.Span{}
	for _, s := range collector.Spans() {
		spans[s.Name] = s
	}
	health, quiesce := spans["guest: guest health"], spans["guest: quiesce guest"]
	if len(spans) != 3 || health.Parent != spans["boot"].ID || health.Kind != "client" || health.Error != "" || !strings.Contains(quiesce.Error, "Docker does not answer") || quiesce.Attributes["error.type"] != "timeout" {
		t.Errorf("%+v", spans)
	}
	for _, want := range []string{"00-" + health.Trace + "-" + health.ID + "-01", "00-" + quiesce.Trace + "-" + quiesce.ID + "-01", ""} {
		if got := <-told; got != want {
			t.Errorf("the guest is told %q, want %q", got, want)
		}
	}
}
