package client

import (
	"context"
	"net/http"

	"warmboot/api"
)

// CollectGarbage removes what the server needs no more and tells what that was; with dryRun it only tells.
func (c *Client) CollectGarbage(ctx context.Context, dryRun bool) (api.Garbage, error) {
	path := "/v1/gc"
	if dryRun {
		path += "?dry_run=true"
	}
	var out api.Garbage
	err := c.do(ctx, http.MethodPost, path, nil, &out)
	return out, err
}
