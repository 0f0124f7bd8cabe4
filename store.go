package warmboot

import (
	"context"
	"time"
)

// Store keeps what there is, and says who does what with it. One implementation (internal/store) serves every database; storetest
// holds it to this contract. Every method is one transaction. A missing row is a NotFound error, a name or port that is
// taken a Conflict, a database that does not answer Unavailable. Returned entities are the caller's own copies.
//
// CreateImage, CreateSnapshot, CreateContainer and CreateToken keep the receipt that their context carries (WithReceipt). If there is one of
// the same key already they create nothing: that is a Conflict caused by a Repeated, which has it.
type Store interface {
	ImageStore
	SnapshotStore
	ContainerStore
	HostStore
	ManagerStore
	JoinStore
	TokenStore
	AuditStore
	ReceiptStore
	Feed
	// Counts counts what there is, without reading it.
	Counts(ctx context.Context) (*Counts, error)
}

// Counts is how much there is. A state that nothing is in is not in its map.
type Counts struct {
	Containers map[ContainerState]int
	VMs        int // containers whose microVM is up
	Snapshots  map[SnapshotState]int
	Managers   int // that live, as far as the others have noticed
}

// Place is where an entity stands in a list that is newest first.
type Place struct {
	CreatedAt time.Time
	ID        ID
}

// Page is a part of a list that is newest first. Zero is all of it. What is added or removed meanwhile shifts no page: a page begins behind an
// entity's place, whether that entity is still there or not.
type Page struct {
	After Place // the last of the page before; zero: from the newest on
	Limit int   // how many at the most; 0: no limit
}

// ImageStore keeps runtime images.
type ImageStore interface {
	// CreateImage stores a new image. A taken name is a Conflict.
	CreateImage(ctx context.Context, img *Image) error
	Image(ctx context.Context, id ID) (*Image, error)
	ImageByName(ctx context.Context, name string) (*Image, error)
	// Images are newest first.
	Images(ctx context.Context, p Page) ([]*Image, error)
	// UpdateImage reads the image, lets change alter its name, and stores that, as UpdateContainer does. A taken name is a Conflict.
	UpdateImage(ctx context.Context, id ID, change func(*Image) error) (*Image, error)
	// DeleteImage removes an image that no live snapshot and no container refers to; else it is a Conflict. Where a condition does not hold
	// it is an error of that.
	DeleteImage(ctx context.Context, id ID, conditions ...func(*Image) error) error
}

// SnapshotFilter narrows Snapshots. Zero means all.
type SnapshotFilter struct {
	States         []SnapshotState
	RuntimeImageID ID
	HostID         ID // that builds it, or has built it
	Page
}

// SnapshotStore keeps runtime snapshots.
type SnapshotStore interface {
	// CreateSnapshot stores a new snapshot. While another of the same image and platform is being built it is a Conflict. A condition is asked, perhaps
	// more than once, with all the others as they are when it is stored, deleted ones included; where it does not hold it is an error of that.
	CreateSnapshot(ctx context.Context, s *RuntimeSnapshot, conditions ...func(others []*RuntimeSnapshot) error) error
	Snapshot(ctx context.Context, id ID) (*RuntimeSnapshot, error)
	// Snapshots are newest first and include deleted ones whose files may still be there.
	Snapshots(ctx context.Context, f SnapshotFilter) ([]*RuntimeSnapshot, error)
	// UpdateSnapshot reads the snapshot, lets change alter it, and stores it, as UpdateContainer does.
	UpdateSnapshot(ctx context.Context, id ID, change func(*RuntimeSnapshot) error) (*RuntimeSnapshot, error)
	// FinishSnapshot moves a snapshot from creating to ready with its path, VMM version and metadata, releases its lease, and marks deleted,
	// at once, every other ready or unhealthy snapshot of the same image that is of the same platform or of one of the
	// outdated ones. It returns those. A snapshot that is no longer creating (deleted meanwhile), or whose lease is not the
	// one that s has, is a Conflict.
	FinishSnapshot(ctx context.Context, s *RuntimeSnapshot, outdated []string) ([]ID, error)
	// FailSnapshot makes a snapshot unhealthy with a reason, unless it is deleted.
	FailSnapshot(ctx context.Context, id ID, reason string) error
	// DeleteSnapshot soft deletes. Deleting a deleted snapshot succeeds.
	DeleteSnapshot(ctx context.Context, id ID) error
	// RecordSuccesses counts n restores that succeeded, the last of them at a time. The streak of failures is over.
	RecordSuccesses(ctx context.Context, id ID, at time.Time, n int) error
	// RecordFailure counts a restore that failed: the UnhealthyAfter-th in a row makes a ready snapshot unhealthy. It returns the
	// snapshot as it is after.
	RecordFailure(ctx context.Context, id ID, at time.Time, reason string) (*RuntimeSnapshot, error)
	// ForgetSnapshot removes the row of a deleted snapshot, once its files are gone.
	ForgetSnapshot(ctx context.Context, id ID) error
}

// ContainerFilter narrows Containers. Zero means all.
type ContainerFilter struct {
	States         []ContainerState
	HostID         ID
	RuntimeImageID ID
	Image          string // as the user gave it
	NamePrefix     string
	BootMethod     BootMethod
	Page
}

// ContainerStore keeps containers.
type ContainerStore interface {
	// CreateContainer stores a new container. A taken name, or a host port that another live container publishes, is
	// a Conflict whose text names the other container. One that is stored already, id and all, is a success: whoever
	// was answered Unavailable does not know, and may ask again. One in state creating on a host that is down, cordoned or gone is
	// ErrHostClosed; the same goes for UpdateContainer when it alters the host.
	CreateContainer(ctx context.Context, c *Container) error
	Container(ctx context.Context, id ID) (*Container, error)
	// FindContainer resolves what people type: a full id, a name, or the beginning of an id that only one container
	// has. An ambiguous beginning is a Conflict.
	FindContainer(ctx context.Context, ref string) (*Container, error)
	// Containers are newest first.
	Containers(ctx context.Context, f ContainerFilter) ([]*Container, error)
	// ContainerLoad counts each host's containers that are neither stopped nor failed.
	ContainerLoad(ctx context.Context) (map[ID]int, error)
	// UpdateContainer reads the container, lets change alter it, and stores it, all in one transaction. change may be called again,
	// on a fresh copy, where the database lets another transaction go first. A state that cannot follow the old one (ContainerState.CanBecome) is a Conflict and nothing is stored; so is an error
	// from change. It returns the container as stored.
	UpdateContainer(ctx context.Context, id ID, change func(*Container) error) (*Container, error)
	// DeleteContainer removes the row, its name and its ports, and remembers that there was one.
	DeleteContainer(ctx context.Context, id ID) error
	// DeletedContainers returns which of the ids are those of containers that were deleted.
	DeletedContainers(ctx context.Context, ids []ID) (map[ID]bool, error)
	// ForgetDeletedContainers forgets those that were deleted before a time.
	ForgetDeletedContainers(ctx context.Context, before time.Time) error
}

// HostStore keeps hosts.
type HostStore interface {
	// CreateHost stores a new host. A taken name is a Conflict.
	CreateHost(ctx context.Context, h *Host) error
	Host(ctx context.Context, id ID) (*Host, error)
	// FindHost finds a host by id or name.
	FindHost(ctx context.Context, ref string) (*Host, error)
	// Hosts are in order of their names: at most limit of those after a name, or all that follow it if limit is 0. No name is "".
	Hosts(ctx context.Context, after string, limit int) ([]*Host, error)
	// UpdateHost reads the host, lets change alter it, and stores it, as UpdateContainer does. Beat and LastSeenAt stay.
	UpdateHost(ctx context.Context, id ID, change func(*Host) error) (*Host, error)
	// BeatHosts counts a sign of life of each of these hosts. One that is not there is passed over.
	BeatHosts(ctx context.Context, ids []ID, at time.Time) error
	// DeleteHost removes a host. While containers, or snapshots that are not deleted, are on it, that is a Conflict. Conditions are as
	// DeleteImage's.
	DeleteHost(ctx context.Context, id ID, conditions ...func(*Host) error) error
}

// ManagerStore keeps the managers that share the store. A manager that is not in it is dead: its leases are free.
type ManagerStore interface {
	// JoinManagers adds a manager, and removes an earlier one of the same name; all others too where a store serves one manager
	// only.
	JoinManagers(ctx context.Context, m *Manager) error
	// BeatManager counts a sign of life and returns all managers. Once the manager was removed it is a NotFound error.
	BeatManager(ctx context.Context, id ID) ([]*Manager, error)
	// RemoveManager removes a manager whose Beat is still what it was; nothing happens if it is not.
	RemoveManager(ctx context.Context, id ID, beat int64) error
	// LeaveManagers removes a manager whatever its Beat is.
	LeaveManagers(ctx context.Context, id ID) error
}

// JoinStore keeps what lets hosts join.
type JoinStore interface {
	// Authority returns the certificate authority. If there is none yet, the one that create makes is stored, unless another manager has
	// been faster.
	Authority(ctx context.Context, create func() (*Authority, error)) (*Authority, error)
	CreateJoinToken(ctx context.Context, t *JoinToken) error
	// TakeJoinToken removes the token with a digest and returns it: it lets nobody else in. One that is not there, or has expired at
	// the time given, is Unauthenticated. Those that have expired are removed too.
	TakeJoinToken(ctx context.Context, digest string, at time.Time) (*JoinToken, error)
}

// Feed carries messages between the managers that share a store. It carries hints: a message may be lost with a connection, so
// whoever acts on one looks at the entities.
type Feed interface {
	// Publish sends messages of at most FeedLimit bytes to all managers, the sender included.
	Publish(ctx context.Context, messages []string) error
	// Follow hands over every message that is published, until ctx ends. connected is called first, and again after every
	// interruption: messages may have been missed before. Where a store serves one manager only, it just waits for the end.
	Follow(ctx context.Context, connected func(), message func(string)) error
}

// FeedLimit is how long a message of a Feed may be, in bytes: PostgreSQL's limit for NOTIFY, with some to spare
// (https://www.postgresql.org/docs/current/sql-notify.html).
const FeedLimit = 7900

// TokenStore keeps what is known of tokens; their secrets it never sees.
type TokenStore interface {
	// CreateToken stores a new token. A taken name is a Conflict.
	CreateToken(ctx context.Context, t *Token) error
	// FindToken finds a token by id or name.
	FindToken(ctx context.Context, ref string) (*Token, error)
	// TokenByDigest finds a token by the digest of its secret. Whether it has expired, the caller must see.
	TokenByDigest(ctx context.Context, digest string) (*Token, error)
	// Tokens are newest first, and include those that have expired.
	Tokens(ctx context.Context, p Page) ([]*Token, error)
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

// ReceiptStore keeps what was made by requests that may be sent again.
type ReceiptStore interface {
	// Receipt finds a receipt by its key.
	Receipt(ctx context.Context, key string) (*Receipt, error)
	// KeepReceipt keeps the receipt of a request that had nothing to create, because the entity was there already. Of the same key as another
	// it is a Conflict caused by a Repeated.
	KeepReceipt(ctx context.Context, r *Receipt, entity ID) error
	// PruneReceipts removes those that are older than a time and tells how many there were.
	PruneReceipts(ctx context.Context, before time.Time) (removed int64, err error)
}
