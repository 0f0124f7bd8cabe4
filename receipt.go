package warmboot

import (
	"context"
	"time"
)

// Receipt says that a request under a key of its caller's choice (the Idempotency-Key header) has had its effect, so that it can be sent
// again without having it twice.
//
// A context carries it to the store (WithReceipt), where a create keeps it in the same transaction as what it makes. So after a crash
// there are both or neither, and of two that come at once, to two managers even, one finds the other's.
type Receipt struct {
	Key       string // digest of who asks, and of the key
	Request   string // digest of what is asked for
	EntityID  ID     // what was made, or was there already; empty until the receipt is stored
	Secret    []byte // what the answer held that is kept nowhere else, sealed; nil: nothing
	CreatedAt time.Time
}

// ReceiptsKept is how long a receipt is kept at least.
const ReceiptsKept = 24 * time.Hour

// Repeated is the cause of a Conflict when what is to be created was created before, under the same key.
type Repeated struct{ Receipt *Receipt }

func (r *Repeated) Error() string { return "a request with this key has been carried out before" }

type receiptKey struct{}

// WithReceipt returns a context with which something is created and r is kept, both or neither. It is for one create.
func WithReceipt(ctx context.Context, r *Receipt) context.Context {
	return context.WithValue(ctx, receiptKey{}, r)
}

// ReceiptOf is the receipt that a create has to keep, nil if there is none.
func ReceiptOf(ctx context.Context) *Receipt {
	r, _ := ctx.Value(receiptKey{}).(*Receipt)
	return r
}
