package client

import (
	"context"
	"iter"
	"net/http"

	"warmboot/api"
)

// Images lists the runtime images, newest first.
func (c *Client) Images(ctx context.Context) ([]api.Image, error) {
	return collect(c.EachImage(ctx))
}

// EachImage gives the runtime images, newest first, as EachContainer does containers.
func (c *Client) EachImage(ctx context.Context) iter.Seq2[api.Image, error] {
	return each[api.Image](ctx, c, "/v1/images", nil, 0)
}

// Image finds a runtime image by id or name.
func (c *Client) Image(ctx context.Context, idOrName string) (api.Image, error) {
	path, err := ref("/v1/images/", idOrName, "")
	if err != nil {
		return api.Image{}, err
	}
	return get[api.Image](ctx, c, path)
}

// RegisterImage registers an image whose files are on the host already. Registering the same files under the same name
// again gives the image that is there.
func (c *Client) RegisterImage(ctx context.Context, in api.RegisterImage) (api.Image, error) {
	var created api.Created
	if err := c.create(ctx, "/v1/images", in, &created); err != nil {
		return api.Image{}, err
	}
	return c.Image(ctx, created.ID)
}

// RenameImage gives an image another name.
func (c *Client) RenameImage(ctx context.Context, idOrName, name string) (api.Image, error) {
	path, err := ref("/v1/images/", idOrName, "")
	if err != nil {
		return api.Image{}, err
	}
	var out api.Item[api.Image]
	err = c.do(ctx, http.MethodPatch, path, api.UpdateImage{Name: &name}, &out)
	return out.Item, err
}

// DeleteImage forgets an image that nothing uses. Its files stay.
func (c *Client) DeleteImage(ctx context.Context, idOrName string) error {
	path, err := ref("/v1/images/", idOrName, "")
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path, nil, nil)
}
