package access

import (
	"context"
	"log/slog"
	"time"

	"warmboot"
)

// writeTimeout bounds what is written when nobody waits for it any more.
const writeTimeout = 5 * time.Second

// Change is a change that somebody has asked for and that is being made.
type Change struct {
	k *Keeper
	e warmboot.AuditEntry
}

// Begin writes down that a change begins. If that fails, the change must not be made: one that nobody could find again is worse than
// one that has to wait, and a store that takes no entry would not take the change either.
func (k *Keeper) Begin(ctx context.Context, who Principal, e warmboot.AuditEntry) (*Change, error) {
	k.mu.Lock()
	if k.closing {
		k.mu.Unlock()
		return nil, errClosing
	}
	k.changes.Add(1)
	k.mu.Unlock()
	e.At, e.Actor, e.ActorID, e.Role = time.Now().UTC(), who.Name, who.ID, who.Role
	if err := k.store.BeginAudit(ctx, &e); err != nil {
		k.changes.Done()
		return nil, &warmboot.Error{Code: warmboot.CodeOf(err), Op: e.Operation, Msg: "nothing was changed, because the audit log cannot be written", Err: err}
	}
	return &Change{k, e}, nil
}

// Entity is what the change is about, as far as that is known. Empty values leave it as it is.
func (c *Change) Entity(id, name string) {
	if id != "" {
		c.e.EntityID = id
	}
	if name != "" {
		c.e.EntityName = name
	}
}

// End writes down, once, how the change went: warmboot.AuditOK, or the code of its error. A failure to write is logged with all that would
// have been written; the entry then stays without an outcome.
func (c *Change) End(outcome string) {
	defer c.k.changes.Done()
	now := time.Now().UTC()
	c.e.Outcome, c.e.FinishedAt = outcome, &now
	c.k.tell(slog.LevelInfo, "Audit", c.e)
	// Whoever asked may be gone.
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	if err := c.k.store.FinishAudit(ctx, &c.e); err != nil {
		c.k.tell(slog.LevelError, "The outcome of a change is missing in the audit log", c.e, "err", err)
	}
}

// Refused logs that somebody asked for what they may not. It goes to the log only, so that nobody can fill the store with
// what they are not allowed to do.
func (k *Keeper) Refused(who Principal, e warmboot.AuditEntry) {
	e.Actor, e.ActorID, e.Role, e.Outcome = who.Name, who.ID, who.Role, string(warmboot.Denied)
	k.tell(slog.LevelWarn, "Audit", e)
}

func (k *Keeper) tell(level slog.Level, msg string, e warmboot.AuditEntry, more ...any) {
	k.log.Log(context.Background(), level, msg, append([]any{
		"actor", e.Actor, "actor_id", e.ActorID, "role", e.Role, "operation", e.Operation, "entity_type", e.EntityType, "entity_id", e.EntityID, "entity_name", e.EntityName,
		"source", e.Source, "request_id", e.RequestID, "outcome", e.Outcome,
	}, more...)...)
}

// Entries are newest first: at most limit of those before the entry with the id before, or of all if that is 0.
func (k *Keeper) Entries(ctx context.Context, before int64, limit int) ([]*warmboot.AuditEntry, error) {
	return k.store.AuditEntries(ctx, before, limit)
}

// prune removes the entries and receipts that are older than they need to be.
func (k *Keeper) prune(ctx context.Context) {
	if _, err := k.store.PruneReceipts(ctx, time.Now().Add(-warmboot.ReceiptsKept)); err != nil && ctx.Err() == nil {
		k.log.Warn("Old receipts of requests could not be removed; it is tried again in an hour", "err", err)
	}
	n, err := k.store.PruneAudit(ctx, time.Now().Add(-k.retention))
	switch {
	case err != nil && ctx.Err() == nil:
		k.log.Warn("Old entries of the audit log could not be removed; it is tried again in an hour", "err", err)
	case n > 0:
		k.log.Info("Old entries of the audit log were removed", "entries", n, "older_than", k.retention)
	}
}
