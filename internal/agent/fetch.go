package agent

import (
	"context"

	"warmboot"
	"warmboot/internal/controlplane"
)

// Peers reaches other hosts' files.
type Peers interface{}

func (a *Agent) fetchImage(_ context.Context, img warmboot.Image, _ []controlplane.Peer) error {
	if err := checkFiles(img); err != nil {
		return err
	}
	return warmboot.Errorf(warmboot.Corrupt, "fetch runtime image", "the files of runtime image %s are not what they were when it was registered; build or register the image again", img.Name)
}

// FetchSnapshot implements controlplane.Host.
func (a *Agent) FetchSnapshot(context.Context, warmboot.RuntimeSnapshot, warmboot.Image, []controlplane.Peer) error {
	return warmboot.Errorf(warmboot.NotFound, "fetch snapshot", "no other host has it")
}
