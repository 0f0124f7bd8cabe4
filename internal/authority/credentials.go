package authority

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"sync"
	"time"

	"warmboot"
)

// renewTimeout is how long the renewal of a certificate may take. Nobody waits for it while the old one is good.
const renewTimeout = 10 * time.Second

// Credentials are who a process is among managers and hosts, and whom it trusts. They are safe for concurrent use.
type Credentials struct {
	authority *x509.Certificate
	renew     func(context.Context) (*tls.Certificate, error)

	mu       sync.Mutex
	pair     *tls.Certificate // nil before a manager's first
	renewing bool
}

// certificate is the one to show. When two thirds of its life are over it is renewed, in the background: that takes a connection, for
// which the old one is shown, as for every other until then.
func (c *Credentials) certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pair == nil { // a manager signs its own
		first, err := c.renew(context.Background())
		c.pair = first
		return first, err
	}
	if due(c.pair.Leaf, time.Now()) && !c.renewing {
		c.renewing = true
		go c.renewSoon()
	}
	return c.pair, nil
}

func (c *Credentials) renewSoon() {
	ctx, cancel := context.WithTimeout(context.Background(), renewTimeout)
	defer cancel()
	next, err := c.renew(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renewing = false
	if err == nil { // else the next connection tries again
		c.pair = next
	}
}

// due reports whether two thirds of a certificate's life are over.
func due(cert *x509.Certificate, now time.Time) bool {
	life := cert.NotAfter.Sub(cert.NotBefore.Add(clockSlack))
	return now.After(cert.NotAfter.Add(-life / 3))
}

func (c *Credentials) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(c.authority)
	return pool
}

// Server is for a listener that others of this cluster connect to. Who shows a certificate must be one of them; whether one must be shown,
// the handler sees by PeerOf. The authority's own certificate is shown too, for those who only know its pin.
func (c *Credentials) Server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  c.pool(),
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			pair, err := c.certificate()
			if err != nil {
				return nil, err
			}
			shown := *pair
			shown.Certificate = append(shown.Certificate[:1:1], c.authority.Raw)
			return &shown, nil
		},
	}
}

// Client is for a connection to one of this cluster that has the name, ManagerName or a HostName.
func (c *Credentials) Client(name string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    c.pool(),
		ServerName: name,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return c.certificate()
		},
	}
}

// pinned is for a connection to a manager of which only the authority's pin is known.
func pinned(want string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection does it, starting from the pin
		VerifyConnection: func(state tls.ConnectionState) error {
			const op = "verify manager"
			for _, ca := range state.PeerCertificates[1:] {
				if pin(ca) != want {
					continue
				}
				pool := x509.NewCertPool()
				pool.AddCert(ca)
				_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, DNSName: managerName})
				if err != nil {
					return warmboot.Errorf(warmboot.Denied, op, "its certificate is not a manager's: %w", err)
				}
				return nil
			}
			return warmboot.Errorf(warmboot.Denied, op, "it is not of the cluster that the join token is for; check the address, or make a new token there with `warmboot host token`")
		},
	}
}
