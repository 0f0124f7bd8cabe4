package warmboot

import (
	"context"
	"time"
)

// Store keeps images, snapshots, containers, tokens and the audit log. One implementation (internal/store) serves every database; storetest
// holds it to this contract. Every method is one transaction. A missing row is a NotFound error, a name or port that is
// taken a Conflict, a database that does not answer Unavailable. Returned entities are the caller's own copies.
type Store interface {
	ImageStore
	SnapshotStore
	ContainerStore
	TokenStore
	AuditStore
}

// ImageStore keeps runtime images.
type ImageStore interface {
	// CreateImage stores a new image. A taken name is a Conflict.
	CreateImage(ctx context.Context, img *Image) error
	Image(ctx context.Context, id ID) (*Image, error)
	ImageByName(ctx context.Context, name string) (*Image, error)
	// Images are newest first.
	Images(ctx context.Context) ([]*Image, error)
	// DeleteImage removes an image that no live snapshot and no container refers to; else it is a Conflict.
	DeleteImage(ctx context.Context, id ID) error
}

// SnapshotStore keeps runtime snapshots.
type SnapshotStore interface {
	CreateSnapshot(ctx context.Context, s *RuntimeSnapshot) error
	Snapshot(ctx context.Context, id ID) (*RuntimeSnapshot, error)
	// Snapshots are newest first and include deleted ones whose files may still be there.
	Snapshots(ctx context.Context) ([]*RuntimeSnapshot, error)
	// FinishSnapshot moves a snapshot from creating to ready with its path, VMM version and metadata, and marks every
	// other ready or unhealthy snapshot of the same image deleted, at once. A snapshot that is no longer
	// creating (deleted meanwhile) is a Conflict.
	FinishSnapshot(ctx context.Context, s *RuntimeSnapshot) error
	// FailSnapshot makes a snapshot unhealthy with a reason, unless it is deleted.
	FailSnapshot(ctx context.Context, id ID, reason string) error
	// DeleteSnapshot soft deletes. Deleting a deleted snapshot succeeds.
	DeleteSnapshot(ctx context.Context, id ID) error
	// RecordRestore counts one use: a success resets the streak, a failure lengthens it, and the UnhealthyAfter-th in
	// a row makes a ready snapshot unhealthy. It returns the snapshot as it is after.
	RecordRestore(ctx context.Context, id ID, at time.Time, failure string) (*RuntimeSnapshot, error)
	// ForgetSnapshot removes the row of a deleted snapshot, once its files are gone.
	ForgetSnapshot(ctx context.Context, id ID) error
}

// ContainerFilter narrows Containers. Zero means all.
type ContainerFilter struct {
	States []ContainerState
}

// ContainerStore keeps containers.
type ContainerStore interface {
	// CreateContainer stores a new container. A taken name, or a host port that another live container publishes, is
	// a Conflict whose text names the other container. One that is stored already, id and all, is a success: whoever
	// was answered Unavailable does not know, and may ask again.
	CreateContainer(ctx context.Context, c *Container) error
	Container(ctx context.Context, id ID) (*Container, error)
	// FindContainer resolves what people type: a full id, a name, or the beginning of an id that only one container
	// has. An ambiguous beginning is a Conflict.
	FindContainer(ctx context.Context, ref string) (*Container, error)
	// Containers are newest first.
	Containers(ctx context.Context, f ContainerFilter) ([]*Container, error)
	// UpdateContainer reads the container, lets change alter it, and stores it, all in one transaction. change may be called again,
	// on a fresh copy, where the database lets another transaction go first. A state that cannot follow the old one (ContainerState.CanBecome) is a Conflict and nothing is stored; so is an error
	// from change. It returns the container as stored.
	UpdateContainer(ctx context.Context, id ID, change func(*Container) error) (*Container, error)
	// DeleteContainer removes the row, its name and its ports.
	DeleteContainer(ctx context.Context, id ID) error
}

// TokenStore keeps what is known of tokens; their secrets it never sees.
type TokenStore interface {
	// CreateToken stores a new token. A taken name is a Conflict.
	CreateToken(ctx context.Context, t *Token) error
	// FindToken finds a token by id or name.
	FindToken(ctx context.Context, ref string) (*Token, error)
	// TokenByDigest finds a token by the digest of its secret. Whether it has expired, the caller must see.
	TokenByDigest(ctx context.Context, digest string) (*Token, error)
	// Tokens are newest first, and include those that have expired.
	Tokens(ctx context.Context) ([]*Token, error)
	DeleteToken(ctx context.Context, id ID) error
	// TouchTokens records when tokens were last used. A time before the one that is known changes nothing, and neither does a
	// token that does not exist any more.
	TouchTokens(ctx context.Context, used map[ID]time.Time) error
}

// AuditStore keeps the audit log.
type AuditStore interface {
	// BeginAudit stores a new entry and sets its ID.
	BeginAudit(ctx context.Context, e *AuditEntry) error
	// FinishAudit stores what is known of an entry after the change: its entity, Outcome and FinishedAt.
	FinishAudit(ctx context.Context, e *AuditEntry) error
	// AuditEntries are newest first: at most limit of those before the entry with the ID before, or of all if that is 0.
	AuditEntries(ctx context.Context, before int64, limit int) ([]*AuditEntry, error)
	// PruneAudit removes the entries that are older than a time and tells how many there were.
	PruneAudit(ctx context.Context, before time.Time) (removed int64, err error)
}
