package agent

import (
	"context"
	"net"
	"os"
	"strconv"
	"strings"

	"warmboot"
	"warmboot/internal/hostnet"
	"warmboot/internal/vmm"
)

// openNetwork finds out how microVMs can be connected here.
func (a *Agent) openNetwork(ctx context.Context) error {
	c := a.Network
	c.Owner, c.Registries, c.Log = strings.ReplaceAll(string(a.ID), "-", "")[:6], registryPorts(a.PlainHTTPRegistries), a.Log
	if os.Geteuid() == 0 {
		c.FirstUID = a.OwnerBase + 1
	}
	n, err := hostnet.Open(ctx, c)
	if err != nil {
		return err
	}
	if n.Mode() == hostnet.TAP {
		a.caps.Network = string(hostnet.TAP)
	} else if a.caps.Driver == "firecracker" {
		_ = n.Close() // nothing was taken
		return warmboot.Errorf(warmboot.Unavailable, "open network", "Firecracker needs TAPs, and there can be none here: %s", n.Why())
	}
	a.net = n
	return nil
}

// registryPorts are the ports of registries that guests may reach on this host.
func registryPorts(registries []string) (ports []uint16) {
	for _, r := range registries {
		if _, text, err := net.SplitHostPort(r); err == nil {
			if port, err := strconv.ParseUint(text, 10, 16); err == nil {
				ports = append(ports, uint16(port))
			}
		}
	}
	return ports
}

// networkOf is what a container needs of its microVM's network.
func networkOf(s warmboot.ContainerSpec) hostnet.Wants {
	w := hostnet.Wants{Egress: s.Egress, Bandwidth: s.Bandwidth}
	for _, p := range s.PortMappings {
		w.Forwards = append(w.Forwards, vmm.Forward{Protocol: p.Protocol, HostIP: p.HostIP, HostPort: p.HostPort, GuestPort: p.ContainerPort})
	}
	return w
}

// owner is the user and group that the VMM in a slot runs as, and nothing else does (docs/adr/0020-jailer.md). Slot 0 has the id after the readers'.
func (a *Agent) owner(slot *hostnet.Slot) vmm.Owner {
	if os.Geteuid() != 0 {
		return vmm.Owner{}
	}
	id := a.OwnerBase + 1 + uint32(slot.Number)
	return vmm.Owner{UID: id, GID: id, Readers: a.OwnerBase}
}

// Slots tells how many microVMs this host has a place for, and how many places are taken, those of builds included.
func (a *Agent) Slots() (used, total int) { return a.net.Used(), a.net.Total() }

// Connected tells how microVMs are connected here, and if not by TAPs, why.
func (a *Agent) Connected() (mode hostnet.Mode, why string) { return a.net.Mode(), a.net.Why() }
