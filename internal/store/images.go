package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"warmboot"
)

const (
	imageColumns = `id, name, kernel_path, initrd_path, rootfs_path, digest, size_bytes, recipe, created_at`
	selectImage  = `SELECT ` + imageColumns + ` FROM images WHERE deleted_at IS NULL`
)

func scanImage(row scanner) (*warmboot.Image, error) {
	img := &warmboot.Image{}
	return img, row.Scan(&img.ID, &img.Name, &img.KernelPath, &img.InitrdPath, &img.RootfsPath, &img.Digest, &img.SizeBytes, &img.Recipe, timeInto{&img.CreatedAt})
}

// CreateImage implements warmboot.ImageStore.
func (s *Store) CreateImage(ctx context.Context, img *warmboot.Image) error {
	const op = "register image"
	return s.create(ctx, op, img.ID, func(tx *sql.Tx) error {
		if err := imageNameFree(ctx, tx, op, img.Name); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO images (`+imageColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
			string(img.ID), img.Name, img.KernelPath, img.InitrdPath, img.RootfsPath, img.Digest, img.SizeBytes, img.Recipe, stamp(img.CreatedAt))
		return err
	})
}

// imageNameFree reports a Conflict if an image has the name already.
func imageNameFree(ctx context.Context, tx *sql.Tx, op, name string) error {
	other, err := scanImage(tx.QueryRowContext(ctx, selectImage+` AND name = $1`, name))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return warmboot.Errorf(warmboot.Conflict, op, "the name %s is taken by image %s, which has other content; choose another name, or delete that image", name, other.ID)
}

// Image implements warmboot.ImageStore.
func (s *Store) Image(ctx context.Context, id warmboot.ID) (*warmboot.Image, error) {
	return s.image(ctx, s.read, `id`, string(id), "")
}

// ImageByName implements warmboot.ImageStore.
func (s *Store) ImageByName(ctx context.Context, name string) (*warmboot.Image, error) {
	return s.image(ctx, s.read, `name`, name, "")
}

func (s *Store) image(ctx context.Context, q querier, column, value, lock string) (*warmboot.Image, error) {
	const op = "find image"
	img, err := scanImage(q.QueryRowContext(ctx, selectImage+` AND `+column+` = $1`+lock, value))
	if errors.Is(err, sql.ErrNoRows) {
		return nil, warmboot.Errorf(warmboot.NotFound, op, "there is no runtime image %.80s; `warmboot image ls` lists them", value)
	}
	if err != nil {
		return nil, s.fail(ctx, op, err)
	}
	return img, nil
}

// Images implements warmboot.ImageStore.
func (s *Store) Images(ctx context.Context, p warmboot.Page) ([]*warmboot.Image, error) {
	var c conditions
	c.add(`deleted_at IS NULL`)
	return page(ctx, s, "list images", scanImage, `SELECT `+imageColumns+` FROM images`, c, p)
}

// UpdateImage implements warmboot.ImageStore.
func (s *Store) UpdateImage(ctx context.Context, id warmboot.ID, change func(*warmboot.Image) error) (*warmboot.Image, error) {
	const op = "update image"
	var img *warmboot.Image
	err := s.tx(ctx, op, func(tx *sql.Tx) (err error) {
		if img, err = s.image(ctx, tx, `id`, string(id), s.dialect.forUpdate); err != nil {
			return err
		}
		was := img.Name
		if err := change(img); err != nil || img.Name == was {
			return err
		}
		if err := imageNameFree(ctx, tx, op, img.Name); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE images SET name = $1 WHERE id = $2`, img.Name, string(id))
		return err
	})
	if err != nil {
		return nil, err
	}
	return img, nil
}

// holds reports the error of the first condition that does not.
func holds[E any](entity E, conditions []func(E) error) error {
	for _, condition := range conditions {
		if err := condition(entity); err != nil {
			return err
		}
	}
	return nil
}

// DeleteImage implements warmboot.ImageStore.
func (s *Store) DeleteImage(ctx context.Context, id warmboot.ID, conditions ...func(*warmboot.Image) error) error {
	const op = "delete image"
	return s.tx(ctx, op, func(tx *sql.Tx) error {
		img, err := s.image(ctx, tx, `id`, string(id), s.dialect.forUpdate)
		if err != nil {
			return err
		}
		if err := holds(img, conditions); err != nil {
			return err
		}
		for _, user := range []struct{ what, query, remedy string }{
			{"container", `SELECT name FROM containers WHERE runtime_image_id = $1 ORDER BY created_at LIMIT 1`, "warmboot rm"},
			{"snapshot", `SELECT CAST(id AS TEXT) FROM runtime_snapshots WHERE runtime_image_id = $1 AND state <> 'deleted' ORDER BY created_at LIMIT 1`, "warmboot snapshot rm"},
		} {
			var name string
			err := tx.QueryRowContext(ctx, user.query, string(id)).Scan(&name)
			if err == nil {
				return warmboot.Errorf(warmboot.Conflict, op, "%s %s uses image %s; delete it first, with `%s %s`", user.what, name, img.Name, user.remedy, name)
			}
			if !errors.Is(err, sql.ErrNoRows) {
				return err
			}
		}
		if _, err := tx.ExecContext(ctx, `UPDATE images SET deleted_at = $1 WHERE id = $2`, stamp(time.Now()), string(id)); err != nil {
			return err
		}
		return purgeImages(ctx, tx)
	})
}

// purgeImages removes deleted images that no snapshot refers to any more.
func purgeImages(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM images WHERE deleted_at IS NOT NULL AND NOT EXISTS (SELECT 1 FROM runtime_snapshots s WHERE s.runtime_image_id = images.id)`)
	return err
}

// lockImage makes others that want the image's row wait for the end of the transaction. The image may be deleted.
func lockImage(ctx context.Context, tx *sql.Tx, id warmboot.ID, lock string) error {
	var found string
	return tx.QueryRowContext(ctx, `SELECT CAST(id AS TEXT) FROM images WHERE id = $1`+lock, string(id)).Scan(&found)
}
