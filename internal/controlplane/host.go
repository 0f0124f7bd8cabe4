package controlplane

import (
	"context"
	"io"
	"time"

	"warmboot"
)

// Host is a machine that runs microVMs. Every method that returns an error has released what it took on the host.
type Host interface {
	// Info tells what the host can do. It is cheap: the host found it out when it started.
	Info(ctx context.Context) (HostInfo, error)
	// InspectImage reads a runtime image's files, checks that they are what they claim to be and lie below an
	// allowed root, and returns the image with Digest and SizeBytes set.
	InspectImage(ctx context.Context, img warmboot.Image) (warmboot.Image, error)
	// ReservePorts chooses a free host port wherever one is 0 and reports a Conflict for a port that something on the host
	// uses already.
	ReservePorts(ctx context.Context, ports []warmboot.PortMapping) ([]warmboot.PortMapping, error)
	// BuildSnapshot boots the image, waits for Docker, quiesces and freezes the machine and writes the artifact. step is
	// called as the build goes on. Only one build of one snapshot id may run.
	BuildSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, step func(string)) (Built, error)
	// RemoveSnapshot removes a snapshot's files, if there are any. It is a Conflict while a machine restored from it lives.
	// A snapshot without a path is one whose build finished just as warmboot ended: its files are where the build put them.
	RemoveSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) error
	// WarmBoot restores a machine from a snapshot, gives it its own identity, and returns once Docker has answered. A
	// snapshot that does not fit this host, image or machine size is an Incompatible error (with ErrMachineSize in it, if only the size differs), damaged files are Corrupt.
	WarmBoot(ctx context.Context, m MachineSpec, snap warmboot.RuntimeSnapshot) (Booted, error)
	// ColdBoot boots a machine from its runtime image, on the container's own disk if it has one already, and returns
	// once Docker has answered.
	ColdBoot(ctx context.Context, m MachineSpec) (Booted, error)
	// StartContainer pulls the image into the machine of container c, creates and starts the OCI container. If the
	// machine's disk holds that container already it is only started.
	StartContainer(ctx context.Context, c warmboot.Container, auth *RegistryAuth, step func(string)) ([]warmboot.Phase, error)
	// WaitExit returns once the command of container id has ended, with its exit code, or with an Unavailable error
	// once its machine has died.
	WaitExit(ctx context.Context, id warmboot.ID) (int, error)
	// StopContainer lets the command end within grace, keeps its logs, shuts the machine down and keeps its disk.
	// Idempotent; a container without a machine is stopped already. It returns the command's exit code, -1 if unknown.
	StopContainer(ctx context.Context, id warmboot.ID, grace time.Duration) (int, error)
	// RemoveContainer ends the machine at once and removes everything of the container. Idempotent.
	RemoveContainer(ctx context.Context, id warmboot.ID) error
	// Logs streams the command's output, oldest first; of a stopped container too.
	Logs(ctx context.Context, id warmboot.ID, opts LogOptions) (LogReader, error)
	// Exec runs a command in a running container.
	Exec(ctx context.Context, id warmboot.ID, spec ExecSpec) (ExecSession, error)
	// Garbage lists what the host has that may be of no use: its containers, snapshots and runtime images, and what no running build
	// owns of what builds make.
	Garbage(ctx context.Context) ([]Garbage, error)
	// ImageFiles returns the paths that Garbage gives for what these runtime images need.
	ImageFiles(ctx context.Context, images []*warmboot.Image) (map[string]bool, error)
	// Discard removes a temporary or a runtime image that Garbage has listed. It is a Conflict if a build has come to own it.
	Discard(ctx context.Context, g Garbage) error
	// ScrubSnapshot reads a snapshot's files again and checks their digests. Damage is a Corrupt error.
	ScrubSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) error
	// Containers lists the ids of all containers of which the host still has anything.
	Containers(ctx context.Context) ([]HostContainer, error)
}

// HostInfo is what a host tells about itself.
type HostInfo struct {
	VMM    string // "qemu-7.2.22", as in fc_version
	VMMWhy string // one line: why this VMM and accelerator
}

// HostContainer is what a host has of a container.
type HostContainer struct {
	ID      warmboot.ID
	Running bool // its machine runs
}

// Built is a finished snapshot artifact.
type Built struct {
	Path      string
	FCVersion string
	Metadata  warmboot.SnapshotMetadata
}

// MachineSpec is a machine for one container.
type MachineSpec struct {
	Container warmboot.ID
	VMID      string
	Hostname  string
	Image     warmboot.Image
	Spec      warmboot.ContainerSpec // ports, CPU and memory decide the machine's shape
}

// Booted is a machine whose Docker has answered.
type Booted struct {
	Phases []warmboot.Phase
}

// RegistryAuth is what a registry asks for. It lives as long as the pull.
type RegistryAuth struct {
	Username, Password string
}

// LogOptions choose what Logs gives.
type LogOptions struct {
	Follow bool
	Tail   int // last lines only; negative: all
}

// LogLine is one line of a command's output.
type LogLine struct {
	Stream string // "stdout" or "stderr"
	Time   time.Time
	Text   string // with its line end
}

// LogReader gives log lines until io.EOF. Close ends it early.
type LogReader interface {
	Next() (LogLine, error)
	io.Closer
}

// ExecSpec is a command to run in a running container.
type ExecSpec struct {
	Command []string
	EnvVars map[string]string
	Workdir string
	User    string
	TTY     bool
	Stdin   bool
}

// ExecSession is a command that runs. Close kills the connection, not the command.
type ExecSession interface {
	// Stdin is written to the command; closing it is end of file.
	Stdin() io.WriteCloser
	// Next gives the next piece of output; io.EOF when the command has ended and all its output is out.
	Next() (stream string, data []byte, err error)
	Resize(ctx context.Context, columns, rows uint) error
	// ExitCode is valid after Next has returned io.EOF.
	ExitCode(ctx context.Context) (int, error)
	Close() error
}
