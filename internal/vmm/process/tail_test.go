package process

import (
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
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

// A guest that prints characters without end does not keep its host awake.
func TestTailReadsAtItsOwnPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const reads = 1000
		left := reads
		drip := readerFunc(func(p []byte) (int, error) {
			if left == 0 {
				return 0, io.EOF
			}
			left--
			p[0] = 'x'
			return 1, nil
		})
		var kept Tail
		begin := time.Now()
		if n, err := io.Copy(&kept, drip); n != reads || err != nil || kept.String() != strings.Repeat("x", reads) {
			t.Errorf("%d bytes, %v; kept %d", n, err, len(kept.String()))
		}
		if took := time.Since(begin); took != reads*rest {
			t.Errorf("%d reads took %v, want %v", reads, took, reads*rest)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
