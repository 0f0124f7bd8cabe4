package guestrpc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"

	"golang.org/x/time/rate"
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

// What a guest may send is bounded in its rate too, because yamux reads for ever what no stream waits for: a guest that sends nothing else
// would keep a processor of the host's busy, outside its own cgroup. A frame costs one, and so does each costly bytes, which is far more than a guest that
// means well has to say (256 MiB/s in frames of that size); beyond that the host reads later, and the guest waits.
const (
	framesPerSecond = 16 << 10
	framesAtOnce    = 4 << 10
	costly          = 16 << 10
)

var (
	errFence = errors.New("the guest broke the protocol: it sent a ping or opened a stream")
	errAnew  = errors.New("the guest agent was started again")
)

// fence reads what a guest sends to the host's yamux session and ends it at a frame that only a hostile guest would send.
// A ping costs yamux a goroutine that waits for the write, a stream opened by the peer a receive window: a guest that
// sends them without reading would take as much of the host's memory as it likes.
//
// What is only too much it reads slowly.
//
// It also ends the session at the guest's answer to the handshake, wherever in a frame that comes: see Accept. Nobody but the host
// and the agent knows those bytes, so no data has them by accident.
type fence struct {
	io.ReadWriteCloser
	pace   *rate.Limiter
	unpaid int // bytes, fewer than costly
	answer []byte
	tail   []byte // the last bytes read, one less than the answer has
	header [frameHeader]byte
	have   int    // bytes of header
	body   uint32 // bytes left of the data frame
	err    error  // for good: yamux passes over an error in data that nobody waits for
}

func newFence(conn io.ReadWriteCloser, answer []byte) *fence {
	return &fence{ReadWriteCloser: conn, pace: rate.NewLimiter(framesPerSecond, framesAtOnce), answer: answer}
}

func (f *fence) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	n, err := f.ReadWriteCloser.Read(p)
	if f.answered(p[:n]) {
		f.err = errAnew
		return 0, f.err
	}
	f.unpaid += n
	cost := f.unpaid / costly
	f.unpaid %= costly
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
		cost++
		if f.header[1] == framePing || binary.BigEndian.Uint16(f.header[flagsOffset:])&flagSYN != 0 {
			f.err = errFence
			return 0, f.err
		}
		if f.header[1] == frameData {
			f.body = binary.BigEndian.Uint32(f.header[lengthOffset:])
		}
	}
	f.pay(cost)
	return n, err
}

// pay waits until that many frames may have come. It takes no longer than that many do, so whoever closes the connection meanwhile need not end it.
func (f *fence) pay(cost int) {
	for ; cost > 0; cost -= framesAtOnce {
		_ = f.pace.WaitN(context.Background(), min(cost, framesAtOnce)) // it fails for more than that only
	}
}

// answered tells whether the answer ends in p, which follows what was read before.
func (f *fence) answered(p []byte) bool {
	keep := len(f.answer) - 1
	if f.tail == nil {
		f.tail = make([]byte, 0, 2*keep) // room for edge
	}
	edge := append(f.tail, p[:min(len(p), keep)]...)
	if bytes.Contains(edge, f.answer) || bytes.Contains(p, f.answer) {
		return true
	}
	last := edge
	if len(p) > keep {
		last = p
	}
	f.tail = append(f.tail[:0], last[max(0, len(last)-keep):]...)
	return false
}
