package agentrpc

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"warmboot"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
)

// The calls that a host makes to a manager.
const managerService = "/warmboot.agent.v1.Manager/"

type beatCall struct {
	Inventory *warmboot.HostInventory `json:"inventory,omitempty"`
}

type renewal struct {
	PEM string `json:"pem"` // a request, or a certificate
}

// ManagerConfig is what a manager needs to be spoken to by hosts.
type ManagerConfig struct {
	Reports   controlplane.Reports
	Authority *authority.Authority
	Store     interface {
		warmboot.JoinStore
		warmboot.HostStore
	}
	Log *slog.Logger
}

// How many wrong join tokens a second are looked at. They cannot be guessed; this is for the database.
const (
	joinRate  = 5
	joinBurst = 20
)

// ManagerHandler lets hosts join and report. Whoever has not joined can do nothing but that.
func ManagerHandler(c ManagerConfig) http.Handler {
	mux := http.NewServeMux()
	joins := rate.NewLimiter(joinRate, joinBurst)
	handle(mux, managerService+"Join", func(ctx context.Context, r *authority.JoinRequest) (*authority.JoinAnswer, error) {
		if !joins.Allow() {
			return nil, warmboot.Errorf(warmboot.Exhausted, "join", "too many hosts try to join at once; try again in a moment")
		}
		answer, err := c.join(ctx, *r)
		return &answer, err
	})
	handle(mux, managerService+"Renew", func(ctx context.Context, r *renewal) (*renewal, error) {
		id, err := c.host(ctx)
		if err != nil {
			return nil, err
		}
		cert, err := c.Authority.SignHost(id, r.PEM)
		if err == nil {
			c.Log.Info("The certificate of a host was renewed", "host_id", id)
		}
		return &renewal{cert}, err
	})
	handle(mux, managerService+"HostHello", func(ctx context.Context, hello *controlplane.Hello) (*empty, error) {
		id, err := c.host(ctx)
		if err != nil {
			return nil, err
		}
		hello.ID, hello.Inside = id, false // whatever it says: its certificate says who it is
		return &empty{}, c.Reports.HostHello(ctx, *hello)
	})
	handle(mux, managerService+"HostBeat", func(ctx context.Context, r *beatCall) (*empty, error) {
		peer, err := peerOf(ctx)
		if err != nil {
			return nil, err
		}
		return &empty{}, c.Reports.HostBeat(ctx, peer.Host, r.Inventory)
	})
	handle(mux, managerService+"ContainerEnded", func(ctx context.Context, end *controlplane.Ended) (*empty, error) {
		peer, err := peerOf(ctx)
		if err != nil {
			return nil, err
		}
		return &empty{}, c.Reports.ContainerEnded(ctx, peer.Host, *end)
	})
	return withPeer(mux)
}

// join lets a host in and gives it a row, by which it is known from now on.
func (c ManagerConfig) join(ctx context.Context, r authority.JoinRequest) (authority.JoinAnswer, error) {
	answer, err := c.Authority.Join(ctx, c.Store, r)
	if err != nil {
		c.Log.Warn("A host could not join", "err", err)
		return answer, err
	}
	if _, err := c.Store.Host(ctx, answer.Host); warmboot.CodeOf(err) == warmboot.NotFound {
		err = c.Store.CreateHost(ctx, &warmboot.Host{ID: answer.Host, Name: "host-" + answer.Host.Short(), State: warmboot.HostDown, CreatedAt: time.Now().UTC()})
		if err != nil {
			return answer, err
		}
	} else if err != nil {
		return answer, err
	}
	c.Log.Info("A host has joined", "host_id", answer.Host)
	return answer, nil
}

// host is the host that makes a call. One that was removed is refused, however good its certificate is.
func (c ManagerConfig) host(ctx context.Context) (warmboot.ID, error) {
	peer, err := peerOf(ctx)
	if err != nil {
		return "", err
	}
	if _, err := c.Store.Host(ctx, peer.Host); warmboot.CodeOf(err) == warmboot.NotFound {
		return "", warmboot.Errorf(warmboot.Denied, "know host", "this host was removed from the cluster; it can join again with a new token")
	} else if err != nil {
		return "", err
	}
	return peer.Host, nil
}

type peerKey struct{}

type peerResult struct {
	peer authority.Peer
	err  error
}

// withPeer tells handlers who makes the call.
func withPeer(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, err := authority.PeerOf(r.TLS)
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, peerResult{peer, err})))
	})
}

// peerOf is the host that makes a call.
func peerOf(ctx context.Context) (authority.Peer, error) {
	r, _ := ctx.Value(peerKey{}).(peerResult)
	if r.err == nil && r.peer.Host == "" {
		r.err = warmboot.Errorf(warmboot.Denied, "know host", "only hosts may do that")
	}
	return r.peer, r.err
}

// ManagersOnly lets only managers through.
func ManagersOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, err := authority.PeerOf(r.TLS); err != nil || !peer.Manager {
			http.Error(w, "only managers of this host's cluster may command it", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// Managers is a host's way to the managers: it speaks to one of them, and to the next when that does not answer. It is
// controlplane.Reports and authority.Signer.
type Managers struct {
	addresses []string // host:port

	mu     sync.Mutex
	at     int // of addresses
	client *http.Client
}

var (
	_ controlplane.Reports = (*Managers)(nil)
	_ authority.Signer     = (*Managers)(nil)
)

// NewManagers returns the way to managers at some addresses. Use makes it ready, except for Join.
func NewManagers(addresses []string) *Managers { return &Managers{addresses: addresses} }

// Use sets the host's credentials.
func (m *Managers) Use(c *authority.Credentials) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.client = newClient(c.Client(authority.ManagerName()))
}

// Close ends the connections that nobody uses.
func (m *Managers) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.client != nil {
		m.client.CloseIdleConnections()
	}
	return nil
}

// HostHello implements controlplane.Reports.
func (m *Managers) HostHello(ctx context.Context, h controlplane.Hello) error {
	_, err := ask[controlplane.Hello, empty](ctx, m, "HostHello", &h)
	return err
}

// HostBeat implements controlplane.Reports. Which host it is, the certificate tells.
func (m *Managers) HostBeat(ctx context.Context, _ warmboot.ID, inventory *warmboot.HostInventory) error {
	_, err := ask[beatCall, empty](ctx, m, "HostBeat", &beatCall{inventory})
	return err
}

// ContainerEnded implements controlplane.Reports.
func (m *Managers) ContainerEnded(ctx context.Context, _ warmboot.ID, end controlplane.Ended) error {
	_, err := ask[controlplane.Ended, empty](ctx, m, "ContainerEnded", &end)
	return err
}

// Renew implements authority.Signer.
func (m *Managers) Renew(ctx context.Context, request string) (string, error) {
	res, err := ask[renewal, renewal](ctx, m, "Renew", &renewal{request})
	if err != nil {
		return "", err
	}
	return res.PEM, nil
}

// Join implements authority.Signer.
func (m *Managers) Join(ctx context.Context, config *tls.Config, r authority.JoinRequest) (authority.JoinAnswer, error) {
	client := newClient(config)
	defer client.CloseIdleConnections()
	var last error
	for _, address := range m.addresses {
		answer, err := call[authority.JoinRequest, authority.JoinAnswer](ctx, remote{client, "https://" + address, "manager " + address}, managerService+"Join", &r)
		if err == nil {
			return *answer, nil
		}
		last = err
		if warmboot.CodeOf(err) != warmboot.Unavailable {
			break
		}
	}
	return authority.JoinAnswer{}, last
}

// ask makes a call to the manager that answered last, and if it does not answer any more, to the others in turn.
func ask[Req, Res any](ctx context.Context, m *Managers, procedure string, req *Req) (*Res, error) {
	m.mu.Lock()
	first, client := m.at, m.client
	m.mu.Unlock()
	var last error
	for i := range m.addresses {
		at := (first + i) % len(m.addresses)
		res, err := call[Req, Res](ctx, remote{client, "https://" + m.addresses[at], "manager " + m.addresses[at]}, managerService+procedure, req)
		if err == nil || warmboot.CodeOf(err) != warmboot.Unavailable {
			m.mu.Lock()
			m.at = at
			m.mu.Unlock()
			return res, err
		}
		last = err
	}
	return nil, last
}
