package guestrpc

import (
	"encoding/binary"
	"errors"
	"io"
)

// The parts of yamux's frame header (https://github.com/hashicorp/yamux/blob/master/spec.md) that fence looks at.
const (
	frameHeader  = 12
	frameData    = 0
	framePing    = 2
	flagSYN      = 1
	flagsOffset  = 2
	lengthOffset = 8
)

var errFence = errors.New("the guest broke the protocol: it sent a ping or opened a stream")

// fence reads what a guest sends to the host's yamux session and ends it at a frame that only a hostile guest would send.
// A ping costs yamux a goroutine that waits for the write, a stream opened by the peer a receive window: a guest that
// sends them without reading would take as much of the host's memory as it likes.
type fence struct {
	io.ReadWriteCloser
	header [frameHeader]byte
	have   int    // bytes of header
	body   uint32 // bytes left of the data frame
}

func (f *fence) Read(p []byte) (int, error) {
	n, err := f.ReadWriteCloser.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if f.body > 0 {
			skip := min(int(f.body), len(rest))
			f.body -= uint32(skip)
			rest = rest[skip:]
			continue
		}
		c := copy(f.header[f.have:], rest)
		f.have += c
		rest = rest[c:]
		if f.have < frameHeader {
			break
		}
		f.have = 0
		if f.header[1] == framePing || binary.BigEndian.Uint16(f.header[flagsOffset:])&flagSYN != 0 {
			return 0, errFence
		}
		if f.header[1] == frameData {
			f.body = binary.BigEndian.Uint32(f.header[lengthOffset:])
		}
	}
	return n, err
}
