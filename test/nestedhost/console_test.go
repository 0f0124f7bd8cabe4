package nestedhost

import (
	"io"
	"strings"
	"testing"
)

func TestConsoleSeesWhatComesInPieces(t *testing.T) {
	t.Parallel()
	var c console
	io.WriteString(&c, "an old mark. ")
	first, second := c.next("mark"), c.next("later")
	seen := func(ch <-chan struct{}) bool {
		select {
		case <-ch:
			return true
		default:
			return false
		}
	}
	for _, piece := range []string{"rk m", "a", "r", strings.Repeat(".", 2*consoleLimit)} {
		io.WriteString(&c, piece)
		if seen(first) {
			t.Errorf("seen after %.10q", piece)
		}
	}
	io.WriteString(&c, "mar")
	io.WriteString(&c, "k.")
	if !seen(first) || seen(second) {
		t.Error("the mark was not seen, or another one was")
	}
	if n := len(c.String()); n != consoleLimit {
		t.Errorf("%d bytes are kept, want %d", n, consoleLimit)
	}
	if got := end(" a \n\n\r\n b\n", 1); got != "b" {
		t.Errorf("the last line is %q", got)
	}
}
