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
	EventHost      EventType = "host"
	// EventReset tells that events are missing before this one: look at everything anew.
	EventReset EventType = "reset"
	// eventStep only wakes those who wait for a build.
	eventStep EventType = "step"
)

// Event is a change of the state of a container, a snapshot or a host. As JSON, one manager tells it to the others.
type Event struct {
	ID         string              `json:"-"` // where to go on from, in this process
	Type       EventType           `json:"type"`
	Time       time.Time           `json:"time"`
	Entity     warmboot.ID         `json:"entity"`
	Name       string              `json:"name,omitempty"` // of a container or host
	State      string              `json:"state"`          // "deleted" once a container's or host's row is gone
	BootMethod warmboot.BootMethod `json:"boot_method,omitempty"`
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
	ev.ID = e.id(e.last)
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
