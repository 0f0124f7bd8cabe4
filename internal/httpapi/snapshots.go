package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
)

type SnapshotRef struct {
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
		func(ctx context.Context, in *SnapshotRef) (*answer[api.Item[api.Snapshot]], error) {
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
	op(a, "wait-snapshot", http.MethodGet, base+"/{id}/wait", tag, "Wait for a runtime snapshot",
		"Answers when the snapshot is not `creating` any more, when its build does something else than `step`, or after the timeout, with the snapshot as it is then: look at `state`, and ask again.",
		func(ctx context.Context, in *struct {
			SnapshotRef
			Step    string `query:"step" maxLength:"1024" doc:"What the caller knows that the build is doing: metadata.step of the last answer."`
			Timeout int    `query:"timeout" minimum:"0" maximum:"300" default:"30" doc:"Seconds."`
		}) (*answer[api.Item[api.Snapshot]], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			wctx, cancel := context.WithTimeout(ctx, time.Duration(in.Timeout)*time.Second)
			defer cancel()
			snap, err := s.svc.WaitSnapshot(wctx, id, in.Step)
			if err != nil && wctx.Err() != nil {
				snap, err = s.svc.Snapshot(ctx, id)
			}
			if err != nil {
				return nil, err
			}
			return item(s.snapshotOut(snap)), nil
		})
	op(a, "delete-snapshot", http.MethodDelete, base+"/{id}", tag, "Delete a runtime snapshot", "Marks it deleted, ending its build if one runs. Its files go once no machine needs them.",
		func(ctx context.Context, in *SnapshotRef) (*answer[api.OK], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			return done(s.svc.DeleteSnapshot(ctx, id))
		})
	op(a, "rebuild-snapshot", http.MethodPost, base+"/{id}/rebuild", tag, "Rebuild a runtime snapshot", "Builds a new snapshot of the same image, which takes this one's place once it is ready.",
		func(ctx context.Context, in *SnapshotRef) (*answer[api.Rebuilding], error) {
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
