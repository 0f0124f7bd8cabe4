package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
)

// TokenRef is exported because huma sets no field of an embedded type that is not.
type TokenRef struct {
	Ref string `path:"id" doc:"Id or name."`
}

func (s *server) tokenRoutes(a huma.API) {
	const tag, base = "Access", "/v1/tokens"
	op(a, "create-token", http.MethodPost, base, tag, "Create a token", "The answer holds its secret, which is shown this once: only a digest of it is kept.",
		func(ctx context.Context, in *struct {
			OnceHeader
			Body api.CreateToken
		}) (*made[api.CreatedToken], error) {
			var t *warmboot.Token
			var secret string
			o, err := s.once(ctx, in.Key, in.Body, func(ctx context.Context) (_ warmboot.ID, err error) {
				ttl := time.Duration(in.Body.TTLSeconds) * time.Second
				if t, secret, err = s.access.CreateToken(ctx, requestOf(ctx).who, in.Body.Name, warmboot.Role(in.Body.Role), ttl); err != nil {
					return "", err
				}
				return t.ID, nil
			})
			if err == nil && o.again != "" {
				if t, err = s.access.Token(ctx, string(o.id)); err == nil {
					secret, err = o.request.Secret()
				}
			}
			if err != nil {
				return nil, err
			}
			return &made[api.CreatedToken]{Again: o.again, Body: api.CreatedToken{Item: tokenOut(t), Secret: secret}}, nil
		}, created)
	op(a, "list-tokens", http.MethodGet, base, tag, "List tokens", "Newest first, a part at a time, without their secrets. Those that have expired stay until they are revoked.",
		func(ctx context.Context, in *PageQuery) (*answer[api.Items[api.Token]], error) {
			page, err := in.page()
			if err != nil {
				return nil, err
			}
			all, err := s.access.Tokens(ctx, page)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Limit, tokenOut, func(t *warmboot.Token) string { return cursorOf(t.CreatedAt, t.ID) }), nil
		})
	op(a, "get-token", http.MethodGet, base+"/{id}", tag, "Get a token", "Its ETag does not change with `last_used_at`.",
		func(ctx context.Context, in *TokenRef) (*found[api.Token], error) {
			t, err := s.access.Token(ctx, in.Ref)
			if err != nil {
				return nil, err
			}
			return &found[api.Token]{Status: http.StatusOK, ETag: tokenTag(t), Body: api.Item[api.Token]{Item: tokenOut(t)}}, nil
		})
	op(a, "delete-token", http.MethodDelete, base+"/{id}", tag, "Revoke a token",
		"It is refused from now on, and streams and shells that it was used for end; by other managers on the same database after 10 seconds, and a minute.",
		func(ctx context.Context, in *struct {
			TokenRef
			MatchHeader
		}) (*answer[api.OK], error) {
			return done(s.access.RevokeToken(ctx, in.Ref, ifMatch(in.IfMatch, tokenTag)...))
		})
	op(a, "get-access", http.MethodGet, "/v1/access", tag, "Tell who I am", "What the server knows of the token that is sent.",
		func(ctx context.Context, _ *struct{}) (*answer[api.Access], error) {
			who := requestOf(ctx).who
			return &answer[api.Access]{api.Access{Name: who.Name, TokenID: string(who.ID), Role: string(who.Role), ExpiresAt: who.Expires}}, nil
		})
}

func tokenOut(t *warmboot.Token) api.Token {
	return api.Token{
		ID: string(t.ID), Name: t.Name, Role: string(t.Role), CreatedAt: t.CreatedAt, CreatedBy: t.CreatedBy,
		ExpiresAt: t.ExpiresAt, Expired: t.Expired(time.Now()), LastUsedAt: t.LastUsedAt,
	}
}
