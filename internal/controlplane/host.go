package controlplane

import (
	"context"
	"errors"
	"io"
	"time"

	"warmboot"
)

// ErrUnknownCall is the cause of an Incompatible error when the other end runs a version of warmboot that does not know what it was asked for.
var ErrUnknownCall = errors.New("it does not know the call")

// Host is a machine that runs microVMs. Every method that returns an error has released what it took on the host. Whatever
// changes a container carries the generation of the lease under which it is asked for: a host that has obeyed a newer one refuses
// with a Conflict, because who asks was cut off and does not know that another manager has taken over.
type Host interface {
	// Inventory tells what the host can do and has. It is cheap: the host found it out when it started.
	Inventory(ctx context.Context) (warmboot.HostInventory, error)
	// InspectImage reads a runtime image's files, checks that they are what they claim to be and lie below an
	// allowed root, and returns the image with Digest and SizeBytes set.
	InspectImage(ctx context.Context, img warmboot.Image) (warmboot.Image, error)
	// FetchImage makes sure that the host has a runtime image's files, getting them from a peer if it has none of its own.
	FetchImage(ctx context.Context, img warmboot.Image, peers []Peer) error
	// ReservePorts chooses a free host port wherever one is 0 and reports a Conflict for a port that something on the host
	// uses already.
	ReservePorts(ctx context.Context, ports []warmboot.PortMapping) ([]warmboot.PortMapping, error)
	// BuildSnapshot boots the image, waits for Docker, quiesces and freezes the machine and writes the artifact. step is
	// called as the build goes on. A build of the same snapshot that runs already is ended first.
	BuildSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, step func(string)) (Built, error)
	// FetchSnapshot gets a snapshot's files from a peer, checks them, and has them when it returns.
	FetchSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, peers []Peer) error
	// RemoveSnapshot removes a snapshot's files, if there are any. It is a Conflict while a machine restored from it lives.
	RemoveSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) error
	// WarmBoot restores a machine from a snapshot, gives it its own identity, and returns once Docker has answered. A
	// snapshot that does not fit this host, image or machine size is an Incompatible error (with ErrMachineSize in it, if only the size differs), damaged files are Corrupt.
	WarmBoot(ctx context.Context, m MachineSpec, snap warmboot.RuntimeSnapshot) (Booted, error)
	// ColdBoot boots a machine from its runtime image, on the container's own disk if it has one already, and returns
	// once Docker has answered.
	ColdBoot(ctx context.Context, m MachineSpec) (Booted, error)
	// StartContainer pulls the image into the machine of container c, creates and starts the OCI container. If the
	// machine's disk holds that container already it is only started. From then on the host reports its end (Reports). If the machine
	// ends meanwhile it is an Unavailable error, with ErrNotStarted in it if the container may be started in another.
	StartContainer(ctx context.Context, c warmboot.Container, auth *RegistryAuth, step func(string)) ([]warmboot.Phase, error)
	// UpdateContainer makes the Docker of a container whose command runs follow the container's restart policy from now on.
	UpdateContainer(ctx context.Context, c warmboot.Container) error
	// StopContainer lets the command end within grace, keeps its logs, shuts the machine down and keeps its disk.
	// Idempotent; a container without a machine is stopped already. It returns the command's exit code, -1 if unknown.
	StopContainer(ctx context.Context, ref ContainerRef, grace time.Duration) (int, error)
	// RemoveContainer ends the machine at once and removes everything of the container. Idempotent.
	RemoveContainer(ctx context.Context, ref ContainerRef) error
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
	// Containers lists all containers of which the host still has anything.
	Containers(ctx context.Context) ([]HostContainer, error)
}

// Hosts is the way to hosts.
type Hosts interface {
	// Host returns a host to command. One that cannot be reached from here is an Unavailable error.
	Host(h *warmboot.Host) (Host, error)
}

// Reports is what a host tells the control plane. A Service is one.
type Reports interface {
	// HostHello introduces a host, when its agent has started and whenever HostBeat asks for it. Once it returns, the control plane has
	// compared what the host has with what it knows.
	HostHello(ctx context.Context, h Hello) error
	// HostBeat is a sign of life; inventory is nil if nothing has changed. A NotFound error asks for a HostHello.
	HostBeat(ctx context.Context, host warmboot.ID, inventory *warmboot.HostInventory) error
	// ContainerEnded tells that a container's command, or its machine, has ended by itself. It is told again until it succeeds.
	ContainerEnded(ctx context.Context, host warmboot.ID, end Ended) error
}

// Hello introduces a host.
type Hello struct {
	ID         warmboot.ID
	Name       string
	Address    string // host:port of its agent
	Inside     bool   // it is in this very process, as in `warmboot serve`: nobody else could let it join
	Inventory  warmboot.HostInventory
	Containers []HostContainer
}

// Ended tells how a container has ended.
type Ended struct {
	Container warmboot.ID
	Code      int    // of the command; -1 if it is not known
	Reason    string // why it is not known: what happened to the machine
	// Cut says that Docker could not be asked any more whether it starts the command again, as it does where the restart policy wants that.
	Cut bool
}

// Peer is another host, from which files can be fetched.
type Peer struct {
	ID      warmboot.ID
	Address string
}

// ContainerRef is a container to command.
type ContainerRef struct {
	ID         warmboot.ID
	Generation int64 // of the lease under which it is asked for; 0 asks without one, for what nobody knows
}

// HostContainer is what a host has of a container.
type HostContainer struct {
	ID         warmboot.ID
	Running    bool  // its machine runs
	Generation int64 // of the latest lease that the host has obeyed
	// Container is what the host was told to start, once its command has been started: enough to know it by if the store has forgotten
	// it.
	Container *warmboot.Container
}

// Built is a finished snapshot artifact.
type Built struct {
	Path      string
	FCVersion string
	Metadata  warmboot.SnapshotMetadata
}

// MachineSpec is a machine for one container.
type MachineSpec struct {
	Container ContainerRef
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
