package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"warmboot"
	"warmboot/internal/durable"
)

// The files of a host's credentials, in a directory of their own.
const (
	keyFile         = "host.key"
	certificateFile = "host.crt"
	authorityFile   = "authority.crt"
)

// Signer gets certificates from a manager.
type Signer interface {
	// Join shows a join token over a connection that trusts just what config does.
	Join(ctx context.Context, config *tls.Config, r JoinRequest) (JoinAnswer, error)
	// Renew asks for another certificate in place of the one that the connection shows.
	Renew(ctx context.Context, request string) (certificate string, err error)
}

// LoadHost reads a host's credentials. A host that has none yet is a NotFound error.
func LoadHost(dir string, s Signer) (*Credentials, warmboot.ID, error) {
	const op = "read host's certificate"
	authority, err := readCertificate(filepath.Join(dir, authorityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "", warmboot.Errorf(warmboot.NotFound, op, "this host has not joined a cluster yet; `warmboot host token` on a manager prints what `warmboot agent --join` needs")
	}
	if err != nil {
		return nil, "", warmboot.Errorf(warmboot.Corrupt, op, "%w; remove %s and join again with a new token", err, dir)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, certificateFile), filepath.Join(dir, keyFile))
	if err != nil {
		return nil, "", warmboot.Errorf(warmboot.Corrupt, op, "%w; remove %s and join again with a new token", err, dir)
	}
	id, err := warmboot.ParseID(strings.TrimSuffix(pair.Leaf.Subject.CommonName, hostSuffix))
	if err != nil {
		return nil, "", warmboot.Errorf(warmboot.Corrupt, op, "%s is no host's certificate; remove %s and join again with a new token", certificateFile, dir)
	}
	c := &Credentials{authority: authority, pair: &pair}
	c.renew = func(ctx context.Context) (*tls.Certificate, error) { return renewHost(ctx, dir, s) }
	return c, id, nil
}

// JoinHost gets a host's first credentials for a join token and keeps them in dir, which is made.
func JoinHost(ctx context.Context, dir, token string, s Signer) (*Credentials, warmboot.ID, error) {
	const op = "join cluster"
	secret, want, err := parseToken(token)
	if err != nil {
		return nil, "", err
	}
	key, request, err := newRequest()
	if err != nil {
		return nil, "", internal(op, err)
	}
	var authority *x509.Certificate
	config := pinned(want)
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		if err := verify(state); err != nil {
			return err
		}
		for _, ca := range state.PeerCertificates[1:] {
			if pin(ca) == want {
				authority = ca
			}
		}
		return nil
	}
	answer, err := s.Join(ctx, config, JoinRequest{Secret: secret, Request: request})
	if err != nil {
		return nil, "", err
	}
	secretKey, err := encodeKey(key)
	if err != nil {
		return nil, "", internal(op, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, "", internal(op, err)
	}
	for _, f := range []struct {
		name string
		text []byte
	}{{keyFile, secretKey}, {certificateFile, []byte(answer.Certificate)}, {authorityFile, []byte(encode("CERTIFICATE", authority.Raw))}} { // the authority last: it says that the rest is there
		if err := durable.Replace(filepath.Join(dir, f.name), f.text, 0o600); err != nil {
			return nil, "", internal(op, err)
		}
	}
	return LoadHost(dir, s)
}

// renewHost gets a host another certificate for the key that it has.
func renewHost(ctx context.Context, dir string, s Signer) (*tls.Certificate, error) {
	const op = "renew host's certificate"
	text, err := os.ReadFile(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, internal(op, err)
	}
	var parsed any
	if block, _ := pem.Decode(text); block != nil {
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		return nil, warmboot.Errorf(warmboot.Corrupt, op, "%s holds no key that can be used; remove %s and join again with a new token", keyFile, dir)
	}
	request, err := requestFor(key)
	if err != nil {
		return nil, internal(op, err)
	}
	certificate, err := s.Renew(ctx, request)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair([]byte(certificate), text)
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Internal, op, "the manager's answer cannot be used: %w", err)
	}
	return &pair, internalOrNil(op, durable.Replace(filepath.Join(dir, certificateFile), []byte(certificate), 0o600))
}

func internalOrNil(op string, err error) error {
	if err == nil {
		return nil
	}
	return internal(op, err)
}

func newRequest() (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", err
	}
	request, err := requestFor(key)
	return key, request, err
}

func requestFor(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "warmboot host"}}, key)
	if err != nil {
		return "", err
	}
	return encode("CERTIFICATE REQUEST", der), nil
}

func readCertificate(path string) (*x509.Certificate, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New(path + " holds no certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
