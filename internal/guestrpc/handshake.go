package guestrpc

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
)

// The marks are random, so that they do not turn up in other traffic by accident.
var (
	hostMark  = [8]byte{0xf3, 0x9a, 0x1c, 0xe7, 0x52, 0x88, 0xb4, 0x0d}
	guestMark = [8]byte{0xc6, 0x4b, 0xd1, 0x7e, 0x03, 0xaf, 0x95, 0x68}
)

const (
	nonceLen    = 16
	preambleLen = len(hostMark) + nonceLen
	// maxStale bounds how much a guest can make the host skip in one attempt; a virtio-serial port buffers far less.
	maxStale = 8 << 20
)

var errNoMark = errors.New("too much data before the guest's answer")

// greet is the host's half of the handshake. It returns the guest's answer, and what reads on behind it.
func greet(conn io.ReadWriter) (*bufio.Reader, []byte, error) {
	preamble := make([]byte, preambleLen)
	copy(preamble, hostMark[:])
	rand.Read(preamble[len(hostMark):])
	if _, err := conn.Write(preamble); err != nil {
		return nil, nil, err
	}
	want := append(guestMark[:], preamble[len(hostMark):]...)
	r := bufio.NewReader(conn)
	return r, want, skipPast(r, want, maxStale)
}

// Handshake is the guest's half of the handshake: it waits for a host, however long that takes and whatever comes before it,
// and answers. announce, if there is one, is told the answer before the host is. What Handshake returns reads on behind the host's
// preamble.
func Handshake(conn io.ReadWriter, announce func(answer []byte)) (*bufio.Reader, error) {
	r := bufio.NewReader(conn)
	nonce := make([]byte, nonceLen)
	for {
		if err := skipPast(r, hostMark[:], -1); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(r, nonce); err != nil {
			return nil, err
		}
		// Two preambles back to back: the first is that of a host that gave up, and nobody waits for its answer.
		if b := r.Buffered(); b > 0 {
			rest, _ := r.Peek(b)
			if bytes.Contains(rest, hostMark[:]) {
				continue
			}
		}
		answer := append(guestMark[:], nonce...)
		if announce != nil {
			announce(answer)
		}
		_, err := conn.Write(answer)
		return r, err
	}
}

// skipPast reads up to and including mark. More than limit bytes before it is an error; limit < 0 means no limit.
func skipPast(r io.ByteReader, mark []byte, limit int) error {
	last := make([]byte, 0, 2*len(mark))
	for read := 0; limit < 0 || read < limit; read++ {
		b, err := r.ReadByte()
		if err != nil {
			return err
		}
		if len(last) == cap(last) {
			last = append(last[:0], last[len(last)-len(mark)+1:]...)
		}
		last = append(last, b)
		if bytes.HasSuffix(last, mark) {
			return nil
		}
	}
	return errNoMark
}
