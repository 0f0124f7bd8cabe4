package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strings"

	"warmboot/api"
)

// SnapshotFilter narrows a list of runtime snapshots. Zero means all that are not deleted.
type SnapshotFilter struct {
	States []string
	Image  string // runtime image, id or name
	Host   string // that builds it or has built it, id or name
	Limit  int    // the newest so many only; 0: all
}

// Snapshots lists the runtime snapshots that are not deleted, newest first.
func (c *Client) Snapshots(ctx context.Context) ([]api.Snapshot, error) {
	return collect(c.EachSnapshot(ctx, SnapshotFilter{}))
}

// EachSnapshot gives runtime snapshots, newest first, as EachContainer does containers.
func (c *Client) EachSnapshot(ctx context.Context, f SnapshotFilter) iter.Seq2[api.Snapshot, error] {
	query := url.Values{}
	set(query, "state", strings.Join(f.States, ","))
	set(query, "image", f.Image)
	set(query, "host", f.Host)
	return each[api.Snapshot](ctx, c, "/v1/runtime-snapshots", query, f.Limit)
}

// Snapshot returns one snapshot; a deleted one too, for as long as its row is kept.
func (c *Client) Snapshot(ctx context.Context, id string) (api.Snapshot, error) {
	path, err := ref("/v1/runtime-snapshots/", id, "")
	if err != nil {
		return api.Snapshot{}, err
	}
	return get[api.Snapshot](ctx, c, path)
}

// WaitSnapshot returns the snapshot once it is not being built any more, or does something else than step (what metadata.step told
// last). After a while it returns in any case; look at the state, and wait again.
func (c *Client) WaitSnapshot(ctx context.Context, id, step string) (api.Snapshot, error) {
	path, err := ref("/v1/runtime-snapshots/", id, "/wait?step="+url.QueryEscape(step))
	if err != nil {
		return api.Snapshot{}, err
	}
	return get[api.Snapshot](ctx, c, path)
}

// CreateSnapshot starts to build a snapshot of a runtime image. Its state tells when it is ready.
func (c *Client) CreateSnapshot(ctx context.Context, imageID string) (id string, err error) {
	var created api.Created
	err = c.create(ctx, "/v1/runtime-snapshots", api.CreateSnapshot{RuntimeImageID: imageID}, &created)
	return created.ID, err
}

// RebuildSnapshot starts to build the snapshot that will take this one's place, and returns the new one's id.
func (c *Client) RebuildSnapshot(ctx context.Context, id string) (string, error) {
	path, err := ref("/v1/runtime-snapshots/", id, "/rebuild")
	if err != nil {
		return "", err
	}
	var r api.Rebuilding
	err = c.create(ctx, path, nil, &r)
	return r.ID, err
}

// DeleteSnapshot soft deletes a snapshot. Its files go once no machine needs them.
func (c *Client) DeleteSnapshot(ctx context.Context, id string) error {
	path, err := ref("/v1/runtime-snapshots/", id, "")
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path, nil, nil)
}
