package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"warmboot"
	"warmboot/api"
)

// The conditions of WaitContainer.
const (
	Booted  = "booted"  // its Docker has answered and boot_method is known, or that failed
	Started = "started" // it runs, or could not be started, or has ended already
	Stopped = "stopped" // it has stopped or failed
)

// pollSeconds is how long the server holds one request of WaitContainer: shorter than what proxies allow.
const pollSeconds = "25"

// ContainerFilter narrows a list of containers. Zero means all.
type ContainerFilter struct {
	States       []string
	Host         string // id or name
	Image        string // as it was given when they were created
	RuntimeImage string // id or name
	NamePrefix   string
	BootMethod   string // "warm" or "cold"
	Limit        int    // the newest so many only; 0: all
}

// Containers lists all containers, newest first.
func (c *Client) Containers(ctx context.Context) ([]api.Container, error) {
	return collect(c.EachContainer(ctx, ContainerFilter{}))
}

// EachContainer gives containers, newest first. They are read a part at a time, as far as they are asked for. An error ends it.
func (c *Client) EachContainer(ctx context.Context, f ContainerFilter) iter.Seq2[api.Container, error] {
	query := url.Values{}
	set(query, "state", strings.Join(f.States, ","))
	set(query, "host", f.Host)
	set(query, "image", f.Image)
	set(query, "runtime_image", f.RuntimeImage)
	set(query, "name_prefix", f.NamePrefix)
	set(query, "boot_method", f.BootMethod)
	return each[api.Container](ctx, c, "/v1/containers", query, f.Limit)
}

// Container finds a container by id, name, or the beginning of its id.
func (c *Client) Container(ctx context.Context, idOrName string) (api.Container, error) {
	path, err := ref("/v1/containers/", idOrName, "")
	if err != nil {
		return api.Container{}, err
	}
	return get[api.Container](ctx, c, path)
}

// CreateContainer starts to bring up a container and returns its id at once; WaitContainer tells when it runs.
func (c *Client) CreateContainer(ctx context.Context, in api.CreateContainer) (id string, err error) {
	var created api.Created
	err = c.create(ctx, "/v1/containers", in, &created)
	return created.ID, err
}

// CreateContainerAndWait is CreateContainer and WaitContainer in one.
func (c *Client) CreateContainerAndWait(ctx context.Context, in api.CreateContainer, condition string) (api.Container, error) {
	var made api.Item[api.Container]
	err := c.create(ctx, "/v1/containers?wait="+condition+"&timeout="+pollSeconds, in, &made)
	if err != nil || fulfils(made.Item, condition) {
		return made.Item, err
	}
	return c.WaitContainer(ctx, made.Item.ID, condition)
}

// WaitContainer returns the container as soon as it is Booted, Started or Stopped. Whether that went well, its State tells.
func (c *Client) WaitContainer(ctx context.Context, idOrName, condition string) (api.Container, error) {
	path, err := ref("/v1/containers/", idOrName, "/wait?condition="+condition+"&timeout="+pollSeconds)
	if err != nil {
		return api.Container{}, err
	}
	for {
		got, err := get[api.Container](ctx, c, path)
		if err != nil {
			return api.Container{}, err
		}
		if fulfils(got, condition) {
			return got, nil
		}
	}
}

// fulfils reports whether a condition holds, or cannot hold any more.
func fulfils(c api.Container, condition string) bool {
	if condition == Booted && c.BootMethod != nil {
		return true
	}
	switch warmboot.ContainerState(c.State) {
	case warmboot.ContainerStopped, warmboot.ContainerFailed:
		return true
	case warmboot.ContainerRunning, warmboot.ContainerStopping:
		return condition != Stopped
	}
	return false
}

// TaggedContainer is Container, with the ETag of what it returns: UpdateContainer takes that.
func (c *Client) TaggedContainer(ctx context.Context, idOrName string) (_ api.Container, etag string, err error) {
	path, err := ref("/v1/containers/", idOrName, "")
	if err != nil {
		return api.Container{}, "", err
	}
	var found api.Item[api.Container]
	header, err := c.exchange(ctx, http.MethodGet, path, nil, nil, &found)
	return found.Item, header.Get("ETag"), err
}

// UpdateContainer changes a container; what is nil stays as it is. With the ETag that TaggedContainer has given it changes nothing, and is a Stale
// error, if somebody else has changed the container since. What does not take effect at once is in AtNextStart.
func (c *Client) UpdateContainer(ctx context.Context, idOrName string, change api.UpdateContainer, etag string) (api.UpdatedContainer, error) {
	path, err := ref("/v1/containers/", idOrName, "")
	if err != nil {
		return api.UpdatedContainer{}, err
	}
	header := http.Header{"Content-Type": {"application/merge-patch+json"}}
	if etag != "" {
		header.Set("If-Match", etag)
	}
	var out api.UpdatedContainer
	_, err = c.exchange(ctx, http.MethodPatch, path, header, change, &out)
	return out, err
}

// StopContainer ends a container's command, giving it timeout seconds (the server's default if nil) to end by itself,
// and returns the container once it is stopped.
func (c *Client) StopContainer(ctx context.Context, idOrName string, timeout *int) (api.Container, error) {
	path, err := ref("/v1/containers/", idOrName, "/stop")
	if err != nil {
		return api.Container{}, err
	}
	var e api.Item[api.Container]
	err = c.do(ctx, http.MethodPost, path, api.StopContainer{TimeoutSeconds: timeout}, &e)
	return e.Item, err
}

// StartContainer starts to boot a stopped container again and returns its id at once.
func (c *Client) StartContainer(ctx context.Context, idOrName string) (id string, err error) {
	path, err := ref("/v1/containers/", idOrName, "/start")
	if err != nil {
		return "", err
	}
	var created api.Created
	err = c.do(ctx, http.MethodPost, path, nil, &created)
	return created.ID, err
}

// DeleteContainer removes a container and everything of it; one that runs only with force.
func (c *Client) DeleteContainer(ctx context.Context, idOrName string, force bool) error {
	path, err := ref("/v1/containers/", idOrName, "?force="+strconv.FormatBool(force))
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path, nil, nil)
}
