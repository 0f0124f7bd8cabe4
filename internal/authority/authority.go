// Package authority is the trust between managers and hosts: a certificate authority of their own, kept in the store that the managers
// share, and tokens with which a host gets its first certificate. From then on both ends of every connection show a certificate of
// this authority, and are known by the name in it.
package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"warmboot"
)

// The names that certificates have. They are no host names: no resolver knows them, and an address says nothing about who answers there.
const (
	managerName = "manager.warmboot"
	hostSuffix  = ".host.warmboot"
)

// HostName is the name in a host's certificate.
func HostName(id warmboot.ID) string { return string(id) + hostSuffix }

// ManagerName is the name in every manager's certificate.
func ManagerName() string { return managerName }

// How long certificates are good. A host renews its own when two thirds are over; a manager makes itself one at its start, and again.
const (
	authorityLife = 10 * 365 * 24 * time.Hour
	leafLife      = 30 * 24 * time.Hour
	// clockSlack is how far a certificate reaches back: clocks differ, and are set back.
	clockSlack = 24 * time.Hour
)

// Authority signs certificates. It is safe for concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open returns the authority of a store, and makes it if there is none.
func Open(ctx context.Context, s warmboot.JoinStore) (*Authority, error) {
	const op = "open certificate authority"
	kept, err := s.Authority(ctx, create)
	if err != nil {
		return nil, err
	}
	unusable := func(why error) error {
		return warmboot.Errorf(warmboot.Corrupt, op, "the certificate authority in the database cannot be used: %w; restore the database from a backup", why)
	}
	pair, err := tls.X509KeyPair([]byte(kept.Certificate), []byte(kept.Key))
	if err != nil {
		return nil, unusable(err)
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return nil, unusable(err)
	}
	key, ok := pair.PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		return nil, unusable(fmt.Errorf("its key is a %T", pair.PrivateKey))
	}
	return &Authority{cert: cert, key: key}, nil
}

func create() (*warmboot.Authority, error) {
	const op = "make certificate authority"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, internal(op, err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "warmboot " + warmboot.NewID().Short()},
		NotBefore: now.Add(-clockSlack), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, internal(op, err)
	}
	secret, err := encodeKey(key)
	if err != nil {
		return nil, internal(op, err)
	}
	return &warmboot.Authority{Certificate: encode("CERTIFICATE", der), Key: string(secret), CreatedAt: now.UTC()}, nil
}

// serial is a random one, as RFC 5280 (4.1.2.2) allows: at most 20 bytes, positive.
func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return new(big.Int).SetBytes(b[:])
}

// Certificate is the authority's own, in PEM.
func (a *Authority) Certificate() string { return encode("CERTIFICATE", a.cert.Raw) }

// Pin identifies the authority: the SHA-256 of its public key, in hexadecimal. It is part of a join token, so that a host knows whom it
// speaks to before it trusts anybody.
func (a *Authority) Pin() string { return pin(a.cert) }

func pin(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// SignHost makes a certificate for a host out of its request (PEM), of which only the public key counts.
func (a *Authority) SignHost(id warmboot.ID, request string) (string, error) {
	const op = "sign certificate"
	block, _ := pem.Decode([]byte(request))
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return "", warmboot.Errorf(warmboot.Invalid, op, "that is no certificate request")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "", warmboot.Errorf(warmboot.Invalid, op, "the certificate request cannot be read: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return "", warmboot.Errorf(warmboot.Invalid, op, "whoever made the certificate request does not have its key: %w", err)
	}
	if _, ok := csr.PublicKey.(*ecdsa.PublicKey); !ok {
		return "", warmboot.Errorf(warmboot.Invalid, op, "the key of the certificate request is not ECDSA")
	}
	der, err := a.sign(HostName(id), csr.PublicKey, leafLife)
	if err != nil {
		return "", internal(op, err)
	}
	return encode("CERTIFICATE", der), nil
}

func (a *Authority) sign(name string, public any, life time.Duration) ([]byte, error) {
	now := time.Now()
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-clockSlack), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, public, a.key)
}

// Manager makes a manager's credentials. They renew themselves.
func (a *Authority) Manager() *Credentials {
	c := &Credentials{authority: a.cert}
	c.renew = func(context.Context) (*tls.Certificate, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, internal("make certificate", err)
		}
		der, err := a.sign(managerName, key.Public(), leafLife)
		if err != nil {
			return nil, internal("make certificate", err)
		}
		return newPair(der, key)
	}
	return c
}

// Peer is who is at the other end of a connection.
type Peer struct {
	Manager bool
	Host    warmboot.ID // if it is none
}

// PeerOf tells who is at the other end, by its verified certificate. Without one it is an Unauthenticated error.
func PeerOf(state *tls.ConnectionState) (Peer, error) {
	const op = "know peer"
	if state == nil || len(state.VerifiedChains) == 0 {
		return Peer{}, warmboot.Errorf(warmboot.Unauthenticated, op, "no certificate of this cluster was shown; a host gets one with `warmboot agent --join TOKEN`")
	}
	name := state.VerifiedChains[0][0].Subject.CommonName
	if name == managerName {
		return Peer{Manager: true}, nil
	}
	if id, err := warmboot.ParseID(strings.TrimSuffix(name, hostSuffix)); err == nil && strings.HasSuffix(name, hostSuffix) {
		return Peer{Host: id}, nil
	}
	return Peer{}, warmboot.Errorf(warmboot.Unauthenticated, op, "the certificate is neither a manager's nor a host's")
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func newPair(der []byte, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

func internal(op string, err error) error {
	return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
}
