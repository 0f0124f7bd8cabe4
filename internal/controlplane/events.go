package controlplane

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"warmboot"
)

// eventsKept is how many of the latest events can be read again by whoever was away.
const eventsKept = 4096

// EventType tells what an event is about.
type EventType string

// The types of events.
const (
	EventContainer EventType = "container"
	EventSnapshot  EventType = "snapshot"
	// EventReset tells that events are missing before this one: look at everything anew.
	EventReset EventType = "reset"
)

// Event is a change of the state of a container or a snapshot.
type Event struct {
	ID         string // where to go on from
	Type       EventType
	Time       time.Time
	Entity     warmboot.ID
	Name       string // of a container
	State      string // "deleted" once a container's row is gone
	BootMethod warmboot.BootMethod
}

// events keeps the latest events in a ring that all readers share: a reader costs nothing but its place in it.
type events struct {
	epoch string // tells the events of this process from those of another
	mu    sync.Mutex
	ring  []Event
	last  uint64 // number of the latest event; the first has 1
	more  chan struct{}
}

func newEvents() *events {
	return &events{epoch: warmboot.NewID().Short(), ring: make([]Event, eventsKept), more: make(chan struct{})}
}

func (e *events) id(n uint64) string { return fmt.Sprintf("%s-%d", e.epoch, n) }

func (e *events) publish(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last++
	ev.ID, ev.Time = e.id(e.last), time.Now().UTC()
	e.ring[e.last%eventsKept] = ev
	close(e.more)
	e.more = make(chan struct{})
}

// EventReader gives events in order. It is for one goroutine.
type EventReader struct {
	e     *events
	done  <-chan struct{}
	at    uint64 // the latest event that has been given
	reset bool
}

// Events reads the events after the one with the id since; from now on if it is empty. An id that is not known any more, or is of a server
// that has ended, gives an EventReset first.
func (s *Service) Events(since string) *EventReader {
	r := &EventReader{e: s.events, done: s.ctx.Done()}
	r.e.mu.Lock()
	defer r.e.mu.Unlock()
	r.at = r.e.last
	if since == "" {
		return r
	}
	number, ours := strings.CutPrefix(since, r.e.epoch+"-")
	var n uint64
	if _, err := fmt.Sscanf(number, "%d", &n); !ours || err != nil || r.e.id(n) != since || n > r.e.last || r.e.last-n > eventsKept {
		r.reset = true
		return r
	}
	r.at = n
	return r
}

// Next waits for the next event. It is an Exhausted error for a reader so slow that events it has not read are gone, and Unavailable once
// the Service closes.
func (r *EventReader) Next(ctx context.Context) (Event, error) {
	for {
		r.e.mu.Lock()
		if r.reset {
			r.reset = false
			ev := Event{ID: r.e.id(r.at), Type: EventReset, Time: time.Now().UTC()}
			r.e.mu.Unlock()
			return ev, nil
		}
		if r.e.last-r.at > eventsKept {
			r.e.mu.Unlock()
			return Event{}, warmboot.Errorf(warmboot.Exhausted, "read events", "more than %d events were not read in time; read faster, and begin with a new list of everything", eventsKept)
		}
		if r.at < r.e.last {
			r.at++
			ev := r.e.ring[r.at%eventsKept]
			r.e.mu.Unlock()
			return ev, nil
		}
		more := r.e.more
		r.e.mu.Unlock()
		select {
		case <-more:
		case <-r.done:
			return Event{}, errClosing
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}
