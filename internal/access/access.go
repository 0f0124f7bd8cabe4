// Package access knows who may use the API and remembers who has changed what: tokens with roles, the local admin token
// that a server keeps in a file, the audit log, and the requests that may be sent again. It knows neither HTTP nor SQL.
package access

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"sync"
	"time"

	"warmboot"
)

// Store is what a Keeper keeps things in.
type Store interface {
	warmboot.TokenStore
	warmboot.AuditStore
	warmboot.ReceiptStore
}

// Config is what a Keeper needs.
type Config struct {
	Store Store
	Log   *slog.Logger
	// Static is one more admin token, which is stored nowhere; empty: there is none.
	Static string
	// AuditRetention is how long entries of the audit log are kept; 0 means DefaultAuditRetention.
	AuditRetention time.Duration
}

// DefaultAuditRetention is 90 days.
const DefaultAuditRetention = 90 * 24 * time.Hour

// How often a Keeper does what need not be done at once.
const (
	tickEvery  = time.Minute // last uses are stored, sessions are looked after
	pruneEvery = time.Hour
)

// Keeper decides who somebody is, and writes the audit log. It is safe for concurrent use.
type Keeper struct {
	store     Store
	log       *slog.Logger
	static    *[sha256.Size]byte // digest of Config.Static
	retention time.Duration

	mu       sync.Mutex
	known    map[string]known                      // by digest
	revoked  int                                   // counts revocations, so that no answer from before one is remembered after it
	used     map[warmboot.ID]time.Time             // last uses that are not stored yet
	sessions map[warmboot.ID]map[*session]struct{} // by the id of a token, which is empty for who has none
	closing  bool
	changes  sync.WaitGroup // that are being made

	cancel context.CancelFunc
	ended  sync.WaitGroup
}

// New returns a Keeper, which works in the background until Close.
func New(c Config) *Keeper {
	if c.AuditRetention == 0 {
		c.AuditRetention = DefaultAuditRetention
	}
	ctx, cancel := context.WithCancel(context.Background())
	k := &Keeper{
		store: c.Store, log: c.Log, retention: c.AuditRetention, cancel: cancel,
		known: map[string]known{}, used: map[warmboot.ID]time.Time{}, sessions: map[warmboot.ID]map[*session]struct{}{},
	}
	if c.Static != "" {
		digest := sha256.Sum256([]byte(c.Static))
		k.static = &digest
	}
	k.ended.Go(func() { k.work(ctx) })
	return k
}

// closeTimeout is how long Close waits for changes to end: a store that does not answer must not keep a server from ending.
const closeTimeout = 2 * time.Second

// errClosing is why what is being answered ends, and nothing more begins.
var errClosing = warmboot.Errorf(warmboot.Unavailable, "access", "warmboot is ending; try again when it is back")

// Close ends the sessions, so that changes which go on as long as somebody wants, like a shell, get their outcome in the audit log; then the
// work in the background. It stores the last uses. The store must still be open.
func (k *Keeper) Close() {
	k.mu.Lock()
	k.closing = true
	for id := range k.sessions {
		k.endSessions(id, errClosing)
	}
	k.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		k.changes.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(closeTimeout):
		k.log.Warn("Some changes that are being made will have no outcome in the audit log")
	}
	k.cancel()
	k.ended.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), writeTimeout)
	defer cancel()
	k.storeUse(ctx)
}

func (k *Keeper) work(ctx context.Context) {
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var pruned time.Time
	for {
		if time.Since(pruned) >= pruneEvery {
			pruned = time.Now()
			k.prune(ctx)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		k.storeUse(ctx)
		k.endStaleSessions(ctx)
	}
}

// storeUse stores the last uses of tokens. What cannot be stored is tried again with the next.
func (k *Keeper) storeUse(ctx context.Context) {
	k.mu.Lock()
	used := k.used
	k.used = map[warmboot.ID]time.Time{}
	k.mu.Unlock()
	if len(used) == 0 {
		return
	}
	if err := k.store.TouchTokens(ctx, used); err != nil {
		k.log.Warn("The last uses of tokens could not be stored; they are tried again", "err", err)
		k.mu.Lock()
		defer k.mu.Unlock()
		for id, at := range used {
			if at.After(k.used[id]) {
				k.used[id] = at
			}
		}
	}
}
