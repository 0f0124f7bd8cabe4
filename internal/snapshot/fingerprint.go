package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"warmboot/internal/vmm"
)

// Fingerprint is everything that a frozen machine and the place that thaws it must have in common. A snapshot whose
// fingerprint differs in any field is never restored: the container boots cold and the snapshot is rebuilt.
type Fingerprint struct {
	VMM             string `json:"vmm"`
	Version         string `json:"version"`
	BinaryDigest    string `json:"binary_digest"`
	SnapshotVersion string `json:"snapshot_version"`
	Accelerator     string `json:"accelerator"`
	MachineType     string `json:"machine_type"`
	Arch            string `json:"arch"`
	CPUModel        string `json:"cpu_model"`
	KernelRelease   string `json:"kernel_release"`    // of the host, under KVM only
	Network         string `json:"network,omitempty"` // "tap"; empty in user mode
	ImageDigest     string `json:"image_digest"`
	VCPUs           int    `json:"vcpus"`
	MemoryMiB       int    `json:"memory_mib"`
}

// FingerprintOf is the fingerprint of a machine of the given shape and image on a host with these capabilities.
func FingerprintOf(c vmm.Capabilities, imageDigest string, vcpus, memoryMiB int) Fingerprint {
	return Fingerprint{
		VMM: c.Driver, Version: c.Version, BinaryDigest: c.BinaryDigest, SnapshotVersion: c.SnapshotVersion,
		Accelerator: c.Accelerator, MachineType: c.MachineType, Arch: c.Arch, CPUModel: c.CPUModel,
		KernelRelease: c.KernelRelease, Network: c.Network, ImageDigest: imageDigest, VCPUs: vcpus, MemoryMiB: memoryMiB,
	}
}

// Platform stands for the fingerprint without its image, and for the format of artifacts: snapshots of one platform can be used by the hosts of that
// platform, which an update of warmboot may have reached or not. It is the beginning of a SHA-256, in hexadecimal.
func (f Fingerprint) Platform() string { return f.platform(FormatVersion) }

func (f Fingerprint) platform(format int) string {
	f.ImageDigest = ""
	text, err := json.Marshal(struct {
		Fingerprint
		Format int `json:"format"`
	}{f, format})
	if err != nil {
		panic(err) // strings and numbers only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

// Mismatch tells in words the first difference between the snapshot's fingerprint f and that of a machine wanted
// here, or "" if there is none.
func (f Fingerprint) Mismatch(here Fingerprint) string {
	for _, field := range []struct {
		name       string
		then, want any
	}{
		{"VMM", f.VMM, here.VMM},
		{"VMM version", f.Version, here.Version},
		{"VMM binary", f.BinaryDigest, here.BinaryDigest},
		{"snapshot format", f.SnapshotVersion, here.SnapshotVersion},
		{"accelerator", f.Accelerator, here.Accelerator},
		{"machine type", f.MachineType, here.MachineType},
		{"architecture", f.Arch, here.Arch},
		{"CPU", f.CPUModel, here.CPUModel},
		{"host kernel", f.KernelRelease, here.KernelRelease},
		{"network", networkName(f.Network), networkName(here.Network)},
		{"runtime image", f.ImageDigest, here.ImageDigest},
		{"vCPUs", f.VCPUs, here.VCPUs},
		{"memory (MiB)", f.MemoryMiB, here.MemoryMiB},
	} {
		if field.then != field.want {
			return fmt.Sprintf("%s: snapshot has %v, this machine needs %v", field.name, field.then, field.want)
		}
	}
	return ""
}

func networkName(n string) string {
	if n == "" {
		return "user mode"
	}
	return n
}
