package access

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"time"

	"warmboot"
)

// Principal is who asks.
type Principal struct {
	ID      warmboot.ID // of the token; empty for who has none of the stored ones
	Name    string
	Role    warmboot.Role
	Expires *time.Time // nil: never
}

// Those who have no stored token. No token can be called so.
var (
	Anonymous = Principal{Name: "--auth=none", Role: warmboot.RoleAdmin}        // everybody, where no token is asked for
	static    = Principal{Name: "$MANAGER_API_TOKEN", Role: warmboot.RoleAdmin} // who has the token of the configuration
	itself    = Principal{Name: "warmboot serve", Role: warmboot.RoleAdmin}     // the server
)

const (
	// freshFor is how long what the store has said of a token is taken for true. So long may a token that another manager has
	// revoked be used here; one that is revoked here is refused at once.
	freshFor = 10 * time.Second
	// recheckTimeout bounds how long somebody who is known already waits for a store that does not answer.
	recheckTimeout = 2 * time.Second
)

// known is what the store has said of a token.
type known struct {
	token *warmboot.Token
	at    time.Time
}

const opAuthenticate = "check token"

// Authenticate tells whose secret it is. One that is unknown or has expired is Unauthenticated.
//
// While the store does not answer, whoever was known before stays known: nobody can be revoked then either, and those who watch
// the server must be able to ask it what is wrong.
func (k *Keeper) Authenticate(ctx context.Context, secret string) (Principal, error) {
	if k.static != nil {
		// Digests have one length, so that the comparison tells nothing about the secret's.
		if sent := sha256.Sum256([]byte(secret)); subtle.ConstantTimeCompare(sent[:], k.static[:]) == 1 {
			return static, nil
		}
	}
	if !WellFormed(secret) {
		return Principal{}, errUnknown()
	}
	token, err := k.lookup(ctx, digestOf(secret))
	if err != nil {
		return Principal{}, err
	}
	now := time.Now()
	if token.Expired(now) {
		return Principal{}, warmboot.Errorf(warmboot.Unauthenticated, opAuthenticate, "the token %s expired on %s; ask an admin for a new one, which `warmboot token create` makes", token.Name, token.ExpiresAt.Format(time.RFC3339))
	}
	k.mu.Lock()
	k.used[token.ID] = now
	k.mu.Unlock()
	return Principal{ID: token.ID, Name: token.Name, Role: token.Role, Expires: token.ExpiresAt}, nil
}

// Known tells, without asking the store, whether a secret was lately that of a stored token. It says nothing of the static token, because
// who guesses at that must not learn anything.
func (k *Keeper) Known(secret string) bool {
	if !WellFormed(secret) {
		return false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.known[digestOf(secret)]
	return ok
}

func errUnknown() error {
	return warmboot.Errorf(warmboot.Unauthenticated, opAuthenticate, "this server does not know the token: it was revoked, or is another server's; `warmboot token create` makes one, and root on the server's machine needs none if MANAGER_STORAGE_ROOT is the server's")
}

// lookup finds a token, in memory or in the store.
func (k *Keeper) lookup(ctx context.Context, digest string) (*warmboot.Token, error) {
	k.mu.Lock()
	before, have := k.known[digest]
	revoked := k.revoked
	k.mu.Unlock()
	if have && time.Since(before.at) < freshFor {
		return before.token, nil
	}
	asked := ctx
	if have {
		var cancel context.CancelFunc
		asked, cancel = context.WithTimeout(ctx, recheckTimeout)
		defer cancel()
	}
	token, err := k.store.TokenByDigest(asked, digest)
	code := warmboot.CodeOf(err)
	if have && ctx.Err() == nil && (code == warmboot.Unavailable || code == warmboot.Timeout) {
		token, err = before.token, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case code == warmboot.NotFound:
		delete(k.known, digest)
		return nil, errUnknown()
	case err != nil:
		return nil, &warmboot.Error{Code: warmboot.CodeOf(err), Op: opAuthenticate, Err: err}
	case k.revoked == revoked:
		k.known[digest] = known{token, time.Now()}
	}
	return token, nil
}

// session is one request that is being answered.
type session struct{ end context.CancelCauseFunc }

// Session returns a context that also ends when the token of who asks expires or is revoked, so that no stream or shell outlives the
// right to it, and when the Keeper closes. done must be called.
func (k *Keeper) Session(ctx context.Context, who Principal) (_ context.Context, done func()) {
	stop := func() {}
	if who.Expires != nil {
		ctx, stop = context.WithDeadline(ctx, *who.Expires)
	}
	ctx, end := context.WithCancelCause(ctx)
	s := &session{end}
	k.mu.Lock()
	if k.sessions[who.ID] == nil {
		k.sessions[who.ID] = map[*session]struct{}{}
	}
	k.sessions[who.ID][s] = struct{}{}
	k.mu.Unlock()
	return ctx, func() {
		k.mu.Lock()
		if delete(k.sessions[who.ID], s); len(k.sessions[who.ID]) == 0 {
			delete(k.sessions, who.ID)
		}
		k.mu.Unlock()
		end(nil)
		stop()
	}
}

// endSessions ends what is being answered to who has a token.
func (k *Keeper) endSessions(id warmboot.ID, why error) {
	for s := range k.sessions[id] {
		s.end(why)
	}
}

// endStaleSessions ends the sessions of tokens that another manager has revoked, and forgets those tokens.
func (k *Keeper) endStaleSessions(ctx context.Context) {
	all, err := k.store.Tokens(ctx, warmboot.Page{})
	if err != nil {
		return // nobody is thrown out because the store does not answer
	}
	valid := map[warmboot.ID]bool{}
	for _, t := range all {
		valid[t.ID] = true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for digest, e := range k.known {
		if !valid[e.token.ID] {
			delete(k.known, digest)
		}
	}
	for id := range k.sessions {
		if id != "" && !valid[id] {
			k.endSessions(id, errUnknown())
		}
	}
}
