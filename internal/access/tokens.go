package access

import (
	"context"
	"strings"
	"time"

	"warmboot"
)

const opCreate = "create token"

// localPrefix begins the names of the tokens that servers make for their own machines.
const localPrefix = "local-"

// CreateToken makes a token that is good for ttl, or for ever if that is 0. The secret is given this once.
func (k *Keeper) CreateToken(ctx context.Context, by Principal, name string, role warmboot.Role, ttl time.Duration) (*warmboot.Token, string, error) {
	if strings.HasPrefix(name, localPrefix) {
		return nil, "", warmboot.Errorf(warmboot.Invalid, opCreate, "names that begin with %s are for the tokens that servers make for their own machines; choose another name", localPrefix)
	}
	return k.createToken(ctx, by, name, role, ttl)
}

func (k *Keeper) createToken(ctx context.Context, by Principal, name string, role warmboot.Role, ttl time.Duration) (*warmboot.Token, string, error) {
	if err := warmboot.ValidateTokenName(name); err != nil {
		return nil, "", err
	}
	if !role.Valid() {
		return nil, "", warmboot.Errorf(warmboot.Invalid, opCreate, "there is no role %.40q; use viewer, operator or admin", role)
	}
	if ttl < 0 {
		return nil, "", warmboot.Errorf(warmboot.Invalid, opCreate, "a token cannot expire before it is made; use a time like 720h, or none")
	}
	secret := newSecret()
	t := &warmboot.Token{ID: warmboot.NewID(), Name: name, Role: role, Digest: digestOf(secret), CreatedAt: time.Now().UTC().Truncate(time.Microsecond), CreatedBy: by.Name}
	if ttl > 0 {
		end := t.CreatedAt.Add(ttl)
		t.ExpiresAt = &end
	}
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		r.keepSecret(secret)
	}
	if err := k.store.CreateToken(ctx, t); err != nil {
		return nil, "", err
	}
	return t, secret, nil
}

// Tokens are newest first, with their last uses up to now.
func (k *Keeper) Tokens(ctx context.Context, p warmboot.Page) ([]*warmboot.Token, error) {
	all, err := k.store.Tokens(ctx, p)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, t := range all {
		k.withUse(t)
	}
	return all, err
}

// Token finds a token by id or name.
func (k *Keeper) Token(ctx context.Context, ref string) (*warmboot.Token, error) {
	t, err := k.store.FindToken(ctx, ref)
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.withUse(t)
	return t, nil
}

// withUse adds a use that is not stored yet.
func (k *Keeper) withUse(t *warmboot.Token) {
	if at, ok := k.used[t.ID]; ok && (t.LastUsedAt == nil || at.After(*t.LastUsedAt)) {
		t.LastUsedAt = &at
	}
}

// RevokeToken takes a token back, by id or name, if the conditions hold. It is refused from now on, and what is being answered to it ends.
func (k *Keeper) RevokeToken(ctx context.Context, ref string, conditions ...func(*warmboot.Token) error) error {
	t, err := k.store.FindToken(ctx, ref)
	if err != nil {
		return err
	}
	for _, condition := range conditions { // on what never changes, of a token that is then removed by its id
		if err := condition(t); err != nil {
			return err
		}
	}
	err = k.store.DeleteToken(ctx, t.ID)
	if err != nil && warmboot.CodeOf(err) != warmboot.NotFound {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.revoked++
	delete(k.known, t.Digest)
	delete(k.used, t.ID)
	k.endSessions(t.ID, errUnknown())
	return err
}
