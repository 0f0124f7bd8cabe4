package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
)

type snapshotRef struct {
	ID string `path:"id" format:"uuid"`
}

func (s *server) snapshotRoutes(a huma.API) {
	const tag, base = "Runtime snapshots", "/v1/runtime-snapshots"
	op(a, "create-snapshot", http.MethodPost, base, tag, "Create a runtime snapshot",
		"Answers at once; the snapshot's `state` goes from `creating` to `ready`. While one of the same image is being built, its id is given.",
		func(ctx context.Context, in *struct{ Body api.CreateSnapshot }) (*answer[api.Created], error) {
			image, err := warmboot.ParseID(in.Body.RuntimeImageID)
			if err != nil {
				return nil, err
			}
			id, err := s.svc.BuildSnapshot(ctx, image)
			if err != nil {
				return nil, err
			}
			return &answer[api.Created]{api.Created{ID: string(id)}}, nil
		}, created)
	op(a, "list-snapshots", http.MethodGet, base, tag, "List runtime snapshots", "Newest first; deleted ones only if asked for.",
		func(ctx context.Context, in *struct {
			All bool `query:"all" doc:"Deleted ones too, as long as they are remembered."`
		}) (*answer[api.Items[api.Snapshot]], error) {
			all, err := s.svc.Snapshots(ctx)
			if err != nil {
				return nil, err
			}
			shown := all[:0]
			for _, snap := range all {
				if in.All || snap.State != warmboot.SnapshotDeleted {
					shown = append(shown, snap)
				}
			}
			return items(shown, s.snapshotOut), nil
		})
	op(a, "get-snapshot", http.MethodGet, base+"/{id}", tag, "Get a runtime snapshot", "A deleted one is given too, as long as it is remembered.",
		func(ctx context.Context, in *snapshotRef) (*answer[api.Item[api.Snapshot]], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			snap, err := s.svc.Snapshot(ctx, id)
			if err != nil {
				return nil, err
			}
			return item(s.snapshotOut(snap)), nil
		})
	op(a, "delete-snapshot", http.MethodDelete, base+"/{id}", tag, "Delete a runtime snapshot", "Marks it deleted, ending its build if one runs. Its files go once no machine needs them.",
		func(ctx context.Context, in *snapshotRef) (*answer[api.OK], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			return done(s.svc.DeleteSnapshot(ctx, id))
		})
	op(a, "rebuild-snapshot", http.MethodPost, base+"/{id}/rebuild", tag, "Rebuild a runtime snapshot", "Builds a new snapshot of the same image, which takes this one's place once it is ready.",
		func(ctx context.Context, in *snapshotRef) (*answer[api.Rebuilding], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			next, err := s.svc.RebuildSnapshot(ctx, id)
			if err != nil {
				return nil, err
			}
			return &answer[api.Rebuilding]{api.Rebuilding{ID: string(next), Message: "Snapshot rebuild initiated"}}, nil
		})
}
