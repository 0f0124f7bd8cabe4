package agentrpc

import (
	"net/http"
	"sync"

	"warmboot"
	"warmboot/internal/authority"
	"warmboot/internal/controlplane"
)

// Hosts is a manager's way to hosts (controlplane.Hosts). Each host has one connection, which is made when it is first needed.
type Hosts struct {
	credentials *authority.Credentials

	mu      sync.Mutex
	clients map[warmboot.ID]*http.Client
}

var _ controlplane.Hosts = (*Hosts)(nil)

// NewHosts returns the way to hosts for a manager with these credentials.
func NewHosts(c *authority.Credentials) *Hosts {
	return &Hosts{credentials: c, clients: map[warmboot.ID]*http.Client{}}
}

// Host implements controlplane.Hosts. Whether the host answers, its first call tells.
func (p *Hosts) Host(h *warmboot.Host) (controlplane.Host, error) {
	if h.Address == "" {
		return nil, warmboot.Errorf(warmboot.Unavailable, "reach host", "host %s is inside a `warmboot serve`, which alone can command it (%w); use `warmboot manager` and `warmboot agent` for several hosts", h.Name, controlplane.ErrUnreachable)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[h.ID]
	if c == nil {
		c = newClient(p.credentials.Client(authority.HostName(h.ID)))
		p.clients[h.ID] = c
	}
	return host{remote{http: c, base: "https://" + h.Address, who: "host " + h.Name}}, nil
}

// Close ends the connections that nobody uses.
func (p *Hosts) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.clients {
		c.CloseIdleConnections()
	}
	return nil
}
