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
	for _, tt := range []struct {
		name    string
		answers []string // the last is given again and again
		calls   int32
		want    string // of the error
	}{
		{"Docker is lost", []string{lost, good}, 2, ""},
		{"Docker does not answer", []string{"", good}, 2, ""},
		{"the registry is lost", []string{says("unexpected EOF"), says("read tcp 10.0.0.1:5:  connection reset by peer"), good}, 3, ""},
		{"it is always lost", []string{lost}, pullAttempts, "unexpected EOF"},
		{"the registry refuses", []string{says("manifest unknown"), good}, 1, "manifest unknown"},
		{"nobody is there", []string{says("dial tcp 10.0.0.1:5: connect: connection refused"), good}, 1, "connection refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var calls atomic.Int32
			d := startDocker(t, func(conn *net.UnixConn, _ *http.Request) {
				n := int(calls.Add(1))
				_, _ = io.WriteString(conn, tt.answers[min(n, len(tt.answers))-1])
			})
			var told strings.Builder
			err := pullImage(t.Context(), d, "alpine:3", client.ImagePullOptions{}, func(s string) { fmt.Fprintln(&told, s) })
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
	if err := pullImage(ctx, d, "alpine:3", client.ImagePullOptions{}, func(s string) {
		if strings.Contains(s, "again") {
			cancel()
		}
	}); err == nil || ctx.Err() == nil {
		t.Errorf("a pull that nobody wants any more ends with %v", err)
	}
}
