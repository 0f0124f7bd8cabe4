package cli

import (
	"context"
	"encoding/hex"
	"strings"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

// findImage finds a runtime image by name, by id, or by the beginning of its id, the form in which tables show it.
func (a *app) findImage(ctx context.Context, cl *client.Client, ref string) (api.Image, error) {
	img, err := cl.Image(ctx, ref)
	if warmboot.CodeOf(err) != warmboot.NotFound || !idPrefix(ref) {
		return img, err
	}
	images, listErr := cl.Images(ctx)
	if listErr != nil {
		return img, listErr
	}
	return findByPrefix("runtime image", ref, images, func(i api.Image) string { return i.ID })
}

// findSnapshot finds a runtime snapshot by id or by the beginning of its id.
func (a *app) findSnapshot(ctx context.Context, cl *client.Client, ref string) (api.Snapshot, error) {
	if _, err := warmboot.ParseID(ref); err == nil {
		return cl.Snapshot(ctx, ref)
	}
	snapshots, err := cl.Snapshots(ctx)
	if err != nil {
		return api.Snapshot{}, err
	}
	return findByPrefix("runtime snapshot", ref, snapshots, func(s api.Snapshot) string { return s.ID })
}

// findByPrefix returns the only item whose id begins with ref; dashes do not matter.
func findByPrefix[T any](kind, ref string, items []T, id func(T) string) (T, error) {
	var found []T
	if idPrefix(ref) {
		for _, item := range items {
			if strings.HasPrefix(plainID(id(item)), plainID(ref)) {
				found = append(found, item)
			}
		}
	}
	var none T
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return none, warmboot.Errorf(warmboot.NotFound, "", "there is no %s %q; `warmboot %s ls` lists them", kind, ref, strings.TrimPrefix(kind, "runtime "))
	}
	return none, warmboot.Errorf(warmboot.Conflict, "", "%d %ss have an id that begins with %q; type more of it", len(found), kind, ref)
}

func plainID(s string) string { return strings.ToLower(strings.ReplaceAll(s, "-", "")) }

// idPrefix reports whether s can be the beginning of an id.
func idPrefix(s string) bool {
	p := plainID(s)
	if p == "" || len(p) > 32 {
		return false
	}
	_, err := hex.DecodeString(p + strings.Repeat("0", len(p)%2))
	return err == nil
}

// invalid is the error of a wrong setting.
func invalid(format string, args ...any) error {
	return warmboot.Errorf(warmboot.Invalid, "", format, args...)
}
