package storetest

import (
	"testing"

	"warmboot"
	"warmboot/internal/expect"
)

func testImages(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	none, err := s.Images(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, len(none), 0)
	older := newImage(t, s, "older")
	newer := newImage(t, s, "newer")

	got, err := s.Image(ctx, older.ID)
	expect.NoError(t, err)
	wantEqual(t, got, older)
	got, err = s.ImageByName(ctx, "newer")
	expect.NoError(t, err)
	wantEqual(t, got, newer)
	all, err := s.Images(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, all, []*warmboot.Image{newer, older})

	_, err = s.Image(ctx, warmboot.NewID())
	expect.Code(t, err, warmboot.NotFound)
	_, err = s.ImageByName(ctx, "absent")
	expect.Code(t, err, warmboot.NotFound, "absent")
	same := *older
	same.ID = warmboot.NewID()
	expect.Code(t, s.CreateImage(ctx, &same), warmboot.Conflict, "older", string(older.ID))
}

func testUpdateImage(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	newImage(t, s, "other")
	rename := func(name string) (*warmboot.Image, error) {
		return s.UpdateImage(ctx, img.ID, func(img *warmboot.Image) error { img.Name, img.Digest = name, "x"; return nil })
	}
	_, err := rename("base")
	expect.NoError(t, err)
	img.Name = "base" // and nothing else
	got, err := s.ImageByName(ctx, "base")
	expect.NoError(t, err)
	wantEqual(t, got, img)
	_, err = rename("base")
	expect.NoError(t, err)
	_, err = rename("other")
	expect.Code(t, err, warmboot.Conflict, "other")
	_, err = s.UpdateImage(ctx, img.ID, func(*warmboot.Image) error { return warmboot.Errorf(warmboot.Stale, "", "seen another") })
	expect.Code(t, err, warmboot.Stale)
	_, err = s.UpdateImage(ctx, warmboot.NewID(), func(*warmboot.Image) error { return nil })
	expect.Code(t, err, warmboot.NotFound)
	newImage(t, s, "runtime") // the name is free

	refuse := func(*warmboot.Image) error { return warmboot.Errorf(warmboot.Stale, "", "seen another") }
	allow := func(seen *warmboot.Image) error { wantEqual(t, seen, img); return nil }
	expect.Code(t, s.DeleteImage(ctx, img.ID, allow, refuse), warmboot.Stale)
	expect.NoError(t, s.DeleteImage(ctx, img.ID, allow))
}

func testDeleteImage(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	snap := newSnapshot(t, s, img)
	c := newContainer(t, s, img, "web")
	expect.Code(t, s.DeleteImage(ctx, img.ID), warmboot.Conflict, "container web")
	expect.NoError(t, s.DeleteContainer(ctx, c.ID))
	expect.Code(t, s.DeleteImage(ctx, img.ID), warmboot.Conflict, string(snap.ID))
	expect.NoError(t, s.DeleteSnapshot(ctx, snap.ID))
	expect.NoError(t, s.DeleteImage(ctx, img.ID))
	_, err := s.Image(ctx, img.ID)
	expect.Code(t, err, warmboot.NotFound)
	expect.Code(t, s.DeleteImage(ctx, img.ID), warmboot.NotFound)

	all, err := s.Images(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, len(all), 0)
	expect.Code(t, s.CreateContainer(ctx, container(img, "late")), warmboot.NotFound)

	left, err := s.Snapshot(ctx, snap.ID) // its files may still have to be removed, and are found by the image's id
	expect.NoError(t, err)
	wantEqual(t, left.State, warmboot.SnapshotDeleted)
	wantEqual(t, left.RuntimeImageID, img.ID)
	newImage(t, s, "runtime") // the name is free
	expect.NoError(t, s.ForgetSnapshot(ctx, snap.ID))
	expect.NoError(t, s.CreateImage(ctx, &warmboot.Image{ID: img.ID, Name: "again", CreatedAt: now()})) // nothing is left of it
}
