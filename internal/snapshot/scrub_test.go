package snapshot

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"warmboot"
)

// TestScrubbingReadsAgain damages each file in turn.
func TestScrubbingReadsAgain(t *testing.T) {
	t.Parallel()
	for _, name := range []string{MemoryFile, StateFile, DataFile} {
		_, a := written(t, Access{Group: os.Getegid()})
		if err := a.Scrub(t.Context(), 1<<30); err != nil {
			t.Fatal(err)
		}
		path := a.File(name)
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("X"), 1); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if err := a.Scrub(t.Context(), 1<<30); warmboot.CodeOf(err) != warmboot.Corrupt || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := a.Scrub(t.Context(), 1<<30); warmboot.CodeOf(err) != warmboot.Corrupt {
			t.Errorf("%s is gone: %v", name, err)
		}
	}
}

func TestScrubbingKeepsToItsRateAndEndsWhenTold(t *testing.T) {
	t.Parallel()
	_, a := written(t, Access{Group: os.Getegid()})
	start := time.Now()
	// 15 bytes in three files.
	if err := a.Scrub(t.Context(), 100); err != nil || time.Since(start) < 100*time.Millisecond {
		t.Errorf("%v after %s", err, time.Since(start))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := a.Scrub(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}
