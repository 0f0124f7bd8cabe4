package storetest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
)

func receipt(key string) *warmboot.Receipt {
	return &warmboot.Receipt{Key: key, Request: "r-" + key, CreatedAt: now()}
}

// wantRepeated fails the test unless err tells of the receipt that is stored.
func wantRepeated(t *testing.T, err error, want *warmboot.Receipt) {
	t.Helper()
	expect.Code(t, err, warmboot.Conflict)
	var repeated *warmboot.Repeated
	if !errors.As(err, &repeated) {
		t.Fatalf("%v does not tell of the first", err)
	}
	wantEqual(t, repeated.Receipt, want)
}

// testReceipts creates each kind of thing twice with the same key: the second time there is another entity to create, and none is created.
func testReceipts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	for kind, create := range map[string]func(ctx context.Context, n int) (warmboot.ID, error){
		"container": func(ctx context.Context, n int) (warmboot.ID, error) {
			c := container(img, fmt.Sprintf("c%d", n))
			return c.ID, s.CreateContainer(ctx, c)
		},
		"snapshot": func(ctx context.Context, n int) (warmboot.ID, error) {
			snap := snapshot(img, fmt.Sprint(n))
			return snap.ID, s.CreateSnapshot(ctx, snap)
		},
		"image": func(ctx context.Context, n int) (warmboot.ID, error) {
			img := &warmboot.Image{ID: warmboot.NewID(), Name: fmt.Sprintf("i%d", n), CreatedAt: now()}
			return img.ID, s.CreateImage(ctx, img)
		},
		"token": func(ctx context.Context, n int) (warmboot.ID, error) {
			token := &warmboot.Token{ID: warmboot.NewID(), Name: fmt.Sprintf("t%d", n), Role: warmboot.RoleViewer, Digest: fmt.Sprint(n), CreatedAt: now()}
			return token.ID, s.CreateToken(ctx, token)
		},
	} {
		first := receipt(kind)
		first.Secret = []byte{0, 255, 1}
		id, err := create(warmboot.WithReceipt(ctx, first), 1)
		expect.NoError(t, err)
		wantEqual(t, first.EntityID, id)
		got, err := s.Receipt(ctx, kind)
		expect.NoError(t, err)
		wantEqual(t, got, first)

		second := receipt(kind)
		second.Request = "another"
		_, err = create(warmboot.WithReceipt(ctx, second), 2)
		wantRepeated(t, err, first)
		wantEqual(t, second.EntityID, warmboot.ID(""))
		_, err = create(ctx, 2) // nothing of it is there
		expect.NoError(t, err)
	}
	_, err := s.Receipt(ctx, "nobody's")
	expect.Code(t, err, warmboot.NotFound)

	there := receipt("there")
	expect.NoError(t, s.KeepReceipt(ctx, there, img.ID))
	wantEqual(t, there.EntityID, img.ID)
	wantRepeated(t, s.KeepReceipt(ctx, receipt("there"), warmboot.NewID()), there)

	old := receipt("old")
	old.CreatedAt = now().Add(-time.Hour)
	expect.NoError(t, s.KeepReceipt(ctx, old, img.ID))
	n, err := s.PruneReceipts(ctx, now().Add(-time.Minute))
	expect.NoError(t, err)
	wantEqual(t, n, int64(1))
	_, err = s.Receipt(ctx, "old")
	expect.Code(t, err, warmboot.NotFound)
	_, err = s.Receipt(ctx, "there")
	expect.NoError(t, err)
}

// testReceiptAndEntity has creates fail: there is no receipt of what was not made.
func testReceiptAndEntity(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	web := newContainer(t, s, img, "web", port("127.0.0.1", 80, warmboot.TCP))
	r := receipt("k")
	rctx := warmboot.WithReceipt(ctx, r)
	expect.Code(t, s.CreateContainer(rctx, container(img, "web")), warmboot.Conflict, "web")
	expect.Code(t, s.CreateContainer(rctx, container(img, "other", port("127.0.0.1", 80, warmboot.TCP))), warmboot.Conflict, "80/tcp")
	expect.Code(t, s.CreateImage(rctx, &warmboot.Image{ID: warmboot.NewID(), Name: "runtime", CreatedAt: now()}), warmboot.Conflict, "runtime")
	_, err := s.Receipt(ctx, "k")
	expect.Code(t, err, warmboot.NotFound)
	expect.NoError(t, s.DeleteContainer(ctx, web.ID))
	c := container(img, "web")
	expect.NoError(t, s.CreateContainer(rctx, c))
	wantEqual(t, r.EntityID, c.ID)
	expect.NoError(t, s.DeleteContainer(ctx, c.ID))
	wantRepeated(t, s.CreateContainer(warmboot.WithReceipt(ctx, receipt("k")), container(img, "web")), r) // it was made, whatever became of it
}

// testConcurrentReceipts sends one request many times at once.
func testConcurrentReceipts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	for round, named := range []bool{true, false} {
		key := fmt.Sprintf("k%d", round)
		ids, errs := make([]warmboot.ID, 8), make([]error, 8)
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				name := key
				if !named { // each has made up one of its own
					name = fmt.Sprintf("c%d", i)
				}
				c := container(img, name)
				r := receipt(key)
				errs[i] = s.CreateContainer(warmboot.WithReceipt(ctx, r), c)
				var repeated *warmboot.Repeated
				switch {
				case errs[i] == nil:
					ids[i] = c.ID
				case errors.As(errs[i], &repeated):
					ids[i], errs[i] = repeated.Receipt.EntityID, nil
				}
			})
		}
		wg.Wait()
		all, err := s.Containers(ctx, warmboot.ContainerFilter{})
		expect.NoError(t, err)
		wantEqual(t, len(all), round+1)
		for i, id := range ids {
			expect.NoError(t, errs[i])
			wantEqual(t, id, all[0].ID)
		}
	}
}
