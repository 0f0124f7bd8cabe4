package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/moby/client"
)

// A pull whose connection is lost on the way is begun again; one that the registry has refused is not.
func TestAPullThatBreaksOffIsBegunAgain(t *testing.T) {
	t.Parallel()
	chunk := func(text string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(text), text) }
	const (
		begun = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
		end   = "0\r\n\r\n"
	)
	good := begun + chunk(`{"status":"Status: Downloaded newer image"}`+"\r\n") + end
	lost := begun + chunk(`{"status":"Pulling from library/alpine"}`+"\r\n")
	says := func(text string) string { return begun + chunk(`{"errorDetail":{"message":"`+text+`"}}`+"\r\n") + end }
	const late = `Get http://10.0.0.1:5/v2/: net/http: request canceled (Client.Timeout exceeded while awaiting headers)`
	for _, tt := range []struct {
		name    string
		busy    bool     // the machine never has a processor
		answers []string // the last is given again and again
		calls   int32
		want    string // of the error
	}{
		{"Docker is lost", false, []string{lost, good}, 2, ""},
		{"Docker does not answer", false, []string{"", good}, 2, ""},
		{"the registry is lost", false, []string{says("unexpected EOF"), says("read tcp 10.0.0.1:5:  connection reset by peer"), good}, 3, ""},
		{"it is always lost", false, []string{lost}, pullAttempts, "unexpected EOF"},
		{"the registry refuses", false, []string{says("manifest unknown"), good}, 1, "manifest unknown"},
		{"nobody is there", false, []string{says("dial tcp 10.0.0.1:5: connect: connection refused"), good}, 1, "connection refused"},
		{"the registry is slow", false, []string{says(late), good}, 1, "Client.Timeout"},
		{"the host is busy", true, []string{says(late), says(late), says("unexpected EOF"), says(late), good}, 5, ""},
		{"the host is always busy", true, []string{says(late)}, lateAttempts + 1, "Client.Timeout"},
		{"the registry refuses a busy host", true, []string{says("manifest unknown"), good}, 1, "manifest unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
				n := int(calls.Add(1))
				_, _ = io.WriteString(conn, tt.answers[min(n, len(tt.answers))-1])
			})
			var told strings.Builder
			start := time.Now()
			hungry := func() time.Duration {
				if tt.busy {
					return time.Since(start)
				}
				return 0
			}
			err := pullImage(t.Context(), d, "alpine:3", client.ImagePullOptions{}, hungry, func(s string) { fmt.Fprintln(&told, s) })
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if calls.Load() != tt.calls || strings.Count(told.String(), "it is tried again") != int(tt.calls)-1 {
				t.Errorf("it was begun %d times, want %d, and told:\n%s", calls.Load(), tt.calls, &told)
			}
		})
	}

	d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) { _, _ = io.WriteString(conn, lost) })
	ctx, cancel := context.WithCancel(t.Context())
	if err := pullImage(ctx, d, "alpine:3", client.ImagePullOptions{}, func() time.Duration { return 0 }, func(s string) {
		if strings.Contains(s, "again") {
			cancel()
		}
	}); err == nil || ctx.Err() == nil {
		t.Errorf("a pull that nobody wants any more ends with %v", err)
	}
}
