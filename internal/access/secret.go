package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Prefix begins the secret of every token, so that scanners for secrets find one that was left lying about:
// wbt_ and 64 hexadecimal digits.
const Prefix = "wbt_"

const secretBytes = 32

// newSecret returns a fresh secret: 256 random bits. Nobody guesses that, and no list of likely ones can be tried, so SHA-256 is
// enough to keep it by. A slow hash is for passwords that people think up, and would cost every request its time.
func newSecret() string {
	var b [secretBytes]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return Prefix + hex.EncodeToString(b[:])
}

// digestOf is what is stored of a secret.
func digestOf(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// WellFormed reports whether text can be the secret of a stored token. What is not need not be looked for, and may be somebody's
// guess at the static token.
func WellFormed(text string) bool {
	digits, ok := strings.CutPrefix(text, Prefix)
	if !ok || len(digits) != 2*secretBytes {
		return false
	}
	_, err := hex.DecodeString(digits)
	return err == nil
}
