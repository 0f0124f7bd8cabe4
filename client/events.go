package client

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"

	"warmboot/api"
)

// EventStream is what changes on a server, as it changes. It is for one goroutine; Close may come from another.
type EventStream struct {
	c    *Client
	ctx  context.Context
	body io.ReadCloser
	r    *bufio.Reader
}

// Events follows what changes, until ctx ends. since is the id of the last event that the caller has seen: the stream goes on after
// it, and begins with an event of type "reset" if some are missing; empty means from now on. types narrow it to "container" or
// "snapshot". Close it in the end.
func (c *Client) Events(ctx context.Context, since string, types ...string) (*EventStream, error) {
	query := url.Values{}
	if since != "" {
		query.Set("since", since)
	}
	if len(types) > 0 {
		query.Set("type", strings.Join(types, ","))
	}
	res, err := c.send(ctx, http.MethodGet, "/v1/events?"+query.Encode(), nil, nil) //nolint:bodyclose // EventStream.Close does
	if err != nil {
		return nil, err
	}
	return &EventStream{c: c, ctx: ctx, body: res.Body, r: bufio.NewReader(res.Body)}, nil
}

// Next returns the next event. A stream that the server ends is an Unavailable error: ask for a new one, since the last event.
func (s *EventStream) Next() (api.Event, error) {
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return api.Event{}, s.c.broken(s.ctx, err)
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue // the data holds all that the other fields tell
		}
		var ev api.Event
		if err := json.Unmarshal([]byte(data), &ev); err != nil {
			return ev, s.c.broken(s.ctx, err)
		}
		return ev, nil
	}
}

// Close ends the stream.
func (s *EventStream) Close() error { return s.body.Close() }
