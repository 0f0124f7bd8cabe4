package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"warmboot"
	"warmboot/internal/expect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a store of what this package needs.
type memory struct {
	mu        sync.Mutex
	authority *warmboot.Authority
	tokens    map[string]*warmboot.JoinToken
}

func (m *memory) Authority(_ context.Context, create func() (*warmboot.Authority, error)) (*warmboot.Authority, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var err error
	if m.authority == nil {
		m.authority, err = create()
	}
	return m.authority, err
}

func (m *memory) CreateJoinToken(_ context.Context, t *warmboot.JoinToken) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tokens == nil {
		m.tokens = map[string]*warmboot.JoinToken{}
	}
	m.tokens[t.Digest] = t
	return nil
}

func (m *memory) TakeJoinToken(_ context.Context, digest string, _ time.Time) (*warmboot.JoinToken, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tokens[digest]
	delete(m.tokens, digest)
	if t == nil {
		return nil, warmboot.Errorf(warmboot.Unauthenticated, "take", "not known")
	}
	return t, nil
}

// direct is a Signer without a network.
type direct struct {
	ca *Authority
	m  *memory
	id warmboot.ID // that Renew is for

	mu     sync.Mutex
	renews int
	fail   error
}

func (d *direct) Join(ctx context.Context, config *tls.Config, r JoinRequest) (JoinAnswer, error) {
	// The manager's certificate, as it would show it.
	pair, err := d.ca.Manager().certificate()
	if err != nil {
		return JoinAnswer{}, err
	}
	leaf, _ := x509.ParseCertificate(pair.Certificate[0])
	if err := config.VerifyConnection(tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf, d.ca.cert}}); err != nil {
		return JoinAnswer{}, err
	}
	return d.ca.Join(ctx, d.m, r)
}

func (d *direct) Renew(_ context.Context, request string) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.renews++
	if d.fail != nil {
		return "", d.fail
	}
	return d.ca.SignHost(d.id, request)
}

func open(t *testing.T) (*Authority, *memory) {
	t.Helper()
	m := &memory{}
	ca, err := Open(t.Context(), m)
	expect.NoError(t, err)
	return ca, m
}

// joined is a host that has joined.
func joined(t *testing.T, ca *Authority, m *memory) (*Credentials, warmboot.ID, string, *direct) {
	t.Helper()
	secret, _, err := ca.NewToken(t.Context(), m, "", time.Hour, "test")
	expect.NoError(t, err)
	dir, signer := filepath.Join(t.TempDir(), "agent"), &direct{ca: ca, m: m}
	c, id, err := JoinHost(t.Context(), dir, secret, signer)
	expect.NoError(t, err)
	signer.id = id
	return c, id, dir, signer
}

// handshake connects a client to a server and tells whom each has at the other end.
func handshake(t *testing.T, server, client *tls.Config) (clientSees, serverSees Peer, err error) {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	expect.NoError(t, err)
	defer l.Close()
	var serverErr error
	var done sync.WaitGroup
	done.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer conn.Close()
		if serverErr = conn.(*tls.Conn).Handshake(); serverErr == nil {
			state := conn.(*tls.Conn).ConnectionState()
			serverSees, serverErr = PeerOf(&state)
			_, _ = conn.Write([]byte("ok"))
		}
	})
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		state := conn.ConnectionState()
		clientSees, _ = PeerOf(&state)
		_, err = io.ReadAll(conn) // in TLS 1.3 a client learns only here that its certificate was refused
		conn.Close()
	}
	done.Wait()
	return clientSees, serverSees, errors.Join(err, serverErr)
}

func TestWhoIsWho(t *testing.T) {
	t.Parallel()
	ca, m := open(t)
	manager := ca.Manager()
	host, id, _, _ := joined(t, ca, m)
	c, s, err := handshake(t, host.Server(), manager.Client(HostName(id)))
	expect.NoError(t, err)
	if c.Host != id || !s.Manager {
		t.Errorf("%+v, %+v", c, s)
	}
	c, s, err = handshake(t, manager.Server(), host.Client(ManagerName()))
	expect.NoError(t, err)
	if !c.Manager || s.Host != id || s.Manager {
		t.Errorf("%+v, %+v", c, s)
	}
	if _, _, err := handshake(t, host.Server(), manager.Client(HostName(warmboot.NewID()))); err == nil {
		t.Error("a host passes for another")
	}
	if _, _, err := handshake(t, host.Server(), host.Client(ManagerName())); err == nil {
		t.Error("a host passes for a manager")
	}
	other, _ := open(t)
	if _, _, err := handshake(t, host.Server(), other.Manager().Client(HostName(id))); err == nil {
		t.Error("a foreign manager is let in")
	}
	if _, err := PeerOf(nil); warmboot.CodeOf(err) != warmboot.Unauthenticated {
		t.Error(err)
	}
}

func TestAnExpiredCertificateIsRefused(t *testing.T) {
	t.Parallel()
	ca, m := open(t)
	host, id, _, signer := joined(t, ca, m)
	der, err := ca.sign(HostName(id), host.pair.Leaf.PublicKey, -time.Minute)
	expect.NoError(t, err)
	host.pair.Certificate = [][]byte{der}
	host.pair.Leaf, _ = x509.ParseCertificate(der)
	signer.fail = errors.New("the manager does not let it in either")
	if _, _, err := handshake(t, ca.Manager().Server(), host.Client(ManagerName())); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("%v", err)
	}
	wait(t, func() bool { host.mu.Lock(); defer host.mu.Unlock(); return !host.renewing })
}

// wait looks until something holds that nothing announces.
func wait(t *testing.T, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not come to pass")
		}
	}
}

func TestACertificateRenewsItself(t *testing.T) {
	t.Parallel()
	ca, m := open(t)
	host, id, dir, signer := joined(t, ca, m)
	first := host.pair
	if got, err := host.certificate(); got != first || err != nil || signer.renews != 0 {
		t.Fatalf("a fresh one is renewed (%d times), %v", signer.renews, err)
	}
	der, err := ca.sign(HostName(id), first.Leaf.PublicKey, leafLife/4) // what is left of it is less than a third
	expect.NoError(t, err)
	old := *first
	old.Certificate = [][]byte{der}
	old.Leaf, _ = x509.ParseCertificate(der)
	old.Leaf.NotBefore = old.Leaf.NotAfter.Add(-leafLife - clockSlack)
	host.pair = &old
	signer.fail = errors.New("no manager answers")
	current := func() (*tls.Certificate, bool) {
		got, err := host.certificate()
		expect.NoError(t, err)
		host.mu.Lock()
		defer host.mu.Unlock()
		return got, host.renewing
	}
	wait(t, func() bool { got, _ := current(); return got == &old && signer.count() >= 2 })
	signer.mu.Lock()
	signer.fail = nil
	signer.mu.Unlock()
	wait(t, func() bool { got, _ := current(); return got != &old })
	wait(t, func() bool { _, renewing := current(); return !renewing })
	kept, again, err := LoadHost(dir, signer)
	expect.NoError(t, err)
	if now, _ := current(); again != id || kept.pair.Leaf.SerialNumber.Cmp(now.Leaf.SerialNumber) != 0 || now.Leaf.NotAfter.Before(time.Now().Add(leafLife-time.Minute)) {
		t.Errorf("the new one is not the one that was kept")
	}
	if _, _, err := handshake(t, ca.Manager().Server(), host.Client(ManagerName())); err != nil {
		t.Error(err)
	}
}

func (d *direct) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.renews
}

func TestWhatIsNotSigned(t *testing.T) {
	t.Parallel()
	ca, m := open(t)
	_, key, err := ed25519.GenerateKey(rand.Reader)
	expect.NoError(t, err)
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	expect.NoError(t, err)
	_, good, err := newRequest()
	expect.NoError(t, err)
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	secret, _, err := ca.NewToken(t.Context(), m, "", time.Hour, "test")
	expect.NoError(t, err)
	for name, request := range map[string]string{
		"": "", "text": "hello", "a certificate": ca.Certificate(), "another kind of key": encode("CERTIFICATE REQUEST", der),
		"a broken signature": string(pem.EncodeToMemory(block)), "no DER": encode("CERTIFICATE REQUEST", []byte("x")),
	} {
		if _, err := ca.SignHost(warmboot.NewID(), request); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%s: %v", name, err)
		}
		text, _, err := parseToken(secret)
		expect.NoError(t, err)
		if _, err := ca.Join(t.Context(), m, JoinRequest{Secret: text, Request: request}); warmboot.CodeOf(err) != warmboot.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(m.tokens) != 1 {
		t.Error("the token was spent on what cannot be signed")
	}
}

func TestPinnedManagers(t *testing.T) {
	t.Parallel()
	ca, _ := open(t)
	other, _ := open(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	expect.NoError(t, err)
	der, err := other.sign(managerName, key.Public(), time.Hour)
	expect.NoError(t, err)
	forged, err := x509.ParseCertificate(der)
	expect.NoError(t, err)
	pair, err := ca.Manager().certificate()
	expect.NoError(t, err)
	verify := pinned(ca.Pin()).VerifyConnection
	expect.NoError(t, verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf, ca.cert}}))
	// The right authority beside a certificate that it has not signed.
	expect.Code(t, verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{forged, ca.cert}}), warmboot.Denied, "not a manager's")
	expect.Code(t, verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{forged, other.cert}}), warmboot.Denied, "not of the cluster")
	expect.Code(t, verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf}}), warmboot.Denied)
}

func TestCredentialsOnDisk(t *testing.T) {
	t.Parallel()
	ca, m := open(t)
	_, _, dir, signer := joined(t, ca, m)
	for _, name := range []string{keyFile, certificateFile, authorityFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		expect.NoError(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	_, _, err := LoadHost(filepath.Join(t.TempDir(), "absent"), signer)
	expect.Code(t, err, warmboot.NotFound, "warmboot host token")
	for _, name := range []string{authorityFile, certificateFile, keyFile} {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		expect.NoError(t, err)
		expect.NoError(t, os.WriteFile(path, text[:len(text)/2], 0o600))
		_, _, err = LoadHost(dir, signer)
		expect.Code(t, err, warmboot.Corrupt, "join again")
		expect.NoError(t, os.WriteFile(path, text, 0o600))
	}
	_, _, err = LoadHost(dir, signer)
	expect.NoError(t, err)
}

func TestOpenFindsWhatIsBroken(t *testing.T) {
	t.Parallel()
	_, m := open(t)
	m.authority.Key = "x"
	_, err := Open(t.Context(), m)
	expect.Code(t, err, warmboot.Corrupt)
}
