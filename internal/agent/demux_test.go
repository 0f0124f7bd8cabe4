package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// frame is a frame of Docker's that claims a length.
func frame(stream byte, length int, data string) string {
	header := binary.BigEndian.AppendUint32([]byte{stream, 0, 0, 0}, uint32(length))
	return string(header) + data
}

func whole(stream byte, data string) string { return frame(stream, len(data), data) }

func TestOutputIsSplit(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("0123456789", 20_000)
	for name, c := range map[string]struct{ wire, stdout, stderr, err string }{
		"nothing":                 {},
		"both, in turn":           {wire: whole(1, "a") + whole(2, "b") + whole(1, "c") + whole(2, ""), stdout: "ac", stderr: "b"},
		"stdin is stdout":         {wire: whole(0, "a") + whole(1, "b"), stdout: "ab"},
		"longer than a piece":     {wire: whole(2, long) + whole(1, long), stdout: long, stderr: long},
		"an error of Docker's":    {wire: whole(1, "a") + whole(3, "no space\x1b[2J") + whole(1, "b"), stdout: "a", err: "cannot go on with the output: no space\uFFFD[2J"},
		"an error that is cut":    {wire: frame(3, 1<<31, "no sp"), err: "no sp"},
		"no such stream":          {wire: whole(1, "a") + whole(4, "b"), stdout: "a", err: "stream 4"},
		"something else":          {wire: "hello, world", err: "stream 104"},
		"an end within a header":  {wire: whole(1, "a") + "\x01\x00", stdout: "a", err: io.ErrUnexpectedEOF.Error()},
		"an end after a header":   {wire: frame(1, 1<<32-1, ""), err: io.ErrUnexpectedEOF.Error()},
		"an end within the frame": {wire: frame(2, 1<<32-1, "abc"), stderr: "abc", err: io.ErrUnexpectedEOF.Error()},
	} {
		for how, r := range map[string]io.Reader{
			"": strings.NewReader(c.wire), " byte by byte": iotest.OneByteReader(strings.NewReader(c.wire)), " and the end at once": iotest.DataErrReader(strings.NewReader(c.wire)),
		} {
			var stdout, stderr bytes.Buffer
			err := splitOutput(&stdout, &stderr, r)
			if stdout.String() != c.stdout || stderr.String() != c.stderr {
				t.Errorf("%s%s: %.40q and %.40q", name, how, stdout.String(), stderr.String())
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s%s: error %v, want %q", name, how, err, c.err)
			}
		}
	}
}

func TestOutputThatNobodyTakesEndsTheSplitting(t *testing.T) {
	t.Parallel()
	w := execWriter{&execSession{output: make(chan execOutput), closed: make(chan struct{})}, "stdout"}
	close(w.s.closed)
	if err := splitOutput(w, w, strings.NewReader(frame(1, 1<<32-1, "abc"))); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the error is %v", err)
	}
}
