package guestrpc

import (
	"encoding/binary"
	"errors"
	"io"
)

// In a tunnel the host's bytes come in chunks, each behind its length as two bytes, big endian; an empty chunk is the end
// of the host's input. yamux cannot say that by itself: its close ends what the closer writes and leaves the peer guessing
// whether it still reads. So closing the stream means that the whole connection is over.
const maxChunk = 1<<16 - 1

// writeChunks writes p as chunks. Nothing at all is written for an empty p.
func writeChunks(w io.Writer, p []byte) (int, error) {
	done := 0
	for done < len(p) {
		part := p[done:min(len(p), done+maxChunk)]
		if err := writeChunk(w, part); err != nil {
			return done, err
		}
		done += len(part)
	}
	return done, nil
}

func writeChunk(w io.Writer, p []byte) error {
	frame := make([]byte, 2+len(p))
	binary.BigEndian.PutUint16(frame, uint16(len(p)))
	copy(frame[2:], p)
	_, err := w.Write(frame)
	return err
}

// ChunkReader gives the guest what the host writes into a tunnel. io.EOF is the end of the host's input, while the host may
// still read; io.ErrUnexpectedEOF means that the host has closed the connection.
type ChunkReader struct {
	R    io.Reader
	left int
	done bool
}

func (c *ChunkReader) Read(p []byte) (int, error) {
	if c.done {
		return 0, io.EOF
	}
	if c.left == 0 {
		var length [2]byte
		if _, err := io.ReadFull(c.R, length[:]); err != nil {
			return 0, hungUp(err)
		}
		if c.left = int(binary.BigEndian.Uint16(length[:])); c.left == 0 {
			c.done = true
			return 0, io.EOF
		}
	}
	n, err := c.R.Read(p[:min(len(p), c.left)])
	c.left -= n
	if n > 0 {
		err = nil
	}
	return n, hungUp(err)
}

func hungUp(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
