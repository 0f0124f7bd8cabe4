package access

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"

	"warmboot"
)

// Request is a request under a key of its sender's choice, which may be sent again without having its effect twice.
//
// What was made is stored for a day, but no secret is. What an answer holds that must not be known to whoever reads the database is sealed with
// the sender's own secret and their key, neither of which is there; and of the request, which may hold a registry's password, there is a digest that
// cannot be tried without that secret.
type Request struct {
	store   warmboot.ReceiptStore
	receipt warmboot.Receipt
	seal    cipher.AEAD
}

// Request is what somebody asks for under a key: whatever tells this request from others goes into what. secret is what they were known by.
func (k *Keeper) Request(who Principal, secret, key string, what []byte) *Request {
	sealKey := mac([]byte(secret), "answer", key)
	block, err := aes.NewCipher(sealKey)
	if err != nil {
		panic(err) // the key has the size that it must have
	}
	seal, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	return &Request{store: k.store, seal: seal, receipt: warmboot.Receipt{
		Key: hex.EncodeToString(mac(nil, string(who.ID), who.Name, key)), Request: hex.EncodeToString(mac([]byte(secret), "request", string(what))), CreatedAt: time.Now().UTC(),
	}}
}

// mac is a digest of texts that no other texts have.
func mac(key []byte, texts ...string) []byte {
	h := hmac.New(sha256.New, key)
	for _, t := range texts {
		sum := sha256.Sum256([]byte(t))
		h.Write(sum[:])
	}
	return h.Sum(nil)
}

type requestKey struct{}

// Once carries a request out by calling create, or if it was carried out before, does not and reports so. Either way it returns the id of what was
// made. Another request under the same key is a Conflict. A create that fails leaves the key free.
func (r *Request) Once(ctx context.Context, create func(context.Context) (warmboot.ID, error)) (id warmboot.ID, again bool, err error) {
	earlier, err := r.store.Receipt(ctx, r.receipt.Key)
	if err == nil {
		return r.repeat(earlier)
	}
	if warmboot.CodeOf(err) != warmboot.NotFound {
		return "", false, err
	}
	ctx = context.WithValue(warmboot.WithReceipt(ctx, &r.receipt), requestKey{}, r)
	if id, err = create(ctx); err == nil && r.receipt.EntityID == "" {
		err = r.store.KeepReceipt(ctx, &r.receipt, id) // it was there already
	}
	var repeated *warmboot.Repeated
	if errors.As(err, &repeated) {
		return r.repeat(repeated.Receipt)
	}
	return id, false, err
}

func (r *Request) repeat(earlier *warmboot.Receipt) (warmboot.ID, bool, error) {
	if earlier.Request != r.receipt.Request {
		return "", false, warmboot.Errorf(warmboot.Conflict, "repeat request", "this Idempotency-Key was used for another request less than a day ago; use a fresh one, like a random UUID, for each")
	}
	r.receipt = *earlier
	return earlier.EntityID, true, nil
}

// keepSecret seals what only this answer, and its repetition, may hold.
func (r *Request) keepSecret(secret string) {
	nonce := make([]byte, r.seal.NonceSize())
	rand.Read(nonce) // never fails: crypto/rand aborts the program instead
	r.receipt.Secret = r.seal.Seal(nonce, nonce, []byte(secret), []byte(r.receipt.Key))
}

// Secret is what the first answer held that was kept nowhere else.
func (r *Request) Secret() (string, error) {
	sealed, n := r.receipt.Secret, r.seal.NonceSize()
	if len(sealed) < n {
		return "", warmboot.Errorf(warmboot.Corrupt, "repeat request", "the first answer's secret is not there any more; revoke the token, and create another under a fresh key")
	}
	secret, err := r.seal.Open(nil, sealed[:n], sealed[n:], []byte(r.receipt.Key))
	if err != nil {
		return "", warmboot.Errorf(warmboot.Corrupt, "repeat request", "the first answer's secret cannot be read: %w; revoke the token, and create another under a fresh key", err)
	}
	return string(secret), nil
}
