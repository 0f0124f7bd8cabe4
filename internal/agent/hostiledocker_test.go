package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"warmboot"
	"warmboot/internal/controlplane"
)

// The tests of this file measure the heap of the whole process: none of them is parallel.

// startDocker listens on a socket and answers each call with answer, which writes what it likes to the connection; it may write without end, until
// the client hangs up.
func startDocker(t *testing.T, answer func(conn *net.UnixConn, req *http.Request)) *dockerClient {
	t.Helper()
	socket := listen(t, func(conn net.Conn) {
		req, err := http.ReadRequest(bufio.NewReader(conn))
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err == nil {
			answer(conn.(*net.UnixConn), req)
		}
	})
	d, err := newDockerClient(func(ctx context.Context) (net.Conn, error) { return (&net.Dialer{}).DialContext(ctx, "unix", socket) }, "1.45")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

const (
	answered = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
	refused  = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n"
	upgraded = "HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
)

// flood writes begin, and then again and again what is to be repeated.
func flood(w io.Writer, begin, repeated string) {
	repeated = strings.Repeat(repeated, 1+(64<<10)/len(repeated))
	for _, err := io.WriteString(w, begin); err == nil; {
		_, err = io.WriteString(w, repeated)
	}
}

// heapRoom is how much more a test may have on the heap, in bytes: some answers, and far less than a hostile Docker sends.
const heapRoom = 128 << 20

// inBounds runs f, which is to end soon and to keep little.
func inBounds(t *testing.T, f func(ctx context.Context) error) error {
	t.Helper()
	heap := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	runtime.GC()
	before := heap()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	deadline := time.After(time.Minute)
	for {
		select {
		case err := <-done:
			return err
		case <-time.After(time.Millisecond):
			if heap() < before+heapRoom {
				continue
			}
			runtime.GC() // what is garbage is not kept, but what is allocated meanwhile counts
			if now := heap(); now > before+heapRoom {
				t.Fatalf("%d MiB are kept", (now-before)>>20)
			}
		case <-deadline:
			t.Fatal("it does not end")
		}
	}
}

func TestAnswersOfAHostileDockerAreCutOff(t *testing.T) {
	inspect := func(ctx context.Context, d *dockerClient) error {
		_, err := d.ContainerInspect(ctx, ociContainer, client.ContainerInspectOptions{})
		return err
	}
	wait := func(ctx context.Context, d *dockerClient) error {
		_, _, err := waitOnce(ctx, &microVM{docker: d})
		return err
	}
	logs := func(ctx context.Context, d *dockerClient) error {
		_, err := dockerLogs(ctx, d, controlplane.LogOptions{Tail: -1})
		return err
	}
	attach := func(ctx context.Context, d *dockerClient) error {
		_, err := d.attach(ctx, "x", false)
		return err
	}
	pull := func(ctx context.Context, d *dockerClient) error {
		res, err := d.ImagePull(ctx, "alpine:3", client.ImagePullOptions{})
		if err != nil {
			return err
		}
		defer res.Close()
		return followPull(res, func(string) {})
	}
	pullAll := func(ctx context.Context, d *dockerClient) error { // to decode so much takes too long for a test
		res, err := d.ImagePull(ctx, "alpine:3", client.ImagePullOptions{})
		if err != nil {
			return err
		}
		defer res.Close()
		_, err = io.Copy(io.Discard, res)
		return err
	}
	for _, c := range []struct {
		name            string
		begin, repeated string
		call            func(context.Context, *dockerClient) error
		says            string
	}{
		{"an inspection with a string without end", answered + `{"Id":"`, "a", inspect, "GET /v1.45/containers/main/json with more than 4194304 bytes"},
		{"an inspection with a list without end", answered + `{"Args":[""`, `,""`, inspect, "more than 4194304 bytes"},
		{"an inspection without a beginning", answered, " \n", inspect, "more than 4194304 bytes"},
		{"a header line without end", "HTTP/1.1 200 OK\r\nX: ", "a", inspect, "headers exceeded 65536 bytes"},
		{"headers without end", "HTTP/1.1 200 OK\r\n", "X: y\r\n", inspect, "headers exceeded 65536 bytes"},
		{"hints without end", "", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", inspect, "headers exceeded 65536 bytes"},
		{"a refusal without end", refused, "no ", inspect, "more than 16384 bytes"},
		{"an upgrade that nobody asked for", upgraded, "a", inspect, "more than 16384 bytes"},
		{"a wait without end", answered + `{"StatusCode":`, "1", wait, "more than 4194304 bytes"},
		{"a refusal of logs without end", refused, "no ", logs, "more than 16384 bytes"},
		{"headers of logs without end", "HTTP/1.1 200 OK\r\n", "X: y\r\n", logs, "headers exceeded 65536 bytes"},
		{"headers of a command without end", "HTTP/1.1 101 UPGRADED\r\n", "X: y\r\n", attach, "headers exceeded 65536 bytes"},
		{"a refusal of a command without end", refused, "no ", attach, "status 500: no no"},
		{"a pull with a message without end", answered + `{"status":"`, "a", pull, errPullMessage.Error()},
		{"a pull with a message of many lines", answered + `{"aux":[1`, ",\r\n1", pull, errPullMessage.Error()},
		{"a pull without a message", answered, "\r\n", pull, errPullMessage.Error()},
		{"a pull without end", answered, `{"status":"Pulling"}` + "\r\n", pullAll, "POST /v1.45/images/create with more than 268435456 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			hungUp := make(chan struct{})
			d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
				flood(conn, c.begin, c.repeated)
				close(hungUp)
			})
			err := inBounds(t, func(ctx context.Context) error {
				err := c.call(ctx, d)
				<-hungUp // before ctx ends
				return err
			})
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("the error is %.300v", err)
			}
		})
	}
}

// TestAWaitThatIsNoJSON: the client would make a message of all that came.
func TestAWaitThatIsNoJSON(t *testing.T) {
	d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
		io.WriteString(conn, answered+strings.Repeat(" ", answerLimit/2)+"broken\x1b[2J")
	})
	_, _, err := waitOnce(t.Context(), &microVM{docker: d})
	if err == nil || len(err.Error()) > 5000 || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("the error is %.300v", err)
	}
}

func TestALongAnswerThatIsWithinBounds(t *testing.T) {
	d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
		io.WriteString(conn, answered+`{"Id":"`+strings.Repeat("a", answerLimit-9)+`"}`)
	})
	res, err := d.ContainerInspect(t.Context(), ociContainer, client.ContainerInspectOptions{})
	if err != nil || len(res.Container.ID) != answerLimit-9 {
		t.Errorf("an id of %d bytes, error %v", len(res.Container.ID), err)
	}
}

func TestAPullTellsOnlyWhatIsAboutAllOfIt(t *testing.T) {
	d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
		io.WriteString(conn, answered+`{"status":"Pulling from library/alpine","id":"3"}{"status":"Digest: x\u0007"}`+"\r\n")
		for range 1000 {
			io.WriteString(conn, `{"status":"Status: again"}`+"\r\n")
		}
		io.WriteString(conn, `{"errorDetail":{"message":"manifest unknown"},"error":"manifest unknown"}`+"\r\n")
	})
	res, err := d.ImagePull(t.Context(), "alpine:3", client.ImagePullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer res.Close()
	var told []string
	err = followPull(res, func(s string) { told = append(told, s) })
	if err == nil || err.Error() != "manifest unknown" {
		t.Errorf("the error is %v", err)
	}
	if len(told) != pullSteps || told[0] != "Digest: x\uFFFD" {
		t.Errorf("told %d steps, first %q", len(told), told[0])
	}
}

// TestFramesThatClaimMuch: a frame of 4 GiB costs no more than what comes of it.
func TestFramesThatClaimMuch(t *testing.T) {
	claim := frame(1, 1<<32-1, "")
	t.Run("logs", func(t *testing.T) {
		d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) { flood(conn, answered+claim, "a") })
		if err := inBounds(t, func(ctx context.Context) error {
			r, err := dockerLogs(ctx, d, controlplane.LogOptions{Tail: -1})
			if err != nil {
				return err
			}
			for range heapRoom / maxLogLine {
				if l, err := r.Next(); err != nil || len(l.Text) != maxLogLine {
					return fmt.Errorf("a line of %d bytes, error %v", len(l.Text), err)
				}
			}
			return r.Close()
		}); err != nil {
			t.Error(err)
		}
	})
	t.Run("logs without data", func(t *testing.T) {
		d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
			io.WriteString(conn, answered+claim)
			io.Copy(io.Discard, conn)
		})
		if err := inBounds(t, func(ctx context.Context) error {
			r, err := dockerLogs(ctx, d, controlplane.LogOptions{Tail: -1, Follow: true})
			if err != nil {
				return err
			}
			time.Sleep(200 * time.Millisecond) // nothing tells that the header has been read
			return r.Close()
		}); err != nil {
			t.Error(err)
		}
	})
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprintf("command, terminal %v", tty), func(t *testing.T) {
			d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) { flood(conn, upgraded+claim, "a") })
			if err := inBounds(t, func(ctx context.Context) error {
				s, err := startExec(ctx, d, "x", tty)
				if err != nil {
					return err
				}
				for got := 0; got < heapRoom; {
					_, data, err := s.Next()
					if err != nil || len(data) > pieceLimit {
						return fmt.Errorf("a piece of %d bytes, error %v", len(data), err)
					}
					got += len(data)
				}
				return s.Close()
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestNoMoreLogsAreSavedThanThereIsRoomFor(t *testing.T) {
	long := strings.Repeat("a", 1000) + "\n"
	for name, repeated := range map[string]string{
		"lines":                   whole(1, "2026-01-24T12:00:00Z "+long),
		"empty lines":             whole(2, "\n"),
		"one line":                whole(1, strings.Repeat("a", 10_000)),
		"one line, bit by bit":    whole(1, "aaaaaaaa"),
		"what JSON makes longest": whole(1, "\x00\x00\x00\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
				repeated := strings.Repeat(repeated, 1+(64<<10)/len(repeated))
				_, err := io.WriteString(conn, answered)
				for sent := 0; sent < 4*savedBytes && err == nil; sent += len(repeated) { // not without end: a fault is not to fill the disk
					_, err = io.WriteString(conn, repeated)
				}
			})
			c := &container{dir: t.TempDir()}
			if err := inBounds(t, func(ctx context.Context) error { return saveLogs(ctx, d, c) }); err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(c.dir, logFile))
			if err != nil || info.Size() > savedBytes+1000 || info.Size() < savedBytes/2 {
				t.Fatalf("the file has %d bytes, error %v", info.Size(), err)
			}
			if last := readAll(t, c, 1); !strings.Contains(last, "the output was cut here: no more than 32 MiB") {
				t.Errorf("the last line is %.100q", last)
			}
		})
	}
}

func TestLogsAreSavedWhole(t *testing.T) {
	var tail string
	d := startDocker(t, func(conn *net.UnixConn, req *http.Request) {
		tail = req.URL.Query().Get("tail")
		io.WriteString(conn, answered+whole(1, "2026-01-24T12:00:00Z a\n")+whole(2, "2026-01-24T12:00:01Z b\n"))
	})
	c := &container{dir: t.TempDir()}
	if err := saveLogs(t.Context(), d, c); err != nil {
		t.Fatal(err)
	}
	if got := readAll(t, c, -1); got != "a\nb\n" || tail != "200000" {
		t.Errorf("saved %q, of a tail of %s lines", got, tail)
	}
}

// TestACommandOutlivesTheCallThatStartedIt, and can be told the end of its input.
func TestACommandOutlivesTheCallThatStartedIt(t *testing.T) {
	d := startDocker(t, func(conn *net.UnixConn, req *http.Request) {
		io.WriteString(conn, upgraded+whole(2, req.Method+" "+req.URL.Path+"\n"))
		in, _ := io.ReadAll(conn)
		io.WriteString(conn, whole(1, strings.ToUpper(string(in))))
	})
	ctx, cancel := context.WithCancel(t.Context())
	s, err := startExec(ctx, d, "a/b", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	cancel()
	if stream, data, err := s.Next(); stream != "stderr" || string(data) != "POST /v1.45/exec/a/b/start\n" || err != nil {
		t.Errorf("%s %q, error %v", stream, data, err)
	}
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

func TestACommandWhoseOutputBreaksOff(t *testing.T) {
	d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) { io.WriteString(conn, upgraded+frame(1, 10, "abc")) })
	s, err := startExec(t.Context(), d, "x", false)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, data, err := s.Next(); string(data) != "abc" || err != nil {
		t.Errorf("%q, error %v", data, err)
	}
	if _, _, err := s.Next(); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Errorf("the end is %v", err)
	}
}

func TestNobodyWaitsForADockerThatDoesNotStartACommand(t *testing.T) {
	d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) { io.Copy(io.Discard, conn) })
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := inBounds(t, func(context.Context) error {
		_, err := startExec(ctx, d, "x", false)
		return err
	}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
}

// TestAMachineThatDiesAfterItsCommand: whether Docker had started the command again nobody can know.
func TestAMachineThatDiesAfterItsCommand(t *testing.T) {
	d := startDocker(t, func(conn *net.UnixConn, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "/wait") {
			io.WriteString(conn, answered+`{"StatusCode":5}`)
		} // else it hangs up
	})
	end, err := (&Agent{}).waitExit(t.Context(), &microVM{docker: d, machine: &testMachine{}}, warmboot.NewID())
	if want := (controlplane.Ended{Code: 5, Cut: true}); err != nil || end != want {
		t.Errorf("the end is %+v, %v; want %+v", end, err, want)
	}
}

// TestACommandThatEndsAgainAndAgain: a Docker that says so as fast as it can is not asked as fast.
func TestACommandThatEndsAgainAndAgain(t *testing.T) {
	var asked atomic.Int32
	d := startDocker(t, func(conn *net.UnixConn, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "/wait") {
			asked.Add(1)
			io.WriteString(conn, answered+`{"StatusCode":1}`)
			return
		}
		io.WriteString(conn, answered+`{"State":{"Running":true}}`)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 5*againPause)
	defer cancel()
	if _, err := (&Agent{}).waitExit(ctx, &microVM{docker: d, machine: &testMachine{}}, warmboot.NewID()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the error is %v", err)
	}
	if n := asked.Load(); n < 1 || n > 6 {
		t.Errorf("it was asked %d times", n)
	}
}
