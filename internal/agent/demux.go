package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"warmboot/internal/guestrpc"
)

// Docker sends the output of a command without a terminal as frames: one byte that is the stream, three that are nothing, the length in four, big
// endian, and then that many bytes (https://docs.docker.com/reference/api/engine/version/v1.45/#tag/Container/operation/ContainerAttach).
const (
	frameHeader = 8
	frameLength = 4 // where in the header it begins

	frameStdin  = 0 // is to be taken for stdout
	frameStdout = 1
	frameStderr = 2
	frameError  = 3 // Docker's own, instead of the rest
)

// pieceLimit is how much of a frame is in memory, in bytes: one may claim to be 4 GiB long.
const pieceLimit = 32 << 10

// splitOutput passes Docker's frames on to stdout and stderr as they come, in pieces of at most 32 KiB, until the stream ends. An end within a frame
// is io.ErrUnexpectedEOF.
func splitOutput(stdout, stderr io.Writer, frames io.Reader) error {
	in := bufio.NewReader(frames)
	piece := make([]byte, pieceLimit)
	for {
		var header [frameHeader]byte
		if _, err := io.ReadFull(in, header[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		left := int64(binary.BigEndian.Uint32(header[frameLength:]))
		to := stdout
		switch header[0] {
		case frameStdin, frameStdout:
		case frameStderr:
			to = stderr
		case frameError:
			n, _ := io.ReadFull(in, piece[:min(left, pieceLimit)])
			return fmt.Errorf("docker in the microVM cannot go on with the output: %s", guestrpc.Brief(string(piece[:n])))
		default:
			return fmt.Errorf("docker in the microVM sent output of a stream %d, which there is not", header[0])
		}
		for left > 0 {
			n, err := in.Read(piece[:min(left, pieceLimit)]) // a frame need not be complete to be passed on
			left -= int64(n)
			if n > 0 {
				if _, err := to.Write(piece[:n]); err != nil {
					return err
				}
			}
			switch {
			case left > 0 && errors.Is(err, io.EOF):
				return io.ErrUnexpectedEOF
			case err != nil && !errors.Is(err, io.EOF):
				return err
			}
		}
	}
}
