package client

import (
	"context"
	"net/http"
	"time"

	"warmboot/api"
)

// Hosts lists the hosts in order of their names.
func (c *Client) Hosts(ctx context.Context) ([]api.Host, error) {
	return list[api.Host](ctx, c, "/v1/hosts")
}

// Host finds a host by id or name.
func (c *Client) Host(ctx context.Context, idOrName string) (api.Host, error) {
	path, err := ref("/v1/hosts/", idOrName, "")
	if err != nil {
		return api.Host{}, err
	}
	return get[api.Host](ctx, c, path)
}

// CordonHost keeps new containers and builds away from a host, or lets them come again.
func (c *Client) CordonHost(ctx context.Context, idOrName string, cordoned bool) (api.Host, error) {
	verb := "/cordon"
	if !cordoned {
		verb = "/uncordon"
	}
	return c.changeHost(ctx, idOrName, verb, nil)
}

// DrainHost cordons a host and stops its containers, each of which has grace to end by itself. It returns once none runs there.
func (c *Client) DrainHost(ctx context.Context, idOrName string, grace time.Duration) (api.Host, error) {
	seconds := int(grace.Round(time.Second).Seconds())
	return c.changeHost(ctx, idOrName, "/drain", api.DrainHost{TimeoutSeconds: &seconds})
}

func (c *Client) changeHost(ctx context.Context, idOrName, verb string, in any) (api.Host, error) {
	path, err := ref("/v1/hosts/", idOrName, verb)
	if err != nil {
		return api.Host{}, err
	}
	var out api.Item[api.Host]
	err = c.do(ctx, http.MethodPost, path, in, &out)
	return out.Item, err
}

// CreateJoinToken makes a token with which one host can join, once.
func (c *Client) CreateJoinToken(ctx context.Context, in api.CreateJoinToken) (api.JoinToken, error) {
	var out api.Item[api.JoinToken]
	err := c.do(ctx, http.MethodPost, "/v1/join-tokens", in, &out)
	return out.Item, err
}

// DeleteHost forgets a host that has no containers and no snapshots any more.
func (c *Client) DeleteHost(ctx context.Context, idOrName string) error {
	path, err := ref("/v1/hosts/", idOrName, "")
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path, nil, nil)
}
