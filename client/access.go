package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"strconv"

	"warmboot/api"
)

// Tokens lists the tokens, newest first.
func (c *Client) Tokens(ctx context.Context) ([]api.Token, error) {
	return collect(c.EachToken(ctx))
}

// EachToken gives the tokens, newest first, as EachContainer does containers.
func (c *Client) EachToken(ctx context.Context) iter.Seq2[api.Token, error] {
	return each[api.Token](ctx, c, "/v1/tokens", nil, 0)
}

// Token finds a token by id or name.
func (c *Client) Token(ctx context.Context, idOrName string) (api.Token, error) {
	path, err := ref("/v1/tokens/", idOrName, "")
	if err != nil {
		return api.Token{}, err
	}
	return get[api.Token](ctx, c, path)
}

// CreateToken makes a token. Its secret is in the answer, and cannot be had again.
func (c *Client) CreateToken(ctx context.Context, in api.CreateToken) (api.CreatedToken, error) {
	var created api.CreatedToken
	err := c.create(ctx, "/v1/tokens", in, &created)
	return created, err
}

// RevokeToken takes a token back.
func (c *Client) RevokeToken(ctx context.Context, idOrName string) error {
	path, err := ref("/v1/tokens/", idOrName, "")
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodDelete, path, nil, nil)
}

// Access tells what the server knows of the token that this client sends.
func (c *Client) Access(ctx context.Context) (api.Access, error) {
	var a api.Access
	return a, c.do(ctx, http.MethodGet, "/v1/access", nil, &a)
}

// Audit reads at most limit entries of the audit log, newest first, from cursor on, which is the NextCursor of the page before, or empty.
func (c *Client) Audit(ctx context.Context, cursor string, limit int) (api.AuditPage, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	if cursor != "" {
		query.Set("cursor", cursor)
	}
	var page api.AuditPage
	err := c.do(ctx, http.MethodGet, "/v1/audit?"+query.Encode(), nil, &page)
	return page, err
}
