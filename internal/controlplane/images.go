package controlplane

import (
	"context"
	"fmt"
	"strings"
	"time"

	"warmboot"
)

// RegisterImage checks the image's files on a host that has them and stores it under a fresh id. An image of the same name and content
// is returned as it is, so that registering twice does no harm; another content under a taken name is a Conflict.
func (s *Service) RegisterImage(ctx context.Context, img warmboot.Image) (*warmboot.Image, error) {
	img, err := s.inspectImage(ctx, img)
	if err != nil {
		return nil, err
	}
	if known, err := s.store.ImageByName(ctx, img.Name); err == nil && known.Digest == img.Digest {
		return known, nil
	}
	img.ID, img.CreatedAt = warmboot.NewID(), time.Now().UTC()
	if err := s.store.CreateImage(ctx, &img); err != nil {
		return nil, err
	}
	s.log.Info("Runtime image "+img.Name+" registered", "image_id", img.ID, "digest", img.Digest)
	if s.AutoSnapshot {
		for platform := range s.platforms() {
			s.queueRebuild(Rebuild{Image: img.ID, Platform: platform, Attempt: 1})
		}
	}
	return &img, nil
}

// refusalsTold is how many hosts are quoted when none can have an image.
const refusalsTold = 3

// inspectImage asks the hosts, in the order of their names, for the image's files, until one has them.
func (s *Service) inspectImage(ctx context.Context, img warmboot.Image) (warmboot.Image, error) {
	var code warmboot.Code
	var refusals []string
	var last error = errNoHost
	for _, h := range s.hosts.all() {
		host, err := s.reach(h.ID)
		if err == nil {
			var found warmboot.Image
			if found, err = host.InspectImage(ctx, img); err == nil || ctx.Err() != nil {
				return found, err
			}
		}
		if last = err; code == "" || code == warmboot.Unavailable {
			code = warmboot.CodeOf(err)
		}
		refusals = append(refusals, h.Name+": "+err.Error())
	}
	more := len(refusals) - refusalsTold
	switch {
	case len(refusals) <= 1:
		return img, last
	case more > 0:
		refusals = append(refusals[:refusalsTold], fmt.Sprintf("and %d more hosts", more))
	}
	return img, warmboot.Errorf(code, "register image", "no host has it: %s", strings.Join(refusals, "; "))
}

// Images lists the runtime images, newest first.
func (s *Service) Images(ctx context.Context, p warmboot.Page) ([]*warmboot.Image, error) {
	return s.store.Images(ctx, p)
}

// Image finds a runtime image by id or name.
func (s *Service) Image(ctx context.Context, ref string) (*warmboot.Image, error) {
	if id, err := warmboot.ParseID(ref); err == nil {
		return s.store.Image(ctx, id)
	}
	return s.store.ImageByName(ctx, ref)
}

// DeleteImage forgets a runtime image that nothing uses, if the conditions hold. Its files stay.
func (s *Service) DeleteImage(ctx context.Context, ref string, conditions ...func(*warmboot.Image) error) error {
	img, err := s.Image(ctx, ref)
	if err != nil {
		return err
	}
	return s.store.DeleteImage(ctx, img.ID, conditions...)
}

// newestImage is what a container boots from if the caller did not choose.
func (s *Service) newestImage(ctx context.Context) (*warmboot.Image, error) {
	images, err := s.store.Images(ctx, warmboot.Page{Limit: 1})
	if err != nil {
		return nil, err
	}
	if len(images) == 0 {
		return nil, warmboot.Errorf(warmboot.Conflict, "choose runtime image", "no runtime image is registered; make one with `warmboot image build`")
	}
	return images[0], nil
}
