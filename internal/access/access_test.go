package access

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"warmboot"
)

// later makes a Keeper think that time has passed since the store was asked.
func later(k *Keeper, d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for digest, e := range k.known {
		e.at = e.at.Add(-d)
		k.known[digest] = e
	}
}

func TestSecretsAreRandomAndRecognised(t *testing.T) {
	t.Parallel()
	form := regexp.MustCompile(`^wbt_[0-9a-f]{64}$`)
	seen := map[string]bool{}
	for range 100 {
		s := newSecret()
		if !form.MatchString(s) || !WellFormed(s) || seen[s] {
			t.Fatal(s)
		}
		seen[s] = true
	}
	one := newSecret()
	for _, bad := range []string{"", "wbt_", one[:67], one + "0", one[4:], "wbt_" + strings.Repeat("g", 64), "WBT_" + one[4:], " " + one} {
		if WellFormed(bad) {
			t.Errorf("%q counts for a secret", bad)
		}
	}
}

func TestOnlyADigestIsStored(t *testing.T) {
	r := newRig(t, nil)
	token, secret, err := r.k.CreateToken(t.Context(), Anonymous, "ci", warmboot.RoleOperator, 0)
	r.must(err)
	// echo -n SECRET | sha256sum
	if token.Digest == "" || strings.Contains(secret, token.Digest) || token.Digest != digestOf(secret) || len(token.Digest) != 64 || token.CreatedBy != "--auth=none" {
		t.Errorf("%+v", token)
	}
	who, err := r.k.Authenticate(t.Context(), secret)
	r.must(err)
	if who.ID != token.ID || who.Name != "ci" || who.Role != warmboot.RoleOperator {
		t.Errorf("%+v", who)
	}
	_, err = r.k.Authenticate(t.Context(), token.Digest)
	r.wantCode(err, warmboot.Unauthenticated)
	_, err = r.k.Authenticate(t.Context(), Prefix+token.Digest)
	r.wantCode(err, warmboot.Unauthenticated)
}

func TestDigestIsSHA256(t *testing.T) {
	t.Parallel()
	// The first test vector of FIPS 180-2, appendix B.
	if got := digestOf("abc"); got != "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" {
		t.Error(got)
	}
}

func TestStaticToken(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Static = "s3cret" })
	who, err := r.k.Authenticate(t.Context(), "s3cret")
	r.must(err)
	if who.Role != warmboot.RoleAdmin || who.ID != "" || warmboot.ValidateTokenName(who.Name) == nil {
		t.Errorf("%+v", who)
	}
	for _, wrong := range []string{"", "s3cre", "s3cret2", "S3cret"} {
		_, err := r.k.Authenticate(t.Context(), wrong)
		r.wantCode(err, warmboot.Unauthenticated)
	}
	without := r.keeper(nil)
	for _, secret := range []string{"", "s3cret"} {
		_, err := without.Authenticate(t.Context(), secret)
		r.wantCode(err, warmboot.Unauthenticated)
	}
}

func TestNobodyCanBeMistakenForThoseWithoutAToken(t *testing.T) {
	r := newRig(t, nil)
	for _, who := range []Principal{Anonymous, static, itself} {
		_, _, err := r.k.CreateToken(t.Context(), Anonymous, who.Name, warmboot.RoleViewer, 0)
		r.wantCode(err, warmboot.Invalid)
	}
}

func TestKnown(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Static = Prefix + strings.Repeat("0", 64) })
	_, secret, err := r.k.CreateToken(t.Context(), Anonymous, "ci", warmboot.RoleViewer, 0)
	r.must(err)
	if r.k.Known(secret) || r.k.Known("") {
		t.Error("somebody is known before they have come")
	}
	for _, s := range []string{secret, Prefix + strings.Repeat("0", 64)} {
		_, err = r.k.Authenticate(t.Context(), s)
		r.must(err)
	}
	if !r.k.Known(secret) || r.k.Known(Prefix+strings.Repeat("0", 64)) {
		t.Error("who has come is not known, or the static token is told")
	}
	r.must(r.k.RevokeToken(t.Context(), "ci"))
	if r.k.Known(secret) {
		t.Error("who is revoked is known")
	}
	root := t.TempDir()
	r.must(r.k.EnsureLocal(t.Context(), root, "box"))
	if local, _, err := ReadLocal(root); err != nil || !r.k.Known(local) {
		t.Errorf("the local token is not known from the start: %v", err)
	}
}

func TestRevokedHereIsRefusedAtOnce(t *testing.T) {
	r := newRig(t, nil)
	token, secret, err := r.k.CreateToken(t.Context(), Anonymous, "ci", warmboot.RoleViewer, 0)
	r.must(err)
	who, err := r.k.Authenticate(t.Context(), secret)
	r.must(err)
	ctx, done := r.k.Session(t.Context(), who)
	defer done()
	r.must(r.k.RevokeToken(t.Context(), string(token.ID)))
	_, err = r.k.Authenticate(t.Context(), secret)
	r.wantCode(err, warmboot.Unauthenticated, "revoked")
	select {
	case <-ctx.Done():
		r.wantCode(context.Cause(ctx), warmboot.Unauthenticated)
	default:
		t.Error("its session goes on")
	}
}

func TestRevokedByAnotherManager(t *testing.T) {
	r := newRig(t, nil)
	other := r.keeper(nil)
	_, secret, err := r.k.CreateToken(t.Context(), Anonymous, "ci", warmboot.RoleViewer, 0)
	r.must(err)
	who, err := other.Authenticate(t.Context(), secret)
	r.must(err)
	ctx, done := other.Session(t.Context(), who)
	defer done()
	_, kept, err := r.k.CreateToken(t.Context(), Anonymous, "kept", warmboot.RoleViewer, 0)
	r.must(err)
	keptWho, err := other.Authenticate(t.Context(), kept)
	r.must(err)
	keptCtx, keptDone := other.Session(t.Context(), keptWho)
	defer keptDone()

	r.must(r.k.RevokeToken(t.Context(), "ci"))
	if _, err = other.Authenticate(t.Context(), secret); err != nil {
		t.Errorf("what the store said a moment ago is not believed: %v", err)
	}
	later(other, freshFor)
	_, err = other.Authenticate(t.Context(), secret)
	r.wantCode(err, warmboot.Unauthenticated, "revoked")
	if ctx.Err() != nil {
		t.Error("the session has ended by itself")
	}
	other.endStaleSessions(t.Context())
	if ctx.Err() == nil || keptCtx.Err() != nil {
		t.Errorf("sessions: of the revoked token %v, of the other %v", ctx.Err(), keptCtx.Err())
	}
}

// TestRevocationBeatsALookupUnderWay has a store that answers only once the token is revoked.
func TestRevocationBeatsALookupUnderWay(t *testing.T) {
	r := newRig(t, nil)
	slow := &slowStore{Store: r.store, found: make(chan struct{}), goOn: make(chan struct{})}
	k := r.keeper(func(c *Config) { c.Store = slow })
	_, secret, err := k.CreateToken(t.Context(), Anonymous, "ci", warmboot.RoleViewer, 0)
	r.must(err)
	ended := make(chan error)
	go func() {
		_, err := k.Authenticate(context.Background(), secret)
		ended <- err
	}()
	<-slow.found
	r.must(k.RevokeToken(t.Context(), "ci"))
	close(slow.goOn)
	if err := <-ended; err != nil {
		t.Errorf("it was valid when it was looked for: %v", err)
	}
	_, err = k.Authenticate(t.Context(), secret)
	r.wantCode(err, warmboot.Unauthenticated)
}

type slowStore struct {
	Store
	found, goOn chan struct{}
}

func (s *slowStore) TokenByDigest(ctx context.Context, digest string) (*warmboot.Token, error) {
	t, err := s.Store.TokenByDigest(ctx, digest)
	select {
	case <-s.goOn:
	default:
		close(s.found)
		<-s.goOn
	}
	return t, err
}

func TestExpiry(t *testing.T) {
	r := newRig(t, nil)
	soon := 3 * time.Second // in which it is authenticated, on a busy machine too
	_, secret, err := r.k.CreateToken(t.Context(), Anonymous, "short", warmboot.RoleViewer, soon)
	r.must(err)
	who, err := r.k.Authenticate(t.Context(), secret)
	r.must(err)
	ctx, done := r.k.Session(t.Context(), who)
	defer done()
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("its session goes on")
	}
	_, err = r.k.Authenticate(t.Context(), secret) // although it is remembered
	r.wantCode(err, warmboot.Unauthenticated, "short expired on", "warmboot token create")
	_, _, err = r.k.CreateToken(t.Context(), Anonymous, "x", warmboot.RoleViewer, -time.Second)
	r.wantCode(err, warmboot.Invalid)
	_, _, err = r.k.CreateToken(t.Context(), Anonymous, "x", "root", 0)
	r.wantCode(err, warmboot.Invalid, "viewer, operator or admin")
}

func TestWhoIsKnownStaysKnownWhileTheDatabaseIsGone(t *testing.T) {
	r := newRig(t, nil)
	_, secret, err := r.k.CreateToken(t.Context(), Anonymous, "prometheus", warmboot.RoleViewer, 0)
	r.must(err)
	_, unseen, err := r.k.CreateToken(t.Context(), Anonymous, "unseen", warmboot.RoleViewer, 0)
	r.must(err)
	_, short, err := r.k.CreateToken(t.Context(), Anonymous, "short", warmboot.RoleViewer, time.Minute)
	r.must(err)
	for _, s := range []string{secret, short} {
		_, err = r.k.Authenticate(t.Context(), s)
		r.must(err)
	}
	r.must(r.store.Close())
	later(r.k, time.Hour)
	if _, err = r.k.Authenticate(t.Context(), secret); err != nil {
		t.Error(err)
	}
	_, err = r.k.Authenticate(t.Context(), unseen)
	r.wantCode(err, warmboot.Unavailable)
	r.k.mu.Lock()
	past := time.Now().Add(-time.Second)
	r.k.known[digestOf(short)].token.ExpiresAt = &past // instead of waiting
	r.k.mu.Unlock()
	_, err = r.k.Authenticate(t.Context(), short)
	r.wantCode(err, warmboot.Unauthenticated, "expired")
	r.k.endStaleSessions(t.Context()) // throws nobody out
	if _, err = r.k.Authenticate(t.Context(), secret); err != nil {
		t.Error(err)
	}
}

func TestUseIsStoredNowAndThen(t *testing.T) {
	r := newRig(t, nil)
	_, secret, err := r.k.CreateToken(t.Context(), Anonymous, "ci", warmboot.RoleViewer, 0)
	r.must(err)
	stored := func() *time.Time {
		token, err := r.store.FindToken(t.Context(), "ci")
		r.must(err)
		return token.LastUsedAt
	}
	for range 10 {
		_, err = r.k.Authenticate(t.Context(), secret)
		r.must(err)
	}
	if at := stored(); at != nil {
		t.Errorf("a request has written to the database: %s", at)
	}
	listed, err := r.k.Tokens(t.Context(), warmboot.Page{})
	r.must(err)
	one, err := r.k.Token(t.Context(), "ci")
	r.must(err)
	if listed[0].LastUsedAt == nil || one.LastUsedAt == nil || time.Since(*one.LastUsedAt) > time.Minute {
		t.Errorf("%+v, %+v", listed[0], one)
	}
	// What cannot be stored is kept.
	r.sql(`ALTER TABLE api_tokens RENAME TO elsewhere`)
	r.k.storeUse(t.Context())
	r.sql(`ALTER TABLE elsewhere RENAME TO api_tokens`)
	if !strings.Contains(r.log.String(), "tried again") {
		t.Errorf("the log is %s", r.log)
	}
	r.k.Close()
	if at := stored(); at == nil || !at.Equal(one.LastUsedAt.UTC().Truncate(time.Microsecond)) {
		t.Errorf("stored is %v, want %s", at, one.LastUsedAt)
	}
}

func TestOldEntriesGo(t *testing.T) {
	r := newRig(t, nil)
	for _, age := range []time.Duration{3 * time.Hour, time.Hour + time.Minute, 59 * time.Minute, 0} {
		r.must(r.store.BeginAudit(t.Context(), &warmboot.AuditEntry{At: time.Now().Add(-age), Operation: age.String()}))
	}
	r.keeper(func(c *Config) { c.AuditRetention = time.Hour }) // it begins with that
	var left []*warmboot.AuditEntry
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); ; <-tick.C {
		var err error
		left, err = r.k.Entries(t.Context(), 0, 10)
		r.must(err)
		if len(left) <= 2 || time.Now().After(deadline) {
			break
		}
	}
	if len(left) != 2 || left[0].Operation != "0s" || left[1].Operation != "59m0s" {
		t.Errorf("%+v", left)
	}
}

// TestCloseGivesWhatGoesOnItsOutcome has a shell that would go on for ever.
func TestCloseGivesWhatGoesOnItsOutcome(t *testing.T) {
	r := newRig(t, nil)
	for _, who := range []Principal{Anonymous, static, {ID: warmboot.NewID(), Name: "ci", Role: warmboot.RoleOperator}} {
		k := r.keeper(nil)
		ctx, done := k.Session(t.Context(), who)
		change, err := k.Begin(ctx, who, warmboot.AuditEntry{Operation: "exec-container"})
		r.must(err)
		go func() {
			defer done()
			<-ctx.Done()
			change.End(string(warmboot.CodeOf(ctx.Err())))
		}()
		k.Close()
		entries, err := r.k.Entries(t.Context(), 0, 1)
		r.must(err)
		if e := entries[0]; e.Actor != who.Name || e.Outcome != "canceled" || e.FinishedAt == nil {
			t.Errorf("%+v", e)
		}
		_, err = k.Begin(t.Context(), who, warmboot.AuditEntry{})
		r.wantCode(err, warmboot.Unavailable, "ending")
	}
}
