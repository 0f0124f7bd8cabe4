package agent

import (
	"context"

	"warmboot"
	"warmboot/internal/image"
)

// InspectImage checks a runtime image's files and returns it with its digest and size.
func (a *Agent) InspectImage(ctx context.Context, img warmboot.Image) (warmboot.Image, error) {
	return image.Inspect(ctx, img, a.ImageRoots)
}
