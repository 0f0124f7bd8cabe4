// Package expect says what the tests of many packages expect of an error.
package expect

import (
	"fmt"
	"strings"
	"testing"

	"warmboot"
)

// NoError ends the test if there is an error.
func NoError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Code ends the test unless the error has the code, "" for none, and its text every one of words.
func Code(t testing.TB, err error, code warmboot.Code, words ...string) {
	t.Helper()
	if got := warmboot.CodeOf(err); got != code {
		t.Fatalf("error %v has code %q, want %q", err, got, code)
	}
	for _, w := range words {
		if !strings.Contains(fmt.Sprint(err), w) {
			t.Fatalf("error %q does not say %q", fmt.Sprint(err), w)
		}
	}
}
