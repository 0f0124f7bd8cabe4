package guestrpc

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestBrief(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                               "",
		"two\n\tlines, größer":           "two\n\tlines, größer",
		"\x1b[2Jgone\x00\r\u202e":        "\uFFFD[2Jgone\uFFFD\uFFFD\uFFFD",
		"\xff":                           "\uFFFD",
		strings.Repeat("a", textLimit):   strings.Repeat("a", textLimit),
		strings.Repeat("a", textLimit+1): strings.Repeat("a", textLimit) + "…",
		strings.Repeat("ö", textLimit):   strings.Repeat("ö", textLimit/2) + "…",
	} {
		if got := Brief(text); got != want {
			t.Errorf("of %.20q comes %.60q, want %.60q", text, got, want)
		}
	}
	// A character that is cut in two is none.
	if got := Brief("a" + strings.Repeat("ö", textLimit)); !utf8.ValidString(got) || len(got) > textLimit+10 {
		t.Errorf("%d bytes, valid %v", len(got), utf8.ValidString(got))
	}
}
