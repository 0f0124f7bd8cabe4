package hostnet

import (
	"sync"

	"warmboot"
)

// numbers hands out the slots' numbers.
type numbers struct {
	total int

	mu   sync.Mutex
	used map[int]bool
	idle int // of those used: ready for the next, or about to be free
}

// take returns the smallest free number, for a microVM.
func (s *numbers) take() (int, error) { return s.next(0) }

// takeIdle returns the smallest free number, for a slot that no microVM has yet.
func (s *numbers) takeIdle() (int, error) { return s.next(1) }

func (s *numbers) next(idle int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range s.total {
		if !s.used[n] {
			s.mark(n)
			s.idle += idle
			return n, nil
		}
	}
	return 0, warmboot.Errorf(warmboot.Exhausted, "take network slot", "all %d microVM slots of this host are in use; stop some containers", s.total)
}

// claim marks the number of a microVM that was found running.
func (s *numbers) claim(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark(n)
}

func (s *numbers) mark(n int) {
	if s.used == nil {
		s.used = map[int]bool{}
	}
	s.used[n] = true
}

func (s *numbers) free(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, n)
}

// freeIdle frees a number that no microVM had any more.
func (s *numbers) freeIdle(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, n)
	s.idle--
}

// rest says that by numbers more, or fewer, are used without a microVM.
func (s *numbers) rest(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle += by
}

// resting reports whether some are used without a microVM.
func (s *numbers) resting() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.idle > 0
}

// count tells how many microVMs have one.
func (s *numbers) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.used) - s.idle
}
