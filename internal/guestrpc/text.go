package guestrpc

import (
	"strings"
	"unicode"
)

// textLimit is how much of a guest's text people are told, in bytes.
const textLimit = 4096

// Brief is what people are told of a text that a guest wrote, which ends up in logs, in the store and on terminals: its first 4096 bytes,
// without characters that move a terminal's cursor or that a database refuses.
func Brief(text string) string {
	end := ""
	if len(text) > textLimit {
		text, end = text[:textLimit], "…"
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) || r == '\n' || r == '\t' {
			return r
		}
		return unicode.ReplacementChar
	}, text) + end
}
