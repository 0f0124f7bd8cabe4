package rollback

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestUnwindRunsNewestFirstAndOnce(t *testing.T) {
	t.Parallel()
	var s Stack
	var order []string
	for _, step := range []string{"disk", "tap", "vmm"} {
		s.Push(step, func() error { order = append(order, step); return nil })
	}
	if err := s.Unwind(); err != nil {
		t.Fatal(err)
	}
	if err := s.Unwind(); err != nil {
		t.Fatal(err)
	}
	if want := []string{"vmm", "tap", "disk"}; !slices.Equal(order, want) {
		t.Fatalf("undone in the order %v, want %v", order, want)
	}
}

func TestUnwindGoesOnAfterAnError(t *testing.T) {
	t.Parallel()
	var s Stack
	ran := false
	s.Push("first", func() error { ran = true; return nil })
	s.Push("second", func() error { return errors.New("busy") })
	err := s.Unwind()
	if err == nil || !strings.Contains(err.Error(), "undo second: busy") || !ran {
		t.Fatalf("err = %v, first undone = %v", err, ran)
	}
}

func TestMoveKeepsTheUndosForTheNewOwner(t *testing.T) {
	t.Parallel()
	var s Stack
	n := 0
	s.Push("disk", func() error { n++; return nil })
	kept := s.Move()
	s.Unwind()
	if n != 0 {
		t.Fatal("the emptied stack still undid")
	}
	kept.Unwind()
	if n != 1 {
		t.Fatalf("undone %d times, want 1", n)
	}
}
