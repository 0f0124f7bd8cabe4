package warmboot

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
)

// ID names an entity: a random UUID (RFC 9562, version 4) in its canonical lower-case text form.
type ID string

// NewID returns a fresh random ID.
func NewID() ID {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	h := hex.EncodeToString(b[:])
	return ID(h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:])
}

// ParseID reads a UUID in canonical form, in either case. Anything else is an Invalid error.
func ParseID(s string) (ID, error) {
	l := strings.ToLower(s)
	if len(l) != 36 || l[8] != '-' || l[13] != '-' || l[18] != '-' || l[23] != '-' {
		return "", badID(s)
	}
	if _, err := hex.DecodeString(strings.ReplaceAll(l, "-", "")); err != nil || strings.Count(l, "-") != 4 {
		return "", badID(s)
	}
	return ID(l), nil
}

func badID(s string) error {
	if len(s) > 64 {
		s = s[:64] + "…"
	}
	return &Error{Code: Invalid, Op: "parse id", Msg: fmt.Sprintf("%q is not a UUID; ids look like 0195f2c4-7a1b-4c3d-9e8f-0123456789ab", s)}
}

// Short is the first 12 hexadecimal digits, the form in which people read and type ids.
func (id ID) Short() string {
	s := strings.ReplaceAll(string(id), "-", "")
	if len(s) > 12 {
		s = s[:12]
	}
	return s
}
