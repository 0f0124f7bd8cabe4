package controlplane

import (
	"github.com/distribution/reference"

	"warmboot"
)

// validateImageRef refuses what Docker could not pull, before anything is booted for it.
func validateImageRef(ref string) error {
	if _, err := reference.ParseDockerRef(ref); err != nil {
		return warmboot.Errorf(warmboot.Invalid, "container image", "%.100q is not an image reference (%w); use a form like debian:trixie or registry.example:5000/team/app:1.2", ref, err)
	}
	return nil
}
