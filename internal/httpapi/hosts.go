package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
)

// HostRef is exported because huma sets no field of an embedded type that is not.
type HostRef struct {
	Ref string `path:"id" doc:"Id or name."`
}

// joinToken makes a join token, where hosts can join.
func (s *server) joinToken(ctx context.Context, ref string, ttl time.Duration) (api.JoinToken, error) {
	const op = "make join token"
	if s.joins == nil {
		return api.JoinToken{}, warmboot.Errorf(warmboot.Conflict, op, "this is `warmboot serve`, which has one host, its own; run `warmboot manager` to have several")
	}
	var host warmboot.ID
	if ref != "" {
		h, err := s.svc.Host(ctx, ref)
		if err != nil {
			return api.JoinToken{}, err
		}
		if h.State == warmboot.HostUp {
			return api.JoinToken{}, warmboot.Errorf(warmboot.Conflict, op, "host %s is up and has its certificate; end its agent first", h.Name)
		}
		host = h.ID
	}
	secret, token, err := s.joins.Authority.NewToken(ctx, s.joins.Store, host, ttl, requestOf(ctx).who.Name)
	if err != nil {
		return api.JoinToken{}, err
	}
	return api.JoinToken{Secret: secret, ExpiresAt: token.ExpiresAt}, nil
}

func (s *server) hostRoutes(a huma.API) {
	const tag, base = "Hosts", "/v1/hosts"
	op(a, "list-hosts", http.MethodGet, base, tag, "List hosts", "In order of their names.",
		func(ctx context.Context, _ *struct{}) (*answer[api.Items[api.Host]], error) {
			all, err := s.svc.Hosts(ctx)
			if err != nil {
				return nil, err
			}
			return items(all, hostOut), nil
		})
	op(a, "get-host", http.MethodGet, base+"/{id}", tag, "Get a host", "",
		func(ctx context.Context, in *HostRef) (*answer[api.Item[api.Host]], error) {
			h, err := s.svc.Host(ctx, in.Ref)
			if err != nil {
				return nil, err
			}
			return item(hostOut(h)), nil
		})
	cordon := func(id, verb, summary, description string, cordoned bool) {
		op(a, id, http.MethodPost, base+"/{id}/"+verb, tag, summary, description,
			func(ctx context.Context, in *HostRef) (*answer[api.Item[api.Host]], error) {
				h, err := s.svc.CordonHost(ctx, in.Ref, cordoned)
				if err != nil {
					return nil, err
				}
				return item(hostOut(h)), nil
			})
	}
	cordon("cordon-host", "cordon", "Keep new containers and builds away from a host", "What is there goes on.", true)
	cordon("uncordon-host", "uncordon", "Let new containers and builds come to a host again", "", false)
	op(a, "drain-host", http.MethodPost, base+"/{id}/drain", tag, "Cordon a host and stop its containers", "Answers once none runs there. Their disks and logs stay.",
		func(ctx context.Context, in *struct {
			HostRef
			Body *api.DrainHost
		}) (*answer[api.Item[api.Host]], error) {
			grace := defaultStopTimeout
			if in.Body != nil && in.Body.TimeoutSeconds != nil {
				grace = time.Duration(*in.Body.TimeoutSeconds) * time.Second
			}
			h, err := s.svc.DrainHost(ctx, in.Ref, grace)
			if err != nil {
				return nil, err
			}
			return item(hostOut(h)), nil
		})
	op(a, "create-join-token", http.MethodPost, "/v1/join-tokens", tag, "Make a token with which one host can join, once", "For `warmboot agent --join`.",
		func(ctx context.Context, in *struct{ Body api.CreateJoinToken }) (*answer[api.Item[api.JoinToken]], error) {
			ttl := time.Duration(in.Body.TTLSeconds) * time.Second
			if ttl == 0 {
				ttl = time.Hour
			}
			made, err := s.joinToken(ctx, in.Body.Host, ttl)
			if err != nil {
				return nil, err
			}
			return item(made), nil
		}, created)
	op(a, "delete-host", http.MethodDelete, base+"/{id}", tag, "Forget a host", "Only one that has no containers and no snapshots. Its agent is not let in any more; it can join again with a new token.",
		func(ctx context.Context, in *HostRef) (*answer[api.OK], error) {
			return done(s.svc.RemoveHost(ctx, in.Ref))
		})
}
