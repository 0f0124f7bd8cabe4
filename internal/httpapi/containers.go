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
		"Answers at once with the id, and the microVM boots in the background. With `wait` it answers with the container once the condition holds: look at `state`.",
		func(ctx context.Context, in *struct {
			OnceHeader
			WaitQuery
			Wait string `query:"wait" enum:"booted,running,started,stopped" doc:"Answer later. booted: Docker in its microVM has answered. running, started: it runs, or will not. stopped: its command has ended. One that has failed is not waited for."`
			Body api.CreateContainer
		}) (*made[any], error) {
			wanted, err := createIn(in.Body)
			if err != nil {
				return nil, err
			}
			o, err := s.once(ctx, in.Key, in.Body, func(ctx context.Context) (warmboot.ID, error) {
				c, err := s.svc.CreateContainer(ctx, wanted)
				if err != nil {
					return "", err
				}
				return c.ID, nil
			})
			if err != nil || in.Wait == "" {
				return o.made(o.id), err
			}
			requestOf(ctx).made()
			cond := controlplane.WaitFor(in.Wait)
			if in.Wait == string(warmboot.ContainerRunning) {
				cond = controlplane.WaitStarted
			}
			c, err := s.waitContainer(ctx, string(o.id), cond, in.Timeout)
			if err != nil {
				return nil, err
			}
			return &made[any]{Again: o.again, Body: item(s.containerOut(c)).Body}, nil
		}, eitherOf[api.Created, api.Item[api.Container]](a, http.StatusCreated))
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
		func(ctx context.Context, in *struct {
			ContainerRef
			NoneMatchHeader
		}) (*found[api.Container], error) {
			c, err := s.svc.Container(ctx, in.Ref)
			if err != nil {
				return nil, err
			}
			return itemOf(s.containerOut(c), in.IfNoneMatch), nil
		}, orNotModified)
	op(a, "update-container", http.MethodPatch, base+"/{id}", tag, "Change a container",
		"A JSON merge patch (RFC 7396): what is left out stays, null sets back to what a container has that asks for nothing. The name and the restart policy are the new ones at once. CPUs, memory and ports can be changed only of a stopped container, because its microVM is made of them: they take effect when it is started next. Image, command and variables stay: Docker has them on the container's disk. `at_next_start` tells what does not take effect at once.",
		func(ctx context.Context, in *struct {
			ContainerRef
			MatchHeader
			Body api.UpdateContainer
		}) (*updated, error) {
			change, err := updateIn(in.Body)
			if err != nil {
				return nil, err
			}
			c, err := s.svc.UpdateContainer(ctx, in.Ref, change, ifMatch(in.IfMatch, s.containerTag)...)
			if err != nil {
				return nil, err
			}
			out := s.containerOut(c)
			return &updated{ETag: etag(out), Body: api.UpdatedContainer{Item: out, AtNextStart: atNextStart(in.Body, c)}}, nil
		}, mergePatch[api.UpdateContainer](a))
	op(a, "delete-container", http.MethodDelete, base+"/{id}", tag, "Delete a container", "Removes its microVM, disk and logs. A create or start that is under way is ended.",
		func(ctx context.Context, in *struct {
			ContainerRef
			MatchHeader
			Force bool `query:"force" doc:"Even if it runs."`
		}) (*answer[api.OK], error) {
			return done(s.svc.DeleteContainer(ctx, in.Ref, in.Force, ifMatch(in.IfMatch, s.containerTag)...))
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
			c, err := s.waitContainer(ctx, in.Ref, controlplane.WaitFor(in.Condition), in.Timeout)
			if err != nil {
				return nil, err
			}
			return item(s.containerOut(c)), nil
		})
}

// waitContainer waits for a condition, so many seconds at the most. Then it returns the container as it is.
func (s *server) waitContainer(ctx context.Context, ref string, cond controlplane.WaitFor, seconds int) (*warmboot.Container, error) {
	wctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second)
	defer cancel()
	c, err := s.svc.WaitContainer(wctx, ref, cond)
	if err != nil && wctx.Err() != nil {
		return s.svc.Container(ctx, ref)
	}
	return c, err
}
