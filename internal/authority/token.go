package authority

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"time"

	"warmboot"
)

// tokenForm is how a join token looks: a prefix that scanners for secrets can know, 256 random bits, and the authority's pin.
var tokenForm = regexp.MustCompile(`^wbj_([0-9a-f]{64})\.([0-9a-f]{64})$`)

// NewToken stores a join token and returns it. host, if not empty, is the one that it lets in again.
func (a *Authority) NewToken(ctx context.Context, s warmboot.JoinStore, host warmboot.ID, ttl time.Duration, by string) (secret string, token *warmboot.JoinToken, err error) {
	var random [32]byte
	rand.Read(random[:]) // never fails: crypto/rand aborts the program instead
	text := hex.EncodeToString(random[:])
	now := time.Now().UTC()
	token = &warmboot.JoinToken{ID: warmboot.NewID(), Digest: digest(text), HostID: host, CreatedBy: by, CreatedAt: now, ExpiresAt: now.Add(ttl)}
	if err := s.CreateJoinToken(ctx, token); err != nil {
		return "", nil, err
	}
	return "wbj_" + text + "." + a.Pin(), token, nil
}

// digest needs no salt and no stretching: what it hides is random and long.
func digest(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

func parseToken(token string) (secret, pin string, err error) {
	m := tokenForm.FindStringSubmatch(token)
	if m == nil {
		return "", "", warmboot.Errorf(warmboot.Invalid, "read join token", "that is no join token; it begins with wbj_, and `warmboot host token` prints one")
	}
	return m[1], m[2], nil
}

// JoinRequest is what a host that wants to join shows.
type JoinRequest struct {
	Secret  string `json:"secret"`  // of its token
	Request string `json:"request"` // certificate request, PEM
}

// JoinAnswer is what it gets.
type JoinAnswer struct {
	Host        warmboot.ID `json:"host"`
	Certificate string      `json:"certificate"` // PEM
}

// Join lets a host in: it takes the token and signs the certificate. A token for a host that is known gives that host's id again.
func (a *Authority) Join(ctx context.Context, s warmboot.JoinStore, r JoinRequest) (JoinAnswer, error) {
	// The request first: a token is not to be spent on what cannot be signed.
	id := warmboot.NewID()
	if _, err := a.SignHost(id, r.Request); err != nil {
		return JoinAnswer{}, err
	}
	token, err := s.TakeJoinToken(ctx, digest(r.Secret), time.Now())
	if err != nil {
		return JoinAnswer{}, err
	}
	if token.HostID != "" {
		id = token.HostID
	}
	cert, err := a.SignHost(id, r.Request)
	return JoinAnswer{Host: id, Certificate: cert}, err
}
