package agent

import (
	"net/netip"
	"os"
	"sync"

	"warmboot"
	"warmboot/internal/vmm"
)

// maxSlots is how many /24 networks fit into guestNetworks.
const maxSlots = 1 << 14

// guestNetworks is where user-mode guests have their addresses: the shared address space of RFC 6598, which no container
// bridge and hardly any local network uses. Every microVM has a /24 of it for itself.
var guestNetworks = netip.MustParsePrefix("100.64.0.0/10")

// slots hands out small numbers; a number decides the user that a VMM runs as and the addresses of its guest, so that no two
// running microVMs share either. The zero value is ready.
type slots struct {
	mu   sync.Mutex
	used map[int]bool
}

// take returns the smallest free slot.
func (s *slots) take() (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range maxSlots {
		if !s.used[n] {
			s.mark(n)
			return n, nil
		}
	}
	return 0, warmboot.Errorf(warmboot.Exhausted, "take slot", "all %d microVM slots of this host are in use", maxSlots)
}

// claim marks the slot of a microVM that was found running.
func (s *slots) claim(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mark(n)
}

func (s *slots) mark(n int) {
	if s.used == nil {
		s.used = map[int]bool{}
	}
	s.used[n] = true
}

func (s *slots) free(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.used, n)
}

// count tells how many are in use.
func (s *slots) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.used)
}

// owner is the user that the VMM in a slot runs as. Slot 0 has the id after the shared group's.
func (a *Agent) owner(slot int) vmm.Owner {
	if os.Geteuid() != 0 {
		return vmm.Owner{}
	}
	return vmm.Owner{UID: a.OwnerBase + 1 + uint32(slot), GID: a.OwnerBase}
}

// network is the guest network of a slot.
func network(slot int, ports []warmboot.PortMapping) vmm.Network {
	base := guestNetworks.Addr().As4()
	base[1] += byte(slot >> 8)
	base[2] = byte(slot)
	n := vmm.Network{Subnet: netip.PrefixFrom(netip.AddrFrom4(base), 24)}
	for _, p := range ports {
		n.Forwards = append(n.Forwards, vmm.Forward{Protocol: p.Protocol, HostIP: p.HostIP, HostPort: p.HostPort, GuestPort: p.ContainerPort})
	}
	return n
}

// OwnerRange is the first and the last of the user ids that this agent's VMMs run as.
func (a *Agent) OwnerRange() (first, last uint32) { return a.OwnerBase + 1, a.OwnerBase + maxSlots }

// Slots tells how many microVMs this host has a place for, and how many places are taken, those of builds included.
func (a *Agent) Slots() (used, total int) { return a.slots.count(), maxSlots }
