package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"warmboot/api"
	"warmboot/internal/controlplane"
)

func (s *server) logRoutes(a huma.API) {
	const lines = "application/x-ndjson"
	op(a, "get-container-logs", http.MethodGet, "/v1/containers/{id}/logs", "Containers", "Read a container's output",
		"One JSON object a line, oldest first. With `follow`, lines come as they are written, until the command ends. A connection that breaks off has not given everything.",
		func(ctx context.Context, in *struct {
			ContainerRef
			Follow bool `query:"follow"`
			Tail   int  `query:"tail" minimum:"-1" default:"-1" doc:"How many of the last lines to begin with; -1 means all."`
		}) (*huma.StreamResponse, error) {
			reader, err := s.svc.Logs(ctx, in.Ref, controlplane.LogOptions{Follow: in.Follow, Tail: in.Tail})
			if err != nil {
				return nil, err
			}
			return &huma.StreamResponse{Body: func(hctx huma.Context) {
				defer reader.Close()
				stop := context.AfterFunc(ctx, func() { reader.Close() })
				defer stop()
				hctx.SetHeader("Content-Type", lines)
				hctx.SetStatus(http.StatusOK)
				_, w := humago.Unwrap(hctx)
				if err := writeLines(w, reader); err != nil {
					if ctx.Err() == nil {
						s.log.Warn("A stream of logs broke off", "container", in.Ref, "err", err)
					}
					panic(http.ErrAbortHandler) // the one way to say that this was not all
				}
			}}, nil
		}, func(o *huma.Operation) {
			o.Responses["200"] = &huma.Response{
				Description: "OK",
				Content:     map[string]*huma.MediaType{lines: {Schema: a.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.LogLine](), true, "")}},
			}
		})
}

// writeLines sends each line as soon as it is there.
func writeLines(w http.ResponseWriter, reader controlplane.LogReader) error {
	flush := http.NewResponseController(w).Flush
	if err := flush(); err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for {
		line, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := enc.Encode(api.LogLine{Stream: line.Stream, Time: line.Time, Text: line.Text}); err != nil {
			return err
		}
		if err := flush(); err != nil {
			return err
		}
	}
}
