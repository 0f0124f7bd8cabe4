package fake

import (
	"sync"
	"time"
)

// State is a machine from inside, for its guest. It is safe for concurrent use.
type State struct {
	machine *machine
	memory  []byte

	mu      sync.Mutex
	changed *sync.Cond
	paused  bool
	ended   bool
	ran     time.Duration // until since
	since   time.Time     // when it last began to run
	cpus    float64
}

func newState(m *machine, memory []byte, uptime time.Duration) *State {
	s := &State{machine: m, memory: memory, ran: uptime, since: time.Now()}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// ID is the machine's.
func (s *State) ID() string { return s.machine.handle.ID }

// Run runs f while the machine runs: in a paused machine it waits, and a pause waits for it. memory is the machine's
// whole memory, which a snapshot keeps; f must not keep it. It is false, and f is not run, if the machine has ended.
func (s *State) Run(f func(memory []byte)) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.paused && !s.ended {
		s.changed.Wait()
	}
	if !s.ended {
		f(s.memory)
	}
	return !s.ended
}

// Uptime is how long the machine has been running, its life before a snapshot included and pauses not.
func (s *State) Uptime() time.Duration {
	uptime, _ := s.clock()
	return uptime
}

// CPULimit is how many CPUs the machine has been limited to, 0 if it has not.
func (s *State) CPULimit() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cpus
}

func (s *State) limitCPU(cpus float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cpus = cpus
}

// PowerOff ends the machine from inside.
func (s *State) PowerOff() { s.machine.end() }

func (s *State) clock() (uptime time.Duration, paused bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused {
		return s.ran, true
	}
	return s.ran + time.Since(s.since), false
}

func (s *State) pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.paused {
		s.paused = true
		s.ran += time.Since(s.since)
	}
}

func (s *State) resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.paused {
		s.paused, s.since = false, time.Now()
		s.changed.Broadcast()
	}
}

func (s *State) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.changed.Broadcast()
}
