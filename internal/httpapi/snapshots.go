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

type snapshotQuery struct {
	PageQuery
	All    bool     `query:"all" doc:"Deleted ones too, as long as they are remembered."`
	States []string `query:"state" enum:"creating,ready,unhealthy,deleted" doc:"Only those in one of these states."`
	Image  string   `query:"image" maxLength:"64" doc:"Only those of a runtime image, by its id or name."`
	Host   string   `query:"host" maxLength:"64" doc:"Only those that a host builds or has built, by its id or name."`
}

// snapshotFilter is what the store is asked for.
func (s *server) snapshotFilter(ctx context.Context, in *snapshotQuery) (f warmboot.SnapshotFilter, err error) {
	for _, state := range in.States {
		f.States = append(f.States, warmboot.SnapshotState(state))
	}
	if len(f.States) == 0 && !in.All {
		f.States = []warmboot.SnapshotState{warmboot.SnapshotCreating, warmboot.SnapshotReady, warmboot.SnapshotUnhealthy}
	}
	if f.RuntimeImageID, err = s.imageID(ctx, in.Image); err != nil {
		return f, err
	}
	if f.HostID, err = s.hostID(ctx, in.Host); err != nil {
		return f, err
	}
	f.Page, err = in.page()
	return f, err
}

// imageID finds the id of a runtime image that may be named; "" stays "".
func (s *server) imageID(ctx context.Context, ref string) (warmboot.ID, error) {
	if ref == "" {
		return "", nil
	}
	img, err := s.svc.Image(ctx, ref)
	if err != nil {
		return "", err
	}
	return img.ID, nil
}

// hostID finds the id of a host that may be named; "" stays "".
func (s *server) hostID(ctx context.Context, ref string) (warmboot.ID, error) {
	if ref == "" {
		return "", nil
	}
	h, err := s.svc.Host(ctx, ref)
	if err != nil {
		return "", err
	}
	return h.ID, nil
}

func (s *server) snapshotRoutes(a huma.API) {
	const tag, base = "Runtime snapshots", "/v1/runtime-snapshots"
	op(a, "create-snapshot", http.MethodPost, base, tag, "Create a runtime snapshot",
		"Answers at once with the id; the snapshot's `state` goes from `creating` to `ready`. While one of the same image is being built, its id is given. With `wait=ready` it answers with the snapshot once that is not being built any more: look at `state`.",
		func(ctx context.Context, in *struct {
			OnceHeader
			WaitQuery
			Wait string `query:"wait" enum:"ready" doc:"Answer later: once the snapshot is ready, or will not be."`
			Body api.CreateSnapshot
		}) (*made[any], error) {
			image, err := warmboot.ParseID(in.Body.RuntimeImageID)
			if err != nil {
				return nil, err
			}
			o, err := s.once(ctx, in.Key, in.Body, func(ctx context.Context) (warmboot.ID, error) { return s.svc.BuildSnapshot(ctx, image) })
			if err != nil || in.Wait == "" {
				return o.made(o.id), err
			}
			requestOf(ctx).made()
			snap, err := s.waitBuild(ctx, o.id, in.Timeout)
			if err != nil {
				return nil, err
			}
			return &made[any]{Again: o.again, Body: item(s.snapshotOut(snap)).Body}, nil
		}, eitherOf[api.Created, api.Item[api.Snapshot]](a, http.StatusCreated))
	op(a, "list-snapshots", http.MethodGet, base, tag, "List runtime snapshots", "Newest first, a part at a time; deleted ones only if asked for.",
		func(ctx context.Context, in *snapshotQuery) (*answer[api.Items[api.Snapshot]], error) {
			filter, err := s.snapshotFilter(ctx, in)
			if err != nil {
				return nil, err
			}
			all, err := s.svc.Snapshots(ctx, filter)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Limit, s.snapshotOut, func(snap *warmboot.RuntimeSnapshot) string { return cursorOf(snap.CreatedAt, snap.ID) }), nil
		})
	op(a, "get-snapshot", http.MethodGet, base+"/{id}", tag, "Get a runtime snapshot", "A deleted one is given too, as long as it is remembered.",
		func(ctx context.Context, in *struct {
			SnapshotRef
			NoneMatchHeader
		}) (*found[api.Snapshot], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			snap, err := s.svc.Snapshot(ctx, id)
			if err != nil {
				return nil, err
			}
			return itemOf(s.snapshotOut(snap), in.IfNoneMatch), nil
		}, orNotModified)
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
		func(ctx context.Context, in *struct {
			SnapshotRef
			MatchHeader
		}) (*answer[api.OK], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			return done(s.svc.DeleteSnapshot(ctx, id, ifMatch(in.IfMatch, s.snapshotTag)...))
		})
	op(a, "rebuild-snapshot", http.MethodPost, base+"/{id}/rebuild", tag, "Rebuild a runtime snapshot", "Builds a new snapshot of the same image, which takes this one's place once it is ready. `wait` is that of a create.",
		func(ctx context.Context, in *struct {
			OnceHeader
			WaitQuery
			SnapshotRef
			Wait string `query:"wait" enum:"ready" doc:"Answer later, with the new snapshot: once it is ready, or will not be."`
		}) (*made[any], error) {
			id, err := warmboot.ParseID(in.ID)
			if err != nil {
				return nil, err
			}
			o, err := s.once(ctx, in.Key, id, func(ctx context.Context) (warmboot.ID, error) { return s.svc.RebuildSnapshot(ctx, id) })
			switch {
			case err != nil:
				return nil, err
			case in.Wait == "":
				return &made[any]{Again: o.again, Body: api.Rebuilding{ID: string(o.id), Message: "Snapshot rebuild initiated"}}, nil
			}
			requestOf(ctx).made()
			snap, err := s.waitBuild(ctx, o.id, in.Timeout)
			if err != nil {
				return nil, err
			}
			return &made[any]{Again: o.again, Body: item(s.snapshotOut(snap)).Body}, nil
		}, eitherOf[api.Rebuilding, api.Item[api.Snapshot]](a, http.StatusOK))
}

// waitBuild waits until a snapshot is not being built any more, so many seconds at the most. Then it returns the snapshot as it is.
func (s *server) waitBuild(ctx context.Context, id warmboot.ID, seconds int) (*warmboot.RuntimeSnapshot, error) {
	wctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	snap, err := s.svc.Snapshot(ctx, id)
	for err == nil && snap.State == warmboot.SnapshotCreating {
		if snap, err = s.svc.WaitSnapshot(wctx, id, snap.Metadata.Step); err != nil && wctx.Err() != nil {
			return s.svc.Snapshot(ctx, id)
		}
	}
	return snap, err
}
