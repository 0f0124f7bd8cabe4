package httpapi

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"warmboot"
	"warmboot/api"
)

// ImageRef is exported because huma sets no field of an embedded type that is not.
type ImageRef struct {
	Ref string `path:"id" doc:"Id or name."`
}

func (s *server) imageRoutes(a huma.API) {
	const tag = "Images"
	op(a, "register-image", http.MethodPost, "/v1/images", tag, "Register a runtime image",
		"The files must be on the host already, below an allowed root. Registering the same content under the same name again gives the id that it has.",
		func(ctx context.Context, in *struct {
			OnceHeader
			Body api.RegisterImage
		}) (*made[api.Created], error) {
			o, err := s.once(ctx, in.Key, in.Body, func(ctx context.Context) (warmboot.ID, error) {
				img, err := s.svc.RegisterImage(ctx, warmboot.Image{
					Name: in.Body.Name, KernelPath: in.Body.KernelPath, InitrdPath: in.Body.InitrdPath, RootfsPath: in.Body.RootfsPath,
				})
				if err != nil {
					return "", err
				}
				return img.ID, nil
			})
			if err != nil {
				return nil, err
			}
			return &made[api.Created]{Again: o.again, Body: api.Created{ID: string(o.id)}}, nil
		}, created)
	op(a, "list-images", http.MethodGet, "/v1/images", tag, "List runtime images", "Newest first, a part at a time.",
		func(ctx context.Context, in *PageQuery) (*answer[api.Items[api.Image]], error) {
			page, err := in.page()
			if err != nil {
				return nil, err
			}
			all, err := s.svc.Images(ctx, page)
			if err != nil {
				return nil, err
			}
			return pageOf(all, in.Limit, imageOut, func(img *warmboot.Image) string { return cursorOf(img.CreatedAt, img.ID) }), nil
		})
	op(a, "get-image", http.MethodGet, "/v1/images/{id}", tag, "Get a runtime image", "",
		func(ctx context.Context, in *struct {
			ImageRef
			NoneMatchHeader
		}) (*found[api.Image], error) {
			img, err := s.svc.Image(ctx, in.Ref)
			if err != nil {
				return nil, err
			}
			return itemOf(imageOut(img), in.IfNoneMatch), nil
		}, orNotModified)
	op(a, "update-image", http.MethodPatch, "/v1/images/{id}", tag, "Rename a runtime image", "A JSON merge patch (RFC 7396). The files of an image do not change: other files are another image.",
		func(ctx context.Context, in *struct {
			ImageRef
			MatchHeader
			Body api.UpdateImage
		}) (*found[api.Image], error) {
			img, err := s.svc.UpdateImage(ctx, in.Ref, in.Body.Name, ifMatch(in.IfMatch, imageTag)...)
			if err != nil {
				return nil, err
			}
			return itemOf(imageOut(img), ""), nil
		}, mergePatch[api.UpdateImage](a))
	op(a, "delete-image", http.MethodDelete, "/v1/images/{id}", tag, "Forget a runtime image", "Only one that no container and no snapshot uses. Its files stay.",
		func(ctx context.Context, in *struct {
			ImageRef
			MatchHeader
		}) (*answer[api.OK], error) {
			return done(s.svc.DeleteImage(ctx, in.Ref, ifMatch(in.IfMatch, imageTag)...))
		})
}
