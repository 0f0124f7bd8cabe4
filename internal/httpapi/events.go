package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane"
)

// How long a stream of events is silent at most, and how long its reader may leave it standing.
const (
	heartbeat      = 15 * time.Second
	eventWriteTime = 10 * time.Second
)

func (s *server) eventRoute(a huma.API) {
	const format = "text/event-stream"
	op(a, "stream-events", http.MethodGet, "/v1/events", "Server", "Follow what changes",
		"Server-sent events: each change of the state of a container, a snapshot or a host, as `event: TYPE`, `id: ID` and an Event in `data`. With `Last-Event-ID` (or `since`) it goes on after that event; if events are missing in between, the first is of type `reset`: look at everything anew. A reader that is too slow is cut off.",
		func(ctx context.Context, in *struct {
			LastEventID string   `header:"Last-Event-ID" maxLength:"64" doc:"The last event's id that the caller has seen."`
			Since       string   `query:"since" maxLength:"64" doc:"The same, for who cannot send the header."`
			Types       []string `query:"type" enum:"container,snapshot,host" doc:"Only events of these types; resets always."`
		}) (*huma.StreamResponse, error) {
			since := in.LastEventID
			if since == "" {
				since = in.Since
			}
			reader := s.svc.Events(since) // now, so that what the caller does after the answer's head is not missed
			return &huma.StreamResponse{Body: func(hctx huma.Context) {
				hctx.SetHeader("Content-Type", format)
				hctx.SetStatus(http.StatusOK)
				_, w := humago.Unwrap(hctx)
				if err := streamEvents(ctx, w, reader, in.Types); err != nil && ctx.Err() == nil {
					s.log.Warn("A stream of events was cut off", "err", err)
				}
			}}, nil
		}, func(o *huma.Operation) {
			o.Responses["200"] = &huma.Response{
				Description: "OK",
				Content:     map[string]*huma.MediaType{format: {Schema: &huma.Schema{Type: huma.TypeString}}},
			}
		})
}

// streamEvents writes events until ctx ends, the Service closes (which is no error), or the reader is too slow.
func streamEvents(ctx context.Context, w http.ResponseWriter, reader *controlplane.EventReader, types []string) error {
	conn := http.NewResponseController(w)
	send := func(text string) error {
		_ = conn.SetWriteDeadline(time.Now().Add(eventWriteTime))
		if _, err := fmt.Fprint(w, text); err != nil {
			return err
		}
		return conn.Flush()
	}
	defer func() { _ = conn.SetWriteDeadline(time.Time{}) }()
	if err := send(": here is warmboot\n\n"); err != nil {
		return err
	}
	for {
		ev, err := nextEvent(ctx, reader)
		switch {
		case errors.Is(err, errSilence):
			err = send(": still here\n\n")
		case warmboot.CodeOf(err) == warmboot.Unavailable || ctx.Err() != nil:
			return nil
		case err == nil && (len(types) == 0 || ev.Type == controlplane.EventReset || slices.Contains(types, string(ev.Type))):
			var data []byte
			if data, err = json.Marshal(eventOut(ev)); err == nil {
				err = send(fmt.Sprintf("id: %s\nevent: %s\ndata: %s\n\n", ev.ID, ev.Type, data))
			}
		}
		if err != nil {
			return err
		}
	}
}

// errSilence is that nothing has happened for a while.
var errSilence = errors.New("nothing has happened")

func nextEvent(ctx context.Context, reader *controlplane.EventReader) (controlplane.Event, error) {
	wctx, cancel := context.WithTimeoutCause(ctx, heartbeat, errSilence)
	defer cancel()
	ev, err := reader.Next(wctx)
	if err != nil && errors.Is(context.Cause(wctx), errSilence) {
		return ev, errSilence
	}
	return ev, err
}

func eventOut(e controlplane.Event) api.Event {
	return api.Event{ID: e.ID, Type: string(e.Type), Time: e.Time, EntityID: string(e.Entity), Name: e.Name, State: e.State, BootMethod: string(e.BootMethod)}
}
