package warmboot

import "time"

// Authority is the certificate authority by which managers and hosts of one store know each other. Whoever has its key can pose as any of
// them.
type Authority struct {
	Certificate string // PEM
	Key         string // PEM, PKCS #8
	CreatedAt   time.Time
}

// JoinToken lets one host join, once.
type JoinToken struct {
	ID        ID
	Digest    string // SHA-256 of its secret, in hexadecimal; the secret itself is kept nowhere
	HostID    ID     // the host that it lets in again; empty: a new one
	CreatedBy string
	CreatedAt time.Time
	ExpiresAt time.Time
}
