package warmboot

import (
	"regexp"
	"time"
)

// Role is what somebody may do. Each role may do what the ones before it may.
type Role string

// The roles.
const (
	RoleViewer   Role = "viewer"   // look at everything but tokens and the audit log
	RoleOperator Role = "operator" // change containers, snapshots and images, run commands, collect garbage
	RoleAdmin    Role = "admin"    // give and take tokens, read the audit log
)

// roles are in order: each includes those before it.
var roles = map[Role]int{RoleViewer: 1, RoleOperator: 2, RoleAdmin: 3}

// Valid reports whether there is such a role.
func (r Role) Valid() bool { return roles[r] != 0 }

// Includes reports whether who has role r may do what needs other. A role that does not exist may nothing.
func (r Role) Includes(other Role) bool {
	return r.Valid() && other.Valid() && roles[r] >= roles[other]
}

// Token lets whoever has its secret use the API. The secret itself is kept nowhere.
type Token struct {
	ID         ID
	Name       string // unique
	Role       Role
	Digest     string // SHA-256 of the secret, in hexadecimal
	CreatedAt  time.Time
	CreatedBy  string     // who asked for it, as AuditEntry.Actor
	ExpiresAt  *time.Time // nil: never
	LastUsedAt *time.Time // to the minute; nil: never
}

// Expired reports whether the token is of no use any more at a time.
func (t *Token) Expired(at time.Time) bool { return t.ExpiresAt != nil && !at.Before(*t.ExpiresAt) }

var tokenName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// ValidateTokenName reports an Invalid error for a name that cannot be used.
func ValidateTokenName(name string) error {
	if !tokenName.MatchString(name) {
		return Errorf(Invalid, "token name", "%.80q is not a valid name; use 1 to 63 letters, digits, '_', '.' or '-', starting with a letter or digit", name)
	}
	return nil
}

// AuditEntry is one change that somebody asked for. It is stored before the change is made and completed after it.
type AuditEntry struct {
	ID         int64 // rises from entry to entry
	At         time.Time
	Actor      string // a token's name, or something that no token can be called
	ActorID    ID     // of the token; empty if it is none of the stored ones
	Role       Role
	Operation  string // as the API's description calls it: "create-container"
	EntityType string // "container", "snapshot", "image", "token" or "server"
	EntityID   string // empty until it is known
	EntityName string // as it is called, or as the caller called it
	Source     string // the address that the request came from
	RequestID  string // as the log has it
	Outcome    string // AuditOK, AuditRepeated or a Code; empty while it is not known, which is for ever if warmboot or its machine crashed meanwhile
	FinishedAt *time.Time
}

// The outcomes that are no Code.
const (
	AuditOK       = "ok"       // the change was made, or has begun where the work goes on in the background
	AuditRepeated = "repeated" // the same request had made it before; nothing was changed
)
