package storetest

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
)

func newToken(t *testing.T, s warmboot.Store, name string, role warmboot.Role) *warmboot.Token {
	t.Helper()
	token := &warmboot.Token{ID: warmboot.NewID(), Name: name, Role: role, Digest: strings.ReplaceAll(string(warmboot.NewID()), "-", ""), CreatedAt: now(), CreatedBy: "somebody"}
	expect.NoError(t, s.CreateToken(t.Context(), token))
	return token
}

func testTokens(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	none, err := s.Tokens(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, len(none), 0)
	older := newToken(t, s, "older", warmboot.RoleViewer)
	expiry := now().Add(time.Hour)
	newer := &warmboot.Token{ID: warmboot.NewID(), Name: "newer", Role: warmboot.RoleAdmin, Digest: "d2", CreatedAt: now().Add(time.Second), CreatedBy: "older", ExpiresAt: &expiry}
	expect.NoError(t, s.CreateToken(ctx, newer))
	for ref, want := range map[string]*warmboot.Token{"older": older, string(older.ID): older, strings.ToUpper(string(newer.ID)): newer, "newer": newer} {
		got, err := s.FindToken(ctx, ref)
		expect.NoError(t, err)
		wantEqual(t, got, want)
	}
	got, err := s.TokenByDigest(ctx, "d2")
	expect.NoError(t, err)
	wantEqual(t, got, newer)
	all, err := s.Tokens(ctx, warmboot.Page{})
	expect.NoError(t, err)
	wantEqual(t, all, []*warmboot.Token{newer, older})

	taken := *newer
	taken.ID, taken.Digest = warmboot.NewID(), "d3"
	expect.Code(t, s.CreateToken(ctx, &taken), warmboot.Conflict, "newer", "warmboot token rm newer")
	taken.Name, taken.Digest = "same secret", "d2"
	expect.Code(t, s.CreateToken(ctx, &taken), warmboot.Conflict)

	expect.NoError(t, s.DeleteToken(ctx, newer.ID))
	expect.Code(t, s.DeleteToken(ctx, newer.ID), warmboot.NotFound, string(newer.ID))
	_, err = s.TokenByDigest(ctx, "d2")
	expect.Code(t, err, warmboot.NotFound)
	for _, ref := range []string{"newer", "", "OLDER", "x'; DROP TABLE api_tokens; --", "\x00", "\xff"} {
		_, err = s.FindToken(ctx, ref)
		expect.Code(t, err, warmboot.NotFound)
	}
	expect.NoError(t, s.CreateToken(ctx, newer)) // its name is free again
}

func testTokenUse(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	a, b := newToken(t, s, "a", warmboot.RoleViewer), newToken(t, s, "b", warmboot.RoleViewer)
	at := now()
	wantUse := func(token *warmboot.Token, at *time.Time) {
		t.Helper()
		got, err := s.FindToken(ctx, token.Name)
		expect.NoError(t, err)
		wantEqual(t, got.LastUsedAt, at)
	}
	expect.NoError(t, s.TouchTokens(ctx, map[warmboot.ID]time.Time{a.ID: at, warmboot.NewID(): at}))
	wantUse(a, &at)
	wantUse(b, nil)
	// Another manager has seen it later, and is told of earlier.
	later := at.Add(time.Minute)
	expect.NoError(t, s.TouchTokens(ctx, map[warmboot.ID]time.Time{a.ID: later, b.ID: at}))
	expect.NoError(t, s.TouchTokens(ctx, map[warmboot.ID]time.Time{a.ID: at, b.ID: later}))
	wantUse(a, &later)
	wantUse(b, &later)
	expect.NoError(t, s.TouchTokens(ctx, nil))
}

func testConcurrentTokenNames(t *testing.T, s warmboot.Store) {
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			errs[i] = s.CreateToken(t.Context(), &warmboot.Token{ID: warmboot.NewID(), Name: "ci", Role: warmboot.RoleViewer, Digest: fmt.Sprint(i), CreatedAt: now()})
		})
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		if err == nil {
			made++
			continue
		}
		expect.Code(t, err, warmboot.Conflict, "a token ci")
	}
	wantEqual(t, made, 1)
}

func newAudit(t *testing.T, s warmboot.Store, at time.Time, operation string) *warmboot.AuditEntry {
	t.Helper()
	e := &warmboot.AuditEntry{
		At: at, Actor: "ci", ActorID: warmboot.NewID(), Role: warmboot.RoleOperator, Operation: operation, EntityType: "container", EntityName: "web\x00\xff",
		Source: "2001:db8::1", RequestID: "3f2a9c0d1e4b",
	}
	expect.NoError(t, s.BeginAudit(t.Context(), e))
	e.EntityName = "web\uFFFD\uFFFD" // what a text can hold of it
	return e
}

func testAudit(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	entries := func(before int64, limit int) []*warmboot.AuditEntry {
		t.Helper()
		all, err := s.AuditEntries(ctx, before, limit)
		expect.NoError(t, err)
		return all
	}
	wantEqual(t, len(entries(0, 10)), 0)
	first := newAudit(t, s, now(), "create-container")
	second := newAudit(t, s, now(), "stop-container")
	if first.ID <= 0 || second.ID <= first.ID {
		t.Fatalf("the ids are %d and %d", first.ID, second.ID)
	}
	bare := &warmboot.AuditEntry{At: now(), Actor: "warmboot serve", Role: warmboot.RoleAdmin, Operation: "create-token", EntityType: "token"}
	expect.NoError(t, s.BeginAudit(ctx, bare))
	wantEqual(t, entries(0, 10), []*warmboot.AuditEntry{bare, second, first})

	finished := now()
	second.EntityID, second.EntityName, second.Outcome, second.FinishedAt = string(warmboot.NewID()), "web", warmboot.AuditOK, &finished
	expect.NoError(t, s.FinishAudit(ctx, second))
	wantEqual(t, entries(0, 2), []*warmboot.AuditEntry{bare, second})
	wantEqual(t, entries(second.ID, 2), []*warmboot.AuditEntry{first})
	wantEqual(t, len(entries(first.ID, 2)), 0)
	wantEqual(t, len(entries(1<<62, 10)), 3)
	second.ID = 1 << 40
	expect.Code(t, s.FinishAudit(ctx, second), warmboot.NotFound)
}

func testPruneAudit(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	start := now()
	newAudit(t, s, start.Add(-2*time.Hour), "old")
	newAudit(t, s, start.Add(-time.Hour-time.Microsecond), "old")
	kept := newAudit(t, s, start.Add(-time.Hour), "kept")
	prune := func(before time.Time, want int64) {
		t.Helper()
		n, err := s.PruneAudit(ctx, before)
		expect.NoError(t, err)
		wantEqual(t, n, want)
	}
	prune(start.Add(-time.Hour), 2)
	prune(start.Add(-time.Hour), 0)
	left, err := s.AuditEntries(ctx, 0, 10)
	expect.NoError(t, err)
	wantEqual(t, left, []*warmboot.AuditEntry{kept})
	// A number is not given again, or a cursor could skip what came after it.
	prune(start, 1)
	if next := newAudit(t, s, now(), "next"); next.ID <= kept.ID {
		t.Errorf("entry %d came after entry %d", next.ID, kept.ID)
	}
}
