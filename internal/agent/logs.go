package agent

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"

	"warmboot"
	"warmboot/internal/controlplane"
)

// logFile keeps the output of a container whose microVM is gone: JSON lines, oldest first.
const logFile = "log.jsonl"

// Docker in our images keeps 10 MB of output in the guest, which are at most 150,000 lines, and all of it is kept here. These are for a guest that
// says more: an image of an operator's own whose Docker keeps all, of which the last lines are asked for, and a hostile guest that gives no heed.
const (
	savedLines = 200_000
	savedBytes = 32 << 20 // of logFile
)

// Logs streams the command's output, oldest first; of a stopped container too.
func (a *Agent) Logs(ctx context.Context, id warmboot.ID, opts controlplane.LogOptions) (controlplane.LogReader, error) {
	c, err := a.find(id)
	if err != nil {
		return nil, err
	}
	vm, err := c.vm()
	if err != nil {
		return savedLogs(c, opts.Tail)
	}
	return dockerLogs(ctx, vm.docker, opts)
}

// dockerLogs reads the output from the guest's Docker.
func dockerLogs(ctx context.Context, d *dockerClient, opts controlplane.LogOptions) (*logReader, error) {
	tail := "all"
	if opts.Tail >= 0 {
		tail = strconv.Itoa(opts.Tail)
	}
	ctx, cancel := context.WithCancel(ctx)
	raw, err := d.ContainerLogs(ctx, ociContainer, client.ContainerLogsOptions{
		ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: opts.Follow, Tail: tail,
	})
	if cerrdefs.IsNotFound(err) {
		cancel()
		return &logReader{next: func() (controlplane.LogLine, error) { return controlplane.LogLine{}, io.EOF }, close: func() error { return nil }}, nil
	}
	if err != nil {
		cancel()
		return nil, dockerError("read logs", err)
	}
	lines := make(chan controlplane.LogLine)
	done := make(chan error, 1)
	go func() {
		send := func(stream string) *lineWriter {
			return &lineWriter{stream: stream, emit: func(l controlplane.LogLine) error {
				select {
				case lines <- l:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}}
		}
		stdout, stderr := send("stdout"), send("stderr")
		err := splitOutput(stdout, stderr, raw)
		done <- errors.Join(err, stdout.flush(), stderr.flush())
		close(lines)
	}()
	return &logReader{
		next: func() (controlplane.LogLine, error) {
			if l, ok := <-lines; ok {
				return l, nil
			}
			if err := <-done; err != nil && ctx.Err() == nil {
				return controlplane.LogLine{}, err
			}
			return controlplane.LogLine{}, io.EOF
		},
		close: func() error {
			cancel()
			err := raw.Close()
			for range lines { // lets the copying end
			}
			return err
		},
	}, nil
}

// logReader is a controlplane.LogReader made of two functions.
type logReader struct {
	next  func() (controlplane.LogLine, error)
	close func() error
}

func (r *logReader) Next() (controlplane.LogLine, error) { return r.next() }
func (r *logReader) Close() error                        { return r.close() }

// maxLogLine bounds what is kept of a line that does not end.
const maxLogLine = 64 << 10

// lineWriter cuts one of Docker's streams into lines. Each begins with a time stamp and a space.
type lineWriter struct {
	stream string
	emit   func(controlplane.LogLine) error
	rest   []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	searched := len(w.rest) // a guest that writes byte by byte has not all of it searched every time
	w.rest = append(w.rest, p...)
	for {
		end := bytes.IndexByte(w.rest[searched:], '\n') + 1
		switch {
		case end > 0:
			end += searched
		case len(w.rest) < maxLogLine:
			return len(p), nil
		default:
			end = maxLogLine
		}
		if err := w.emitLine(w.rest[:end]); err != nil {
			return 0, err
		}
		w.rest, searched = w.rest[end:], 0
	}
}

func (w *lineWriter) flush() error {
	if len(w.rest) == 0 {
		return nil
	}
	return w.emitLine(w.rest)
}

func (w *lineWriter) emitLine(line []byte) error {
	l := controlplane.LogLine{Stream: w.stream, Text: string(line)}
	if stamp, text, ok := bytes.Cut(line, []byte(" ")); ok {
		if t, err := time.Parse(time.RFC3339Nano, string(stamp)); err == nil {
			l.Time, l.Text = t, string(text)
		}
	}
	return w.emit(l)
}

// saveLogs writes a container's output to the host before its microVM goes. Where that would be more than savedBytes it ends early, and says so in
// its last line.
func saveLogs(ctx context.Context, d *dockerClient, c *container) error {
	r, err := dockerLogs(ctx, d, controlplane.LogOptions{Tail: savedLines})
	if err != nil {
		return err
	}
	defer r.Close()
	tmp := filepath.Join(c.dir, "."+logFile)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := bufio.NewWriter(f)
	err = copyLines(buf, r)
	if err := errors.Join(err, buf.Flush(), f.Sync()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, filepath.Join(c.dir, logFile))
}

// copyLines writes lines as JSON, at most savedBytes of them and one that says so.
func copyLines(w io.Writer, r *logReader) error {
	for size := 0; ; {
		l, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		text, err := json.Marshal(l)
		if err != nil {
			return err
		}
		size += len(text) + 1
		if size > savedBytes {
			l.Stream, l.Text = "stderr", fmt.Sprintf("warmboot: the output was cut here: no more than %d MiB of it are kept\n", savedBytes>>20)
			return json.NewEncoder(w).Encode(l)
		}
		if _, err := w.Write(append(text, '\n')); err != nil {
			return err
		}
	}
}

// savedLogs reads what saveLogs wrote. A container that never ran has nothing.
func savedLogs(c *container, tail int) (*logReader, error) {
	f, err := os.Open(filepath.Join(c.dir, logFile))
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(os.DevNull)
	}
	if err != nil {
		return nil, ioError("read logs", err)
	}
	if tail >= 0 {
		if err := seekTail(f, tail); err != nil {
			f.Close()
			return nil, ioError("read logs", err)
		}
	}
	dec := json.NewDecoder(f)
	return &logReader{next: func() (controlplane.LogLine, error) {
		var l controlplane.LogLine
		err := dec.Decode(&l)
		return l, err
	}, close: f.Close}, nil
}

// seekTail moves to the last n lines of a file.
func seekTail(f *os.File, n int) error {
	var starts []int64 // of each line, and of the one that would come next
	var at int64
	r := bufio.NewReader(f)
	for {
		starts = append(starts, at)
		line, err := r.ReadString('\n')
		at += int64(len(line))
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	_, err := f.Seek(starts[max(0, len(starts)-1-n)], io.SeekStart)
	return err
}
