package guestrpc

import (
	"bufio"
	"io"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"
)

// MaxMessage is how large one message may be, in bytes.
const MaxMessage = 1 << 20

// WriteMessage writes a length-delimited message.
func WriteMessage(w io.Writer, m proto.Message) error {
	_, err := protodelim.MarshalTo(w, m)
	return err
}

// ReadMessage reads a length-delimited message. One larger than MaxMessage is an error, before anything of it is stored.
func ReadMessage(r *bufio.Reader, m proto.Message) error {
	return protodelim.UnmarshalOptions{MaxSize: MaxMessage}.UnmarshalFrom(r, m)
}
