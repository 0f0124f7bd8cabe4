package warmboot

import (
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// ContainerState is a state of a container.
type ContainerState string

// The states of a container.
const (
	ContainerCreating ContainerState = "creating" // its microVM boots, its image is pulled
	ContainerRunning  ContainerState = "running"  // its command runs
	ContainerStopping ContainerState = "stopping" // asked to stop
	ContainerStopped  ContainerState = "stopped"  // its command has ended, or was stopped; disk and logs are kept, the microVM is gone
	ContainerStarting ContainerState = "starting" // a stopped container boots again from its own disk
	ContainerFailed   ContainerState = "failed"   // it could not be started; Error says why
	ContainerDeleting ContainerState = "deleting" // everything of it is being released
)

// MovingStates are those in which somebody is doing something to a container. If nobody is, whoever was has died.
func MovingStates() []ContainerState {
	return []ContainerState{ContainerCreating, ContainerStarting, ContainerStopping, ContainerDeleting}
}

// CanBecome reports whether a container in state s may move to next.
func (s ContainerState) CanBecome(next ContainerState) bool {
	if next == ContainerDeleting {
		return s != ContainerDeleting
	}
	switch s {
	case ContainerCreating, ContainerStarting:
		return next == ContainerRunning || next == ContainerStopped || next == ContainerFailed
	case ContainerRunning:
		return next == ContainerStopping || next == ContainerStopped || next == ContainerFailed
	case ContainerStopping:
		return next == ContainerStopped || next == ContainerFailed
	case ContainerStopped:
		return next == ContainerStarting
	}
	return false
}

// BootMethod tells which way a container's microVM came up.
type BootMethod string

// The boot methods.
const (
	BootWarm BootMethod = "warm" // restored from a runtime snapshot
	BootCold BootMethod = "cold" // booted from the kernel on
)

// Container is one OCI container in a microVM of its own.
type Container struct {
	ID             ID
	Name           string // unique among containers that are not deleted
	Image          string // OCI reference as the user gave it
	RuntimeImageID ID
	HostID         ID // the host that it was placed on
	Spec           ContainerSpec
	State          ContainerState
	Lease          Lease
	BootMethod     BootMethod // empty until the microVM is up
	BootReason     string     // why the boot was cold; empty for a warm one
	VMID           string     // "vm-" and 12 hexadecimal digits; empty when no microVM runs
	SnapshotID     ID         // the snapshot it was restored from; empty for a cold boot
	Phases         []Phase    // of the latest boot, in order
	ExitCode       *int       // of the command, once it has ended
	Error          string     // why it failed
	CreatedAt      time.Time
	StartedAt      *time.Time
	FinishedAt     *time.Time
	// Private says that the pull of its image had credentials. They are not stored, so only whoever created it can start that again.
	Private bool
	// StoppedByUser says that somebody asked for its end, so that its restart policy does not undo that.
	StoppedByUser bool
	Restarts      int // how often the restart policy has brought it up again since somebody last started it
}

// ContainerSpec is what the caller asked to run.
type ContainerSpec struct {
	Command       []string          `json:"command,omitempty"` // replaces the image's entrypoint
	Args          []string          `json:"args,omitempty"`    // replaces the image's arguments
	EnvVars       map[string]string `json:"env_vars,omitempty"`
	PortMappings  []PortMapping     `json:"port_mappings,omitempty"`
	CPULimit      float64           `json:"cpu_limit,omitempty"`       // CPUs; 0 means the microVM's own number
	MemoryLimitMB int               `json:"memory_limit_mb,omitempty"` // MiB; 0 means the microVM's own size
	RestartPolicy RestartPolicy     `json:"restart_policy,omitzero"`
	AutoRemove    bool              `json:"auto_remove,omitempty"` // remove it once its command has ended; not together with a restart policy
	ColdBoot      bool              `json:"cold_boot,omitempty"`   // do not use a snapshot
	Egress        Egress            `json:"egress,omitzero"`
	Bandwidth     Bandwidth         `json:"bandwidth,omitzero"`
}

// RestartPolicy says when a container is started again without anybody asking: Docker's rule
// (https://docs.docker.com/engine/containers/start-containers-automatically/). While the microVM runs, the Docker in it follows the
// policy; when the microVM or its host has gone down, warmboot does.
type RestartPolicy struct {
	Name       RestartName `json:"name,omitempty"`
	MaxRetries int         `json:"max_retries,omitempty"` // of on-failure; 0: no limit
}

// RestartName names a restart policy.
type RestartName string

// The restart policies. None, and the empty one, is never.
const (
	RestartNo            RestartName = "no"
	RestartOnFailure     RestartName = "on-failure"     // ended with an exit code other than 0, or without one
	RestartAlways        RestartName = "always"         // and one that was stopped, when its host is booted again
	RestartUnlessStopped RestartName = "unless-stopped" // but not one that was stopped
)

// ParseRestartPolicy reads Docker's notation: no, always, unless-stopped, on-failure or on-failure:N.
func ParseRestartPolicy(text string) (RestartPolicy, error) {
	name, number, limited := strings.Cut(text, ":")
	p := RestartPolicy{Name: RestartName(name)}
	if limited {
		n, err := strconv.Atoi(number)
		if err != nil || n < 0 || p.Name != RestartOnFailure {
			return RestartPolicy{}, badRestartPolicy(text)
		}
		p.MaxRetries = n
	}
	return p, p.Validate()
}

// Validate reports an Invalid error for a policy that there is not.
func (p RestartPolicy) Validate() error {
	switch p.Name {
	case "", RestartNo, RestartOnFailure, RestartAlways, RestartUnlessStopped:
		if p.MaxRetries >= 0 && (p.MaxRetries == 0 || p.Name == RestartOnFailure) {
			return nil
		}
	}
	return badRestartPolicy(p.String())
}

func badRestartPolicy(text string) error {
	return Errorf(Invalid, "restart policy", "%.60q is no restart policy; use no, on-failure, on-failure:N, always or unless-stopped", text)
}

// String is Docker's notation.
func (p RestartPolicy) String() string {
	switch {
	case p.Name == "":
		return string(RestartNo)
	case p.MaxRetries > 0:
		return string(p.Name) + ":" + strconv.Itoa(p.MaxRetries)
	}
	return string(p.Name)
}

// ShouldRestart reports whether a stopped container's policy wants it up again. rebooted says that its host was booted since.
func (c *Container) ShouldRestart(rebooted bool) bool {
	switch p := c.Spec.RestartPolicy; p.Name {
	case RestartAlways:
		return rebooted || !c.StoppedByUser
	case RestartUnlessStopped:
		return !c.StoppedByUser
	case RestartOnFailure:
		failed := c.ExitCode == nil || *c.ExitCode != 0
		return failed && !c.StoppedByUser && (p.MaxRetries == 0 || c.Restarts < p.MaxRetries)
	}
	return false
}

// Protocol is the transport of a published port.
type Protocol string

// The protocols that can be published.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// PortMapping publishes a port of the container on the host.
type PortMapping struct {
	HostIP        netip.Addr `json:"host_ip"`   // 127.0.0.1 unless the caller says otherwise
	HostPort      uint16     `json:"host_port"` // never 0 once stored
	ContainerPort uint16     `json:"container_port"`
	Protocol      Protocol   `json:"protocol"`
}

// Phase is one timed step of bringing a container up. There is no time between those up to PhaseDocker.
type Phase struct {
	Name     PhaseName     `json:"name"`
	Duration time.Duration `json:"duration_ns"` // nanoseconds
}

// PhaseName names a step of bringing a container up.
type PhaseName string

// The phases, in the order in which they happen. A warm boot has Restore and Reidentify where a cold one has Boot.
const (
	PhaseDisk       PhaseName = "disk"       // cloning or making the data disk
	PhaseVMM        PhaseName = "vmm"        // starting the VMM up to its control socket
	PhaseRestore    PhaseName = "restore"    // loading the device state and resuming
	PhaseReidentify PhaseName = "reidentify" // giving the clone its own identity
	PhaseBoot       PhaseName = "boot"       // kernel and init, up to the guest agent's first answer
	PhaseDocker     PhaseName = "docker"     // up to Docker's first answer
	PhasePull       PhaseName = "pull"       // pulling the OCI image
	PhaseStart      PhaseName = "start"      // creating and starting the container in Docker
)

// containerName is Docker's rule, plus a length that fits in a host name.
var containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}$`)

// ValidateContainerName reports an Invalid error for a name that cannot be used.
func ValidateContainerName(name string) error {
	if !containerName.MatchString(name) {
		return Errorf(Invalid, "container name", "%.80q is not a valid name; use 1 to 63 letters, digits, '_', '.' or '-', starting with a letter or digit", name)
	}
	return nil
}
