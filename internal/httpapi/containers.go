package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane"
)

const defaultStopTimeout = 10 * time.Second

type ContainerRef struct {
	Ref string `path:"id" doc:"Id, name, or the beginning of an id that only one container has."`
}

func (s *server) containerRoutes(a huma.API) {
	const tag, base = "Containers", "/v1/containers"
	op(a, "create-container", http.MethodPost, base, tag, "Create and start a container",
		"Answers at once; the microVM boots in the background. Wait for `started`, then look at `state`.",
		func(ctx context.Context, in *struct{ Body api.CreateContainer }) (*answer[api.Created], error) {
			wanted, err := createIn(in.Body)
			if err != nil {
				return nil, err
			}
			c, err := s.svc.CreateContainer(ctx, wanted)
			if err != nil {
				return nil, err
			}
			return &answer[api.Created]{api.Created{ID: string(c.ID)}}, nil
		}, created)
	op(a, "list-containers", http.MethodGet, base, tag, "List containers", "Newest first.",
		func(ctx context.Context, in *struct {
			States []string `query:"state" enum:"creating,running,stopping,stopped,starting,failed,deleting" doc:"Only those in one of these states."`
		}) (*answer[api.Items[api.Container]], error) {
			var f warmboot.ContainerFilter
			for _, state := range in.States {
				f.States = append(f.States, warmboot.ContainerState(state))
			}
			all, err := s.svc.Containers(ctx, f)
			if err != nil {
				return nil, err
			}
			return items(all, s.containerOut), nil
		})
	op(a, "get-container", http.MethodGet, base+"/{id}", tag, "Get a container", "",
		func(ctx context.Context, in *ContainerRef) (*answer[api.Item[api.Container]], error) {
			c, err := s.svc.Container(ctx, in.Ref)
			if err != nil {
				return nil, err
			}
			return item(s.containerOut(c)), nil
		})
	op(a, "delete-container", http.MethodDelete, base+"/{id}", tag, "Delete a container", "Removes its microVM, disk and logs. A create or start that is under way is ended.",
		func(ctx context.Context, in *struct {
			ContainerRef
			Force bool `query:"force" doc:"Even if it runs."`
		}) (*answer[api.OK], error) {
			return done(s.svc.DeleteContainer(ctx, in.Ref, in.Force))
		})
	op(a, "stop-container", http.MethodPost, base+"/{id}/stop", tag, "Stop a container", "Answers once it is stopped. Disk and logs stay.",
		func(ctx context.Context, in *struct {
			ContainerRef
			Body *api.StopContainer
		}) (*answer[api.Item[api.Container]], error) {
			grace := defaultStopTimeout
			if in.Body != nil && in.Body.TimeoutSeconds != nil {
				grace = time.Duration(*in.Body.TimeoutSeconds) * time.Second
			}
			c, err := s.svc.StopContainer(ctx, in.Ref, grace)
			if err != nil {
				return nil, err
			}
			return item(s.containerOut(c)), nil
		})
	op(a, "start-container", http.MethodPost, base+"/{id}/start", tag, "Start a stopped container", "From its own disk, by a cold boot. Answers at once.",
		func(ctx context.Context, in *ContainerRef) (*answer[api.Created], error) {
			c, err := s.svc.StartContainer(ctx, in.Ref)
			if err != nil {
				return nil, err
			}
			return &answer[api.Created]{api.Created{ID: string(c.ID)}}, nil
		})
	op(a, "wait-container", http.MethodGet, base+"/{id}/wait", tag, "Wait for a container", "Answers when the condition holds, or after the timeout with the container as it is then: look at `state`, and ask again.",
		func(ctx context.Context, in *struct {
			ContainerRef
			Condition string `query:"condition" enum:"booted,started,stopped" default:"started" doc:"booted: Docker in its microVM has answered. started: running, stopped or failed. stopped: stopped or failed."`
			Timeout   int    `query:"timeout" minimum:"0" maximum:"300" default:"30" doc:"Seconds."`
		}) (*answer[api.Item[api.Container]], error) {
			wctx, cancel := context.WithTimeout(ctx, time.Duration(in.Timeout)*time.Second)
			defer cancel()
			c, err := s.svc.WaitContainer(wctx, in.Ref, controlplane.WaitFor(in.Condition))
			if err != nil && wctx.Err() != nil {
				c, err = s.svc.Container(ctx, in.Ref)
			}
			if err != nil {
				return nil, err
			}
			return item(s.containerOut(c)), nil
		})
}
