package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"warmboot/api"
)

func (s *server) gcRoute(a huma.API) {
	op(a, "collect-garbage", http.MethodPost, "/v1/gc", "Server", "Collect garbage", "What is done once a day anyway: deletes snapshots that nobody has used for long, and removes what nothing needs any more.",
		func(ctx context.Context, in *struct {
			DryRun bool `query:"dry_run" doc:"Only tell what would be removed."`
		}) (*answer[api.Garbage], error) {
			done, err := s.svc.CollectGarbage(ctx, in.DryRun)
			if err != nil {
				return nil, err
			}
			out := api.Garbage{DryRun: in.DryRun, Items: []api.GarbageItem{}}
			for _, c := range done {
				out.FreedBytes += c.Bytes
				out.Items = append(out.Items, api.GarbageItem{
					Kind: string(c.Kind), Action: string(c.Action), ID: string(c.ID), Path: c.Path, Bytes: c.Bytes, Reason: c.Reason, Error: c.Error,
				})
			}
			return &answer[api.Garbage]{out}, nil
		})
}
