package httpapi

import (
	"net/netip"
	"strings"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/controlplane"
)

func item[T any](v T) *answer[api.Item[T]] { return &answer[api.Item[T]]{api.Item[T]{Item: v}} }

func done(err error) (*answer[api.OK], error) {
	if err != nil {
		return nil, err
	}
	return &answer[api.OK]{api.OK{OK: true}}, nil
}

func imageOut(img *warmboot.Image) api.Image {
	return api.Image{
		ID: string(img.ID), Name: img.Name, KernelPath: img.KernelPath, InitrdPath: img.InitrdPath, RootfsPath: img.RootfsPath,
		Digest: img.Digest, SizeBytes: img.SizeBytes, CreatedAt: img.CreatedAt,
	}
}

func (s *server) snapshotOut(snap *warmboot.RuntimeSnapshot) api.Snapshot {
	m := snap.Metadata
	return api.Snapshot{
		ID: string(snap.ID), RuntimeImageID: string(snap.RuntimeImageID), SnapshotPath: snap.SnapshotPath, State: string(snap.State),
		FCVersion: snap.FCVersion, CreatedAt: snap.CreatedAt, SuccessCount: snap.SuccessCount, FailureCount: snap.FailureCount, LastUsedAt: snap.LastUsedAt,
		Metadata: api.SnapshotMetadata{
			SizeBytes: m.SizeBytes, MemSizeBytes: m.MemSizeBytes, CompressedSizeBytes: m.CompressedSizeBytes, Compressed: m.Compressed,
			DockerVersion: m.DockerVersion, VCPUs: m.VCPUs, BuildSeconds: m.BuildSeconds, ColdBootSeconds: m.ColdBootSeconds,
			PauseSeconds: m.PauseSeconds, Step: m.Step, Error: m.Error,
		},
	}
}

func (s *server) containerOut(c *warmboot.Container) api.Container {
	out := api.Container{
		ID: string(c.ID), Name: c.Name, Image: c.Image, RuntimeImageID: string(c.RuntimeImageID),
		Command: c.Spec.Command, Args: c.Spec.Args, EnvVars: c.Spec.EnvVars, CPULimit: c.Spec.CPULimit, MemoryLimitMB: c.Spec.MemoryLimitMB,
		State: string(c.State), BootReason: c.BootReason, VMID: c.VMID, SnapshotID: string(c.SnapshotID),
		ExitCode: c.ExitCode, Error: c.Error, CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
		HostID: string(c.HostID), Host: s.svc.HostName(c.HostID), HostState: string(s.svc.HostState(c.HostID)), Restarts: c.Restarts, AutoRemove: c.Spec.AutoRemove,
	}
	if c.Spec.RestartPolicy.Name != "" {
		out.RestartPolicy = c.Spec.RestartPolicy.String()
	}
	if e := c.Spec.Egress; e.Policy != "" {
		out.Egress = &api.Egress{Policy: string(e.Policy), DNS: e.DNS}
		for _, p := range e.Allow {
			out.Egress.Allow = append(out.Egress.Allow, p.String())
		}
	}
	if b := c.Spec.Bandwidth; b.Limited() {
		out.Bandwidth = &api.Bandwidth{IngressMbit: b.IngressMbit, EgressMbit: b.EgressMbit}
	}
	if c.BootMethod != "" {
		method := string(c.BootMethod)
		out.BootMethod = &method
	}
	for _, p := range c.Spec.PortMappings {
		out.PortMappings = append(out.PortMappings, api.PortMapping{HostIP: p.HostIP.String(), HostPort: int(p.HostPort), ContainerPort: int(p.ContainerPort), Protocol: string(p.Protocol)})
	}
	for _, p := range c.Phases {
		out.Phases = append(out.Phases, api.Phase{Name: string(p.Name), Seconds: p.Duration.Seconds()})
	}
	return out
}

func hostOut(h *warmboot.Host) api.Host {
	i := h.Inventory
	out := api.Host{
		ID: string(h.ID), Name: h.Name, Address: h.Address, State: string(h.State), Cordoned: h.Cordoned, LastSeenAt: h.LastSeenAt, CreatedAt: h.CreatedAt,
		Inventory: api.HostInventory{
			Version: i.Version, VMM: i.VMM, VMMWhy: i.VMMWhy, VMMWarning: i.VMMWarning, Network: i.Network, NetworkWhy: i.NetworkWhy, Arch: i.Arch, CPU: i.CPU, Platform: i.Platform, CPUs: i.CPUs, MemoryBytes: i.MemoryBytes,
			DiskBytes: i.DiskBytes, DiskFreeBytes: i.DiskFree, MaxVMs: i.MaxVMs, VMs: i.VMs,
		},
	}
	for _, id := range i.Snapshots {
		out.Inventory.Snapshots = append(out.Inventory.Snapshots, string(id))
	}
	return out
}

// createIn reads what the schema cannot express.
func createIn(in api.CreateContainer) (controlplane.CreateContainer, error) {
	const op = "create container"
	out := controlplane.CreateContainer{
		Name: in.Name, Image: in.Image,
		Spec: warmboot.ContainerSpec{Command: in.Command, Args: in.Args, EnvVars: in.EnvVars, CPULimit: in.CPULimit, MemoryLimitMB: in.MemoryLimitMB, AutoRemove: in.AutoRemove, ColdBoot: in.ColdBoot},
	}
	if in.RestartPolicy != "" {
		policy, err := warmboot.ParseRestartPolicy(in.RestartPolicy)
		if err != nil {
			return out, err
		}
		out.Spec.RestartPolicy = policy
	}
	if e := in.Egress; e != nil {
		out.Spec.Egress = warmboot.Egress{Policy: warmboot.EgressPolicy(e.Policy), DNS: e.DNS}
		for _, text := range e.Allow {
			network, err := warmboot.ParseEgressNetwork(text)
			if err != nil {
				return out, err
			}
			out.Spec.Egress.Allow = append(out.Spec.Egress.Allow, network)
		}
	}
	if b := in.Bandwidth; b != nil {
		out.Spec.Bandwidth = warmboot.Bandwidth{IngressMbit: b.IngressMbit, EgressMbit: b.EgressMbit}
	}
	if in.RuntimeImageID != "" {
		id, err := warmboot.ParseID(in.RuntimeImageID)
		if err != nil {
			return out, err
		}
		out.RuntimeImageID = id
	}
	if in.RegistryAuth != nil {
		out.Auth = &controlplane.RegistryAuth{Username: in.RegistryAuth.Username, Password: in.RegistryAuth.Password}
	}
	for _, words := range [][]string{in.Command, in.Args} {
		for _, w := range words {
			if strings.ContainsRune(w, 0) {
				return out, warmboot.Errorf(warmboot.Invalid, op, "the command has a word with a NUL byte, which no program can be given")
			}
		}
	}
	for key, value := range in.EnvVars {
		if key == "" || strings.ContainsAny(key, "=\x00") || strings.ContainsRune(value, 0) {
			return out, warmboot.Errorf(warmboot.Invalid, op, "%.80q is not a variable that an environment can hold; its name must not be empty or have '=', and nothing may have a NUL byte", key)
		}
	}
	var err error
	out.Spec.PortMappings, err = portsIn(op, in.PortMappings)
	return out, err
}

func portsIn(op string, in []api.PortMapping) (out []warmboot.PortMapping, err error) {
	for _, p := range in {
		ip := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		if p.HostIP != "" {
			parsed, err := netip.ParseAddr(p.HostIP)
			if err != nil {
				return nil, warmboot.Errorf(warmboot.Invalid, op, "host_ip %.60q is not an IP address (%w); use a form like 127.0.0.1", p.HostIP, err)
			}
			ip = parsed.Unmap()
		}
		protocol := warmboot.Protocol(p.Protocol)
		if protocol == "" {
			protocol = warmboot.TCP
		}
		out = append(out, warmboot.PortMapping{HostIP: ip, HostPort: uint16(p.HostPort), ContainerPort: uint16(p.ContainerPort), Protocol: protocol})
	}
	return out, nil
}
