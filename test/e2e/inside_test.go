package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
	"warmboot/internal/vmm"
)

// inside is a conversation of our own with the guest agent of a container's machine, past the server. Only vsock takes a second one, so it takes
// Firecracker.
func inside(t *testing.T, s *server, id string) *guestrpc.Client {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.root, "containers", id, "record.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ Handle vmm.Handle }
	if err := json.Unmarshal(text, &record); err != nil || record.Handle.PID == 0 {
		t.Fatalf("the record of %s has no process: %v\n%s", id, err, text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := guestrpc.Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		// The socket is in the process's own root. https://github.com/firecracker-microvm/firecracker/blob/main/docs/vsock.md
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/%d/root/guest.sock", record.Handle.PID))
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(conn, "CONNECT 5000\n")
		greeting := make([]byte, 1)
		for line := ""; !strings.HasSuffix(line, "\n"); line += string(greeting) {
			if _, err := conn.Read(greeting); err != nil {
				conn.Close()
				return nil, err
			}
		}
		return conn, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// runInside runs a command in a machine, beside its container, and returns what it printed.
func runInside(t *testing.T, c *guestrpc.Client, argv ...string) string {
	t.Helper()
	p, err := c.Exec(t.Context(), &guestv1.ExecRequest{Argv: argv})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	p.Stdin.Close()
	var out bytes.Buffer
	p.Output(func(stdout, stderr []byte) { out.Write(stdout); out.Write(stderr) })
	if code, err := p.Wait(); err != nil || code != 0 {
		t.Fatalf("%v in the machine: exit code %d, %v\n%s", argv, code, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// engineID asks a machine's Docker who it is.
func engineID(t *testing.T, c *guestrpc.Client) string {
	t.Helper()
	conn, err := c.DialDocker(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /info HTTP/1.0\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	var info struct{ ID, Name string }
	if err := json.NewDecoder(res.Body).Decode(&info); err != nil || info.ID == "" {
		t.Fatalf("Docker says %+v, %v", info, err)
	}
	return info.ID
}
