package process

import (
	"io"
	"testing"
)

func TestTailKeepsTheEnd(t *testing.T) {
	t.Parallel()
	var kept Tail
	_, more := kept.Watch()
	for range 3 * TailLimit / 10 {
		io.WriteString(&kept, "0123456789")
	}
	select {
	case <-more:
	default:
		t.Error("whoever watches was not told")
	}
	io.WriteString(&kept, "\n\n last words \r\n")
	if n := len(kept.String()); n != TailLimit {
		t.Errorf("%d bytes are kept, want %d", n, TailLimit)
	}
	if got := Lines(kept.String(), 1); got != "last words" {
		t.Errorf("the last line is %q", got)
	}
}
