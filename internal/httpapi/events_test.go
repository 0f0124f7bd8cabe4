package httpapi_test

import (
	"net/http"
	"strings"
	"testing"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

// events opens a stream that the test's end closes.
func (r *rig) events(since string, types ...string) *client.EventStream {
	r.t.Helper()
	s, err := r.client.Events(within(r.t), since, types...)
	r.must(err)
	r.t.Cleanup(func() { _ = s.Close() })
	return s
}

// wantEvents reads as many events as are wanted and returns the last.
func (r *rig) wantEvents(s *client.EventStream, want ...string) api.Event {
	r.t.Helper()
	var last api.Event
	for _, w := range want {
		ev, err := s.Next()
		r.must(err)
		if got := strings.Join(strings.Fields(ev.Type+" "+ev.Name+" "+ev.State+" "+ev.BootMethod), " "); got != w {
			r.t.Fatalf("event %q, want %q", got, w)
		}
		last = ev
	}
	return last
}

func TestEventsResumeFilterAndReset(t *testing.T) {
	r := newRig(t, nil)
	all, snapshots, containers := r.events(""), r.events("", "snapshot"), r.events("", "container")
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	r.waitReady(id)
	c := r.create(api.CreateContainer{Name: "web"})
	seen := r.wantEvents(all, "snapshot creating", "snapshot ready")
	if seen.EntityID != id || seen.Time.IsZero() {
		t.Errorf("%+v", seen)
	}
	last := r.wantEvents(all, "container web creating", "container web creating warm", "container web running warm")
	if last.EntityID != c.ID {
		t.Errorf("%+v", last)
	}
	r.wantEvents(snapshots, "snapshot creating", "snapshot ready")
	r.wantEvents(containers, "container web creating", "container web creating warm", "container web running warm")
	r.must(snapshots.Close())

	r.wantEvents(r.events(seen.ID), "container web creating")
	r.wantEvents(r.events("long-gone-7", "snapshot"), "reset")
	r.must(r.client.DeleteSnapshot(t.Context(), id))
	r.wantEvents(r.events(seen.ID, "snapshot"), "snapshot deleted")
}

func TestEventsOnTheWire(t *testing.T) {
	r := newRig(t, nil)
	id, err := r.client.CreateSnapshot(t.Context(), r.image.ID)
	r.must(err)
	r.waitReady(id)
	req, err := http.NewRequestWithContext(within(t), http.MethodGet, r.server.URL+"/v1/events", nil)
	r.must(err)
	req.Header.Set("Last-Event-ID", "long-gone-7")
	req.Header.Set("Authorization", "Bearer "+r.secret)
	res, err := r.server.Client().Do(req)
	r.must(err)
	defer res.Body.Close()
	if ct := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || ct != "text/event-stream" {
		t.Fatalf("%d %s", res.StatusCode, ct)
	}
	var text [256]byte
	got := ""
	for !strings.HasSuffix(got, "}\n\n") {
		n, err := res.Body.Read(text[:])
		r.must(err)
		got += string(text[:n])
	}
	if !strings.HasPrefix(got, ": here is warmboot\n\nid: ") || !strings.Contains(got, "\nevent: reset\ndata: {\"id\":\"") {
		t.Errorf("got %q", got)
	}
	bad, body := r.request(http.MethodGet, "/v1/events?type=weather", "")
	r.wantProblem(bad, body, 422, warmboot.Invalid)
}

func TestEventStreamsEndWithTheService(t *testing.T) {
	r := newRig(t, nil)
	s := r.events("")
	r.svc.Close()
	_, err := s.Next()
	r.wantCode(err, warmboot.Unavailable)
}
