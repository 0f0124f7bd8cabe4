package controlplane

import (
	"testing"

	"warmboot"
)

// TestSlowReaderIsCut overruns a reader by exactly one event too many.
func TestSlowReaderIsCut(t *testing.T) {
	t.Parallel()
	s := New(Config{})
	defer s.Close()
	fits, slow := s.Events(""), s.Events("")
	for range eventsKept {
		s.events.publish(Event{Type: EventContainer})
	}
	first, err := fits.Next(t.Context())
	if err != nil || first.ID != s.events.id(1) {
		t.Fatalf("%+v, %v", first, err)
	}
	s.events.publish(Event{Type: EventContainer})
	if _, err := slow.Next(t.Context()); warmboot.CodeOf(err) != warmboot.Exhausted {
		t.Errorf("a reader that has missed an event gets %v", err)
	}
	if ev, err := s.Events(first.ID).Next(t.Context()); err != nil || ev.ID != s.events.id(2) {
		t.Errorf("after %s comes %+v, %v", first.ID, ev, err)
	}
	if ev, err := s.Events(s.events.id(0)).Next(t.Context()); err != nil || ev.Type != EventReset {
		t.Errorf("after what is gone comes %+v, %v", ev, err)
	}
}

// BenchmarkPublish is what an event adds to each change of a state, with one reader behind.
func BenchmarkPublish(b *testing.B) {
	s := New(Config{})
	defer s.Close()
	b.ReportAllocs()
	for b.Loop() {
		s.events.publish(Event{Type: EventContainer, Entity: "0195f2c4-0000-4000-8000-000000000001", Name: "web", State: "running", BootMethod: warmboot.BootWarm})
	}
}
