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

type containerQuery struct {
	PageQuery
	States       []string `query:"state" enum:"creating,running,stopping,stopped,starting,failed,deleting" doc:"Only those in one of these states."`
	Host         string   `query:"host" maxLength:"64" doc:"Only those on a host, by its id or name."`
	Image        string   `query:"image" maxLength:"512" doc:"Only those of an image, as it was given when they were created."`
	RuntimeImage string   `query:"runtime_image" maxLength:"64" doc:"Only those whose microVM boots a runtime image, by its id or name."`
	NamePrefix   string   `query:"name_prefix" maxLength:"63" doc:"Only those whose name begins so."`
	BootMethod   string   `query:"boot_method" enum:"warm,cold" doc:"Only those that came up this way."`
}

// containerFilter is what the store is asked for.
func (s *server) containerFilter(ctx context.Context, in *containerQuery) (f warmboot.ContainerFilter, err error) {
	for _, state := range in.States {
		f.States = append(f.States, warmboot.ContainerState(state))
	}
	f.Image, f.NamePrefix, f.BootMethod = in.Image, in.NamePrefix, warmboot.BootMethod(in.BootMethod)
	if f.HostID, err = s.hostID(ctx, in.Host); err != nil {
		return f, err
	}
	if f.RuntimeImageID, err = s.imageID(ctx, in.RuntimeImage); err != nil {
		return f, err
	}
	f.Page, err = in.page()
	return f, err
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
	op(a, "list-containers", http.MethodGet, base, tag, "List containers", "Newest first, a part at a time.",
		func(ctx context.Context, in *containerQuery) (*answer[api.Items[api.Container]], error) {
			filter, err := s.containerFilter(ctx, in)
			if err != nil {
				return nil, err
			}
			all, err := s.svc.Containers(ctx, filter)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Limit, s.containerOut, func(c *warmboot.Container) string { return cursorOf(c.CreatedAt, c.ID) }), nil
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
