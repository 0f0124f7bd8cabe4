package controlplane

import (
	"context"
	"log/slog"
	"time"

	"warmboot"
)

// Config is what a Service needs.
type Config struct {
	Store warmboot.Store
	Host  Host
	Log   *slog.Logger
	// SnapshotWait is how long a create waits for a snapshot that is being built. 0 means 60 s.
	SnapshotWait time.Duration
}

// Service is the control plane. It is safe for concurrent use.
type Service struct {
	Config
}

// New returns a Service. Run must be called for it to take up what an earlier process left.
func New(c Config) *Service { return &Service{Config: c} }

// WaitFor is a condition on a container.
type WaitFor string

// The conditions.
const (
	WaitStarted WaitFor = "started" // no longer creating or starting: running, stopped or failed
	WaitStopped WaitFor = "stopped" // stopped or failed
)

// CreateContainer is what the caller asks for.
type CreateContainer struct {
	Name           string // made up if empty
	Image          string
	RuntimeImageID warmboot.ID // newest if empty
	Spec           warmboot.ContainerSpec
	Auth           *RegistryAuth
	ColdBoot       bool
}

// Signatures that httpapi is written against; bodies in images.go, snapshots.go, containers.go.
type signatures interface {
	RegisterImage(ctx context.Context, img warmboot.Image) (*warmboot.Image, error)
	Images(ctx context.Context) ([]*warmboot.Image, error)
	Image(ctx context.Context, ref string) (*warmboot.Image, error) // id or name
	DeleteImage(ctx context.Context, ref string) error

	BuildSnapshot(ctx context.Context, image warmboot.ID) (warmboot.ID, error) // asynchronous
	Snapshots(ctx context.Context) ([]*warmboot.RuntimeSnapshot, error)
	Snapshot(ctx context.Context, id warmboot.ID) (*warmboot.RuntimeSnapshot, error)
	SnapshotStep(id warmboot.ID) string // what a running build is doing
	DeleteSnapshot(ctx context.Context, id warmboot.ID) error
	RebuildSnapshot(ctx context.Context, id warmboot.ID) (warmboot.ID, error)

	CreateContainer(ctx context.Context, in CreateContainer) (*warmboot.Container, error) // asynchronous
	Containers(ctx context.Context) ([]*warmboot.Container, error)
	Container(ctx context.Context, ref string) (*warmboot.Container, error) // id, name, or beginning of an id
	WaitContainer(ctx context.Context, ref string, cond WaitFor) (*warmboot.Container, error)
	StopContainer(ctx context.Context, ref string, grace time.Duration) (*warmboot.Container, error)
	StartContainer(ctx context.Context, ref string) (*warmboot.Container, error) // asynchronous
	DeleteContainer(ctx context.Context, ref string, force bool) error           // a running one only with force
	Logs(ctx context.Context, ref string, opts LogOptions) (LogReader, error)
	Exec(ctx context.Context, ref string, spec ExecSpec) (ExecSession, error)
	HostInfo(ctx context.Context) (HostInfo, error)
}
