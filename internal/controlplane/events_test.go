package controlplane_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/controlplane/hosttest"
)

// eventText is an event without what differs from run to run.
func eventText(ev controlplane.Event) string {
	return strings.TrimSpace(fmt.Sprintf("%s %s %s %s", ev.Type, ev.Name, ev.State, ev.BootMethod))
}

// wantEvents reads as many events as are wanted and returns the last.
func (p *plane) wantEvents(r *controlplane.EventReader, want ...string) controlplane.Event {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	var last controlplane.Event
	for _, w := range want {
		ev, err := r.Next(ctx)
		p.must(err)
		if got := eventText(ev); got != w {
			p.t.Fatalf("event %q, want %q", got, w)
		}
		last = ev
	}
	return last
}

func TestEventsTellEveryChangeOfAState(t *testing.T) {
	p := newPlane(t, nil)
	r := p.svc.Events("")
	p.snapshot()
	built := p.wantEvents(r, "snapshot  creating", "snapshot  ready")
	second := p.snapshot()
	p.wantEvents(r, "snapshot  creating", "snapshot  ready", "snapshot  deleted")
	p.create(controlplane.CreateContainer{Name: "web"})
	p.wantEvents(r, "container web creating", "container web creating warm", "container web running warm")
	_, err := p.svc.StopContainer(t.Context(), "web", 0)
	p.must(err)
	p.wantEvents(r, "container web stopping warm", "container web stopped warm")
	p.must(p.svc.DeleteContainer(t.Context(), "web", false))
	p.wantEvents(r, "container web deleting warm", "container web deleted")
	p.must(p.svc.DeleteSnapshot(t.Context(), second))
	p.must(p.svc.DeleteSnapshot(t.Context(), second)) // no change, no event
	last := p.wantEvents(r, "snapshot  deleted")

	p.wantEvents(p.svc.Events(built.ID), "snapshot  creating", "snapshot  ready", "snapshot  deleted", "container web creating")
	for _, unknown := range []string{"x", "other-1", last.ID + "0", last.ID + "x", strings.Split(last.ID, "-")[0] + "--1"} {
		reset := p.wantEvents(p.svc.Events(unknown), "reset")
		if reset.ID != last.ID {
			t.Errorf("a reset has the id %s, want that of the latest event, %s", reset.ID, last.ID)
		}
	}
	p.stop()
	_, err = r.Next(t.Context())
	p.wantCode(err, warmboot.Unavailable)
}

func TestUnhealthySnapshotIsAnEventOnce(t *testing.T) {
	p := newPlane(t, func(h *hosttest.Host, c *controlplane.Config) {
		h.OnWarm = func(context.Context, controlplane.MachineSpec, warmboot.RuntimeSnapshot) error {
			return errors.New("the VMM ended")
		}
		c.RebuildDelays = []time.Duration{time.Hour} // a rebuild has events of its own
	})
	r := p.svc.Events("")
	p.snapshot()
	p.wantEvents(r, "snapshot  creating", "snapshot  ready")
	for i := range warmboot.UnhealthyAfter {
		name := fmt.Sprintf("c%d", i)
		p.create(controlplane.CreateContainer{Name: name})
		p.wantEvents(r, "container "+name+" creating")
		if i == warmboot.UnhealthyAfter-1 {
			p.wantEvents(r, "snapshot  unhealthy")
		}
		p.wantEvents(r, "container "+name+" creating cold", "container "+name+" running cold")
	}
}
