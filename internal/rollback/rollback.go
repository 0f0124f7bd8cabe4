// Package rollback is a last-in, first-out stack of undo functions. Everything that acquires in several steps pushes
// the undo of each step as soon as the step is done; the same stack then serves failure, release and recovery.
package rollback

import (
	"errors"
	"fmt"
	"sync"
)

// Stack collects undo functions. The zero value is ready. It is safe for concurrent use.
type Stack struct {
	mu    sync.Mutex
	undos []undo
}

type undo struct {
	what string
	f    func() error
}

// Push adds the undo of a step that has just been done. what names the step, for the error text.
func (s *Stack) Push(what string, f func() error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.undos = append(s.undos, undo{what, f})
}

// Unwind runs every undo, newest first, and empties the stack: a second call does nothing. All undos run, whatever
// the others return; their errors come back joined.
func (s *Stack) Unwind() error {
	s.mu.Lock()
	undos := s.undos
	s.undos = nil
	s.mu.Unlock()
	var errs []error
	for i := len(undos) - 1; i >= 0; i-- {
		if err := undos[i].f(); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", undos[i].what, err))
		}
	}
	return errors.Join(errs...)
}

// Move hands every undo to a new stack, which the caller now owns, and empties this one: the way for an acquire that
// succeeded to outlive `defer s.Unwind()`.
func (s *Stack) Move() *Stack {
	s.mu.Lock()
	defer s.mu.Unlock()
	moved := &Stack{undos: s.undos}
	s.undos = nil
	return moved
}
