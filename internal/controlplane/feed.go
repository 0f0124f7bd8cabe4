package controlplane

import (
	"encoding/json"
	"sync"
	"time"

	"warmboot"
)

// feed tells the other managers what has changed, and hears it from them. What is told are hints: who gets one looks at the store.
type feed struct {
	mu      sync.Mutex
	queue   []Event
	pending chan struct{} // has something while the queue does
}

// told is a message between managers.
type told struct {
	From   warmboot.ID `json:"from"`
	Events []Event     `json:"events"`
}

// tell publishes what this manager has changed, to whoever waits in this process and to the other managers.
func (s *Service) tell(ev Event) {
	ev.Time = time.Now().UTC()
	s.heard(ev)
	s.feed.mu.Lock()
	s.feed.queue = append(s.feed.queue, ev)
	s.feed.mu.Unlock()
	select {
	case s.feed.pending <- struct{}{}:
	default:
	}
}

// heard wakes whoever waits for an entity, and keeps the event for those who read them.
func (s *Service) heard(ev Event) {
	s.changes.notify(ev.Entity)
	if ev.Type != eventStep {
		s.events.publish(ev)
	}
}

// publish sends what is to be told, many events in one message, until the Service closes.
func (s *Service) publish() {
	for {
		select {
		case <-s.feed.pending:
		case <-s.ctx.Done():
			return
		}
		s.feed.mu.Lock()
		queue := s.feed.queue
		s.feed.queue = nil
		s.feed.mu.Unlock()
		if err := s.store.Publish(s.ctx, messages(s.me, queue)); err != nil && s.ctx.Err() == nil {
			s.log.Warn("Other managers could not be told what has changed; they will see it later", "err", err)
		}
	}
}

// messages packs events so that each message is short enough for a Feed.
func messages(from warmboot.ID, queue []Event) []string {
	var packed []string
	for len(queue) > 0 {
		n := len(queue)
		for {
			text, err := json.Marshal(told{from, queue[:n]})
			if err != nil {
				panic(err) // strings and times only
			}
			if len(text) <= warmboot.FeedLimit || n == 1 {
				packed = append(packed, string(text))
				break
			}
			n = (n + 1) / 2
		}
		queue = queue[n:]
	}
	return packed
}

// follow hears what other managers tell, until the Service closes.
func (s *Service) follow() {
	again := false
	_ = s.store.Follow(s.ctx, func() {
		if again { // something may have been missed
			s.changes.notifyAll()
			s.events.publish(Event{Type: EventReset, Time: time.Now().UTC()})
		}
		again = true
	}, func(message string) {
		var t told
		if err := json.Unmarshal([]byte(message), &t); err != nil {
			s.log.Warn("A message of another manager cannot be understood; is it of another version?", "err", err)
			return
		}
		if t.From == s.me {
			return
		}
		for _, ev := range t.Events {
			s.heard(ev)
			s.obey(ev)
		}
	})
}

// obey does what another manager's change asks of this one: what it is doing to a container or snapshot that is being deleted ends.
func (s *Service) obey(ev Event) {
	switch {
	case ev.Type == EventSnapshot && ev.State == string(warmboot.SnapshotDeleted):
		s.builds.cancel(ev.Entity)
	case ev.Type == EventContainer && ev.State == string(warmboot.ContainerDeleting) && s.tasks.busy(ev.Entity):
		_ = s.work.start(func() { s.giveUpFor(ev.Entity) })
	}
}

// giveUpFor ends what this manager is doing to a container that another one wants deleted, and deletes it.
func (s *Service) giveUpFor(id warmboot.ID) {
	t, err := s.tasks.interrupt(s.ctx, id, "deleted")
	if err != nil {
		return
	}
	h, c, err := s.acquire(s.ctx, t, func(c *warmboot.Container) error {
		if c.State != warmboot.ContainerDeleting || c.Lease.Owner != s.me {
			return errNotOurs
		}
		return nil
	})
	if err != nil {
		return // the other one deletes it
	}
	defer h.end()
	_ = s.remove(h, c) // it has told the log, and gives the container back for another try
}
