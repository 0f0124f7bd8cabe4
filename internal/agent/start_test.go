package agent

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// A start whose answer is lost is asked for again, unless Docker has started the container: no command runs twice.
func TestAStartWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	const (
		started = "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
		now     = "2026-11-29T10:33:05.6Z"
	)
	for _, tt := range []struct {
		name    string
		answers []string // to starts; the last is given again and again
		since   string   // what Docker says of when the container was started, if asked; empty: nothing
		from    int32    // the start from which on it says so; neverStarted before
		starts  int32
		want    string // of the error
	}{
		{"nothing is lost", []string{started}, now, 1, 1, ""},
		{"before Docker has started it", []string{"", started}, neverStarted, 1, 2, ""},
		{"after Docker has started it", []string{"", started}, now, 1, 1, ""},
		{"the last time, after Docker has started it", []string{""}, now, onceAttempts, onceAttempts, ""},
		{"always", []string{""}, neverStarted, 1, onceAttempts, "EOF"},
		{"Docker is gone", []string{""}, "", 1, 1, "EOF"},
		{"Docker was still at it", []string{"", refused + `{"message":"is already being started"}`}, now, 2, 2, ""},
		{"Docker refuses the second time", []string{"", refused + `{"message":"no such program"}`}, neverStarted, 1, 2, "no such program"},
		{"Docker refuses", []string{refused + `{"message":"no such program"}`}, neverStarted, 1, 1, "no such program"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var starts atomic.Int32
			d := startDocker(t, func(conn *net.UnixConn, req *http.Request) {
				if strings.HasSuffix(req.URL.Path, "/start") {
					n := int(starts.Add(1))
					io.WriteString(conn, tt.answers[min(n, len(tt.answers))-1])
				} else if tt.since != "" {
					since := tt.since
					if starts.Load() < tt.from {
						since = neverStarted
					}
					io.WriteString(conn, answered+`{"Id":"1","State":{"StartedAt":"`+since+`"}}`)
				}
			})
			err := startOnce(t.Context(), d, neverStarted, func(string) {})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if n := starts.Load(); n != tt.starts {
				t.Errorf("Docker was asked %d times to start it, want %d", n, tt.starts)
			}
		})
	}
}

// So is a creation, unless the container is there.
func TestACreationWhoseAnswerIsLost(t *testing.T) {
	t.Parallel()
	const (
		created = "HTTP/1.1 201 Created\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{\"Id\":\"1\"}"
		taken   = "HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{\"message\":\"the name is in use\"}"
		unknown = "HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{\"message\":\"no such container\"}"
	)
	for _, tt := range []struct {
		name    string
		answers []string // to creations; the last is given again and again
		from    int32    // the creation from which on the container is there; 0: never
		creates int32
		want    string // of the error
	}{
		{"nothing is lost", []string{created}, 1, 1, ""},
		{"before Docker has created it", []string{"", created}, 2, 2, ""},
		{"after Docker has created it", []string{"", taken}, 1, 1, ""},
		{"while Docker creates it", []string{"", taken}, 2, 2, ""},
		{"always", []string{""}, 0, onceAttempts, "EOF"},
		{"the name is another's", []string{taken}, 1, 1, "in use"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var creates atomic.Int32
			d := startDocker(t, func(conn *net.UnixConn, req *http.Request) {
				switch {
				case strings.HasSuffix(req.URL.Path, "/create"):
					n := int(creates.Add(1))
					io.WriteString(conn, tt.answers[min(n, len(tt.answers))-1])
				case tt.from > 0 && creates.Load() >= tt.from:
					io.WriteString(conn, answered+`{"Id":"1"}`)
				default:
					io.WriteString(conn, unknown)
				}
			})
			err := createOnce(t.Context(), d, client.ContainerCreateOptions{Name: ociContainer, Config: &dockertypes.Config{Image: "alpine:3"}}, func(string) {})
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if n := creates.Load(); n != tt.creates {
				t.Errorf("Docker was asked %d times to create it, want %d", n, tt.creates)
			}
		})
	}
}
