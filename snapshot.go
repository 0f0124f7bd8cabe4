package warmboot

import "time"

// SnapshotState is a state of a runtime snapshot.
type SnapshotState string

// The states of a runtime snapshot.
const (
	SnapshotCreating  SnapshotState = "creating"  // being built
	SnapshotReady     SnapshotState = "ready"     // containers may start from it
	SnapshotUnhealthy SnapshotState = "unhealthy" // failed to build, or failed too often in a row; needs a rebuild
	SnapshotDeleted   SnapshotState = "deleted"   // soft deleted; its files go later
)

// UnhealthyAfter is how many failed restores in a row make a snapshot unhealthy.
const UnhealthyAfter = 3

// CanBecome reports whether a snapshot in state s may move to next.
func (s SnapshotState) CanBecome(next SnapshotState) bool {
	switch s {
	case SnapshotCreating:
		return next == SnapshotReady || next == SnapshotUnhealthy || next == SnapshotDeleted
	case SnapshotReady:
		return next == SnapshotUnhealthy || next == SnapshotDeleted
	case SnapshotUnhealthy:
		return next == SnapshotDeleted
	}
	return false
}

// RuntimeSnapshot is a frozen microVM with Docker already running, made from one runtime image.
type RuntimeSnapshot struct {
	ID             ID
	RuntimeImageID ID
	HostID         ID     // the host that builds it, or has built it
	Platform       string // of that host (HostInventory.Platform): hosts of another cannot use it
	Lease          Lease  // of the manager that has it built
	SnapshotPath   string // the artifact's directory on the host that built it
	State          SnapshotState
	FCVersion      string // the VMM it was made with, "v1.15.1" for Firecracker, "qemu-7.2.22" for QEMU
	CreatedAt      time.Time
	SuccessCount   int64 // cumulative
	FailureCount   int64 // cumulative
	FailureStreak  int   // failed restores since the last success
	// Attempt counts the automatic builds in a row that led to this snapshot without a container having started warm from one of
	// them; 0 for one that somebody asked for.
	Attempt    int
	LastUsedAt *time.Time
	Metadata   SnapshotMetadata
}

// SnapshotMetadata is what the API tells about a snapshot's content. Sizes are in bytes.
type SnapshotMetadata struct {
	SizeBytes           int64   `json:"size_bytes"`     // disk space that the artifact occupies
	MemSizeBytes        int64   `json:"mem_size_bytes"` // the guest's memory
	CompressedSizeBytes int64   `json:"compressed_size_bytes,omitempty"`
	Compressed          bool    `json:"compressed"`
	DockerVersion       string  `json:"docker_version,omitempty"`
	VCPUs               int     `json:"vcpus,omitempty"`
	BuildSeconds        float64 `json:"build_seconds,omitempty"`
	ColdBootSeconds     float64 `json:"cold_boot_seconds,omitempty"` // from VMM start to Docker answering, in the build
	PauseSeconds        float64 `json:"pause_seconds,omitempty"`     // from the pause to files that can be restored from
	Digest              string  `json:"digest,omitempty"`            // SHA-256 of metadata.json, which has those of the other files
	Step                string  `json:"step,omitempty"`              // what the build is doing, while the state is creating
	Error               string  `json:"error,omitempty"`             // why it is unhealthy
}
