package cli_test

import (
	"bufio"
	"context"
	"io"
	"os"
	"strings"
	"testing"

	"warmboot/internal/cli"
	"warmboot/internal/controlplane"
)

func TestEventsAreShownUntilInterrupted(t *testing.T) {
	t.Parallel()
	s, err := serve(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	for format, want := range map[string][]string{
		"table": {" reset: events are missing here; look at everything anew", " in-table creating", " in-table creating (cold boot)", " in-table running (cold boot)"},
		"json":  {`"type":"reset"`, `"name":"in-json","state":"creating"}`, `"state":"creating","boot_method":"cold"}`, `"state":"running","boot_method":"cold"}`},
	} {
		out, in := io.Pipe()
		signals := make(chan os.Signal, 2)
		c := cli.Config{In: strings.NewReader(""), Out: in, Err: io.Discard, Env: func(string) string { return "" }, Signals: signals}
		code := make(chan int, 1)
		go func() {
			code <- cli.Run(context.Background(), c, []string{"events", "-H", s.http.URL, "--token", s.token, "-o", format, "--since-id", "gone-1", "--type", "container"})
		}()
		lines := bufio.NewScanner(out)
		for i, w := range want {
			if i == 1 { // the stream is there: the reset has come
				if _, err := s.svc.CreateContainer(t.Context(), controlplane.CreateContainer{Name: "in-" + format, Image: "debian:trixie"}); err != nil {
					t.Fatal(err)
				}
			}
			if !lines.Scan() || !strings.HasSuffix(lines.Text(), w) && !strings.Contains(lines.Text(), w) {
				t.Fatalf("line %d is %q, want %q in it", i, lines.Text(), w)
			}
		}
		signals <- os.Interrupt
		if got := <-code; got != 130 {
			t.Errorf("interrupted, it exits with %d", got)
		}
		_ = out.Close() // nothing is left to read
	}
}
