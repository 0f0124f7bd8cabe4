package storetest

import (
	"errors"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
)

func testAuthority(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	_, err := s.Authority(ctx, func() (*warmboot.Authority, error) { return nil, errors.New("no entropy") })
	if err == nil {
		t.Fatal("no error")
	}
	// Many managers start at once: all have the same one.
	const managers = 8
	got := make([]*warmboot.Authority, managers)
	var wg sync.WaitGroup
	for i := range managers {
		wg.Go(func() {
			a, err := s.Authority(ctx, func() (*warmboot.Authority, error) {
				return &warmboot.Authority{Certificate: string(rune('a' + i)), Key: "k", CreatedAt: now()}, nil
			})
			if err != nil {
				t.Error(err)
			}
			got[i] = a
		})
	}
	wg.Wait()
	for _, a := range got {
		wantEqual(t, a, got[0])
	}
}

func testJoinTokens(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	at := now()
	h := newHost(t, s, "a")
	fresh := &warmboot.JoinToken{ID: warmboot.NewID(), Digest: "d1", HostID: h.ID, CreatedBy: "me", CreatedAt: at, ExpiresAt: at.Add(time.Hour)}
	stale := &warmboot.JoinToken{ID: warmboot.NewID(), Digest: "d2", CreatedAt: at, ExpiresAt: at.Add(time.Minute)}
	expect.NoError(t, s.CreateJoinToken(ctx, fresh))
	expect.NoError(t, s.CreateJoinToken(ctx, stale))
	_, err := s.TakeJoinToken(ctx, "absent", at)
	expect.Code(t, err, warmboot.Unauthenticated, "warmboot host token")
	_, err = s.TakeJoinToken(ctx, "d2", at.Add(time.Minute))
	expect.Code(t, err, warmboot.Unauthenticated)
	var mu sync.Mutex
	var got []*warmboot.JoinToken
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			token, err := s.TakeJoinToken(ctx, "d1", at)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				got = append(got, token)
			} else if warmboot.CodeOf(err) != warmboot.Unauthenticated {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	wantEqual(t, got, []*warmboot.JoinToken{fresh})
}
