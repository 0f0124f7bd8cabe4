// Package api is the REST API's wire format: the JSON bodies of /v1, as Go types. The server (internal/httpapi) and the
// public client (client) both use these, so they cannot drift apart. The struct tags feed the OpenAPI description.
//
// The envelopes are the founding document's: {"items": [...]}, {"item": {...}}, {"id": "..."} and {"ok": true}.
package api

import (
	"encoding/json"
	"fmt"
	"time"
)

// Items is the envelope of a list, or of a part of it.
type Items[T any] struct {
	Items      []T    `json:"items"`
	NextCursor string `json:"next_cursor,omitempty" doc:"Where the next part begins; left out after the last item."`
}

// Item is the envelope of one entity.
type Item[T any] struct {
	Item T `json:"item"`
}

// Created is the answer to a create: the work goes on in the background.
type Created struct {
	ID string `json:"id" format:"uuid"`
}

// Rebuilding is the answer to a rebuild.
type Rebuilding struct {
	ID      string `json:"id" format:"uuid" doc:"The snapshot that will take the old one's place once it is ready."`
	Message string `json:"message"`
}

// OK is the answer to a request that has nothing else to tell.
type OK struct {
	OK bool `json:"ok"`
}

// Image is a runtime image.
type Image struct {
	ID         string    `json:"id" format:"uuid"`
	Name       string    `json:"name"`
	KernelPath string    `json:"kernel_path"`
	InitrdPath string    `json:"initrd_path,omitempty"`
	RootfsPath string    `json:"rootfs_path"`
	Digest     string    `json:"digest" doc:"SHA-256 over the digests of kernel, initrd and root disk."`
	SizeBytes  int64     `json:"size_bytes"`
	CreatedAt  time.Time `json:"created_at"`
}

// RegisterImage asks to register a runtime image whose files are on the host already, below an allowed root.
type RegisterImage struct {
	Name       string `json:"name" minLength:"1" maxLength:"63" pattern:"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"`
	KernelPath string `json:"kernel_path" minLength:"1" maxLength:"4096"`
	InitrdPath string `json:"initrd_path,omitempty" maxLength:"4096"`
	RootfsPath string `json:"rootfs_path" minLength:"1" maxLength:"4096"`
}

// CreateSnapshot asks for a runtime snapshot of a runtime image.
type CreateSnapshot struct {
	RuntimeImageID string `json:"runtime_image_id" format:"uuid"`
}

// Snapshot is a runtime snapshot.
type Snapshot struct {
	ID             string           `json:"id" format:"uuid"`
	RuntimeImageID string           `json:"runtime_image_id" format:"uuid"`
	SnapshotPath   string           `json:"snapshot_path"`
	State          string           `json:"state" enum:"creating,ready,unhealthy,deleted"`
	FCVersion      string           `json:"fc_version" doc:"The VMM it was made with: v1.15.1 for Firecracker, qemu-7.2.22 for QEMU."`
	CreatedAt      time.Time        `json:"created_at"`
	SuccessCount   int64            `json:"success_count"`
	FailureCount   int64            `json:"failure_count"`
	LastUsedAt     *time.Time       `json:"last_used_at"`
	Metadata       SnapshotMetadata `json:"metadata"`
}

// SnapshotMetadata tells about a snapshot's content. Sizes are in bytes.
type SnapshotMetadata struct {
	SizeBytes           int64   `json:"size_bytes" doc:"Disk space that the files occupy."`
	MemSizeBytes        int64   `json:"mem_size_bytes" doc:"The guest's memory."`
	CompressedSizeBytes int64   `json:"compressed_size_bytes,omitempty"`
	Compressed          bool    `json:"compressed"`
	DockerVersion       string  `json:"docker_version,omitempty"`
	VCPUs               int     `json:"vcpus,omitempty"`
	BuildSeconds        float64 `json:"build_seconds,omitempty"`
	ColdBootSeconds     float64 `json:"cold_boot_seconds,omitempty" doc:"From VMM start to Docker answering, while it was built."`
	PauseSeconds        float64 `json:"pause_seconds,omitempty" doc:"From the pause to files that can be restored from."`
	Step                string  `json:"step,omitempty" doc:"What the build is doing, while the state is creating."`
	Error               string  `json:"error,omitempty" doc:"Why the snapshot is unhealthy."`
}

// PortMapping publishes a port of the container on the host.
type PortMapping struct {
	HostIP        string `json:"host_ip,omitempty" doc:"Address to listen on; 127.0.0.1 if left out." example:"127.0.0.1"`
	HostPort      int    `json:"host_port,omitempty" minimum:"0" maximum:"65535" doc:"0 or left out: a free port is chosen."`
	ContainerPort int    `json:"container_port" minimum:"1" maximum:"65535"`
	Protocol      string `json:"protocol,omitempty" enum:"tcp,udp" default:"tcp"`
}

// Egress says where a container may connect to. What connects to its published ports is answered under each policy.
type Egress struct {
	Policy string   `json:"policy,omitempty" enum:"allow,deny,list" default:"allow" doc:"allow: anywhere. deny: nowhere, and no names are resolved. list: to what is listed. The host, other microVMs, link-local addresses and clouds' metadata services are out of reach under each."`
	Allow  []string `json:"allow,omitempty" maxItems:"256" doc:"With policy list: networks or addresses that may be connected to." example:"[\"203.0.113.0/24\"]"`
	DNS    bool     `json:"dns,omitempty" doc:"With policy list: names are resolved, by the host's name server."`
}

// Bandwidth limits what a container receives and sends.
type Bandwidth struct {
	IngressMbit int `json:"ingress_mbit,omitempty" minimum:"0" maximum:"100000" doc:"Megabits a second that it receives; 0 is no limit."`
	EgressMbit  int `json:"egress_mbit,omitempty" minimum:"0" maximum:"100000" doc:"Megabits a second that it sends; 0 is no limit."`
}

// RegistryAuth is what the registry asks for. It is used for the pull and never stored.
type RegistryAuth struct {
	Username string `json:"username" maxLength:"255"`
	Password string `json:"password" maxLength:"4096"`
}

// CreateContainer asks for a container in a microVM of its own.
type CreateContainer struct {
	Name           string            `json:"name,omitempty" maxLength:"63" doc:"Unique; one is made up if left out."`
	Image          string            `json:"image" minLength:"1" maxLength:"512" doc:"OCI image reference." example:"debian:trixie"`
	Command        []string          `json:"command,omitempty" maxItems:"256" doc:"Replaces the image's entrypoint."`
	Args           []string          `json:"args,omitempty" maxItems:"1024" doc:"Replaces the image's arguments."`
	EnvVars        map[string]string `json:"env_vars,omitempty"`
	PortMappings   []PortMapping     `json:"port_mappings,omitempty" maxItems:"64"`
	CPULimit       float64           `json:"cpu_limit,omitempty" minimum:"0" maximum:"64" doc:"CPUs; 0 means all of the microVM's."`
	MemoryLimitMB  int               `json:"memory_limit_mb,omitempty" minimum:"0" maximum:"1048576" doc:"MiB; 0 means all of the microVM's."`
	RuntimeImageID string            `json:"runtime_image_id,omitempty" format:"uuid" doc:"The newest runtime image if left out."`
	RegistryAuth   *RegistryAuth     `json:"registry_auth,omitempty"`
	ColdBoot       bool              `json:"cold_boot,omitempty" doc:"Do not use a snapshot, even if there is one."`
	AutoRemove     bool              `json:"auto_remove,omitempty" doc:"Remove it once its command has ended, with its disk and logs. Not together with a restart policy."`
	RestartPolicy  string            `json:"restart_policy,omitempty" pattern:"^(no|always|unless-stopped|on-failure(:[0-9]{1,6})?)$" doc:"When the container is started again by itself, as in Docker: no, on-failure, on-failure:N, always or unless-stopped; no if left out." example:"unless-stopped"`
	Egress         *Egress           `json:"egress,omitempty" doc:"Where it may connect to; anywhere if left out."`
	Bandwidth      *Bandwidth        `json:"bandwidth,omitempty"`
}

// UpdateContainer is a JSON merge patch (RFC 7396) of a container. What is nil stays as it is; as JSON it is left out. null in JSON sets back to what a container
// has that asks for nothing, as does a zero value here.
type UpdateContainer struct {
	Name          *string        `json:"name,omitempty" minLength:"1" maxLength:"63" doc:"Unique. In the microVM the host name is the new one at the next start."`
	RestartPolicy *string        `json:"restart_policy,omitempty" nullable:"true" pattern:"^(no|always|unless-stopped|on-failure(:[0-9]{1,6})?)?$" doc:"At once. null: no." example:"unless-stopped"`
	CPULimit      *float64       `json:"cpu_limit,omitempty" nullable:"true" minimum:"0" maximum:"64" doc:"Of a stopped container, at the next start. null or 0: all of the microVM's."`
	MemoryLimitMB *int           `json:"memory_limit_mb,omitempty" nullable:"true" minimum:"0" maximum:"1048576" doc:"MiB. Of a stopped container, at the next start. null or 0: all of the microVM's."`
	PortMappings  *[]PortMapping `json:"port_mappings,omitempty" nullable:"true" maxItems:"64" doc:"Of a stopped container, at the next start. They take the place of all that there are; null: none."`
}

// UnmarshalJSON tells null, which sets back, from what is left out.
func (u *UpdateContainer) UnmarshalJSON(text []byte) error {
	type plain UpdateContainer
	null, err := readPatch(text, (*plain)(u), "name")
	if err != nil {
		return err
	}
	if null["restart_policy"] {
		u.RestartPolicy = new(string)
	}
	if null["cpu_limit"] {
		u.CPULimit = new(float64)
	}
	if null["memory_limit_mb"] {
		u.MemoryLimitMB = new(int)
	}
	if null["port_mappings"] {
		u.PortMappings = &[]PortMapping{}
	}
	return nil
}

// readPatch reads a JSON merge patch into v and tells which members are null. Those that must are an error if they are.
func readPatch(text []byte, v any, must ...string) (null map[string]bool, err error) {
	if err := json.Unmarshal(text, v); err != nil {
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, err
	}
	null = map[string]bool{}
	for name, value := range members {
		null[name] = string(value) == "null"
	}
	for _, name := range must {
		if null[name] {
			return nil, fmt.Errorf("%s cannot be null: it has no value to go back to", name)
		}
	}
	return null, nil
}

// UpdatedContainer is the answer to an UpdateContainer.
type UpdatedContainer struct {
	Item        Container `json:"item"`
	AtNextStart []string  `json:"at_next_start" nullable:"false" enum:"hostname,cpu_limit,memory_limit_mb,port_mappings" doc:"Which of the changes take effect only when the container is started next."`
}

// UpdateImage is a JSON merge patch (RFC 7396) of a runtime image.
type UpdateImage struct {
	Name *string `json:"name,omitempty" minLength:"1" maxLength:"63" pattern:"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$"`
}

// UnmarshalJSON tells null, which there cannot be, from what is left out.
func (u *UpdateImage) UnmarshalJSON(text []byte) error {
	type plain UpdateImage
	_, err := readPatch(text, (*plain)(u), "name")
	return err
}

// UpdateHost is a JSON merge patch (RFC 7396) of a host.
type UpdateHost struct {
	Cordoned *bool `json:"cordoned,omitempty" nullable:"true" doc:"It gets no new containers and builds. null: it does."`
}

// UnmarshalJSON tells null, which sets back, from what is left out.
func (u *UpdateHost) UnmarshalJSON(text []byte) error {
	type plain UpdateHost
	null, err := readPatch(text, (*plain)(u))
	if err == nil && null["cordoned"] {
		u.Cordoned = new(bool)
	}
	return err
}

// Phase is one timed step of bringing a container up. There is no time between those up to docker.
type Phase struct {
	Name    string  `json:"name" enum:"disk,vmm,restore,reidentify,boot,docker,pull,start"`
	Seconds float64 `json:"seconds"`
}

// Container is a container in a microVM of its own.
type Container struct {
	ID             string            `json:"id" format:"uuid"`
	Name           string            `json:"name"`
	Image          string            `json:"image"`
	RuntimeImageID string            `json:"runtime_image_id" format:"uuid"`
	Command        []string          `json:"command,omitempty"`
	Args           []string          `json:"args,omitempty"`
	EnvVars        map[string]string `json:"env_vars,omitempty"`
	PortMappings   []PortMapping     `json:"port_mappings,omitempty"`
	CPULimit       float64           `json:"cpu_limit,omitempty"`
	MemoryLimitMB  int               `json:"memory_limit_mb,omitempty"`
	State          string            `json:"state" enum:"creating,running,stopping,stopped,starting,failed,deleting"`
	HostID         string            `json:"host_id,omitempty" doc:"The host that it was placed on."`
	Host           string            `json:"host,omitempty" doc:"That host's name."`
	HostState      string            `json:"host_state,omitempty" enum:"up,down" doc:"Of a host that is down, the container's state is what was last known."`
	AutoRemove     bool              `json:"auto_remove,omitempty"`
	RestartPolicy  string            `json:"restart_policy,omitempty"`
	Egress         *Egress           `json:"egress,omitempty"`
	Bandwidth      *Bandwidth        `json:"bandwidth,omitempty"`
	Restarts       int               `json:"restarts,omitempty" doc:"How often the restart policy has brought it up again since somebody last started it."`
	BootMethod     *string           `json:"boot_method" enum:"warm,cold" doc:"Which way the microVM came up; null until it has."`
	BootReason     string            `json:"boot_reason,omitempty" doc:"Why the boot was cold."`
	VMID           string            `json:"vm_id,omitempty" example:"vm-3f2a9c0d1e4b"`
	SnapshotID     string            `json:"snapshot_id,omitempty"`
	Phases         []Phase           `json:"phases,omitempty" doc:"Of the latest boot, in order."`
	ExitCode       *int              `json:"exit_code,omitempty" doc:"Of the command, once it has ended."`
	Error          string            `json:"error,omitempty" doc:"Why the container failed, and what to do."`
	CreatedAt      time.Time         `json:"created_at"`
	StartedAt      *time.Time        `json:"started_at,omitempty"`
	FinishedAt     *time.Time        `json:"finished_at,omitempty"`
}

// Host is a machine that runs microVMs.
type Host struct {
	ID         string        `json:"id" format:"uuid"`
	Name       string        `json:"name"`
	Address    string        `json:"address,omitempty" doc:"Where its agent is reached; empty for the one inside warmboot serve."`
	State      string        `json:"state" enum:"up,down" doc:"down: nothing was heard of it for too long. What runs there may go on, and is left alone."`
	Cordoned   bool          `json:"cordoned" doc:"It gets no new containers and builds."`
	LastSeenAt *time.Time    `json:"last_seen_at"`
	CreatedAt  time.Time     `json:"created_at"`
	Inventory  HostInventory `json:"inventory"`
}

// HostInventory is what a host's agent tells about it.
type HostInventory struct {
	Version       string   `json:"version,omitempty" doc:"Of warmboot."`
	VMM           string   `json:"vmm"`
	VMMWhy        string   `json:"vmm_why,omitempty" doc:"One line: why this one, with this accelerator."`
	VMMWarning    string   `json:"vmm_warning,omitempty" doc:"One line: what is wrong with it all the same, as with a release that has a known fault."`
	Network       string   `json:"network,omitempty" enum:"tap,user" doc:"How microVMs are connected. In user mode nothing keeps egress policies and bandwidth limits."`
	NetworkWhy    string   `json:"network_why,omitempty" doc:"One line: why not tap."`
	Arch          string   `json:"arch,omitempty"`
	CPU           string   `json:"cpu,omitempty" doc:"What a guest sees."`
	Platform      string   `json:"platform" doc:"Hosts of one platform can use each other's snapshots."`
	CPUs          int      `json:"cpus,omitempty"`
	MemoryBytes   int64    `json:"memory_bytes,omitempty"`
	DiskBytes     int64    `json:"disk_bytes,omitempty" doc:"Of the storage root's file system."`
	DiskFreeBytes int64    `json:"disk_free_bytes,omitempty"`
	MaxVMs        int      `json:"max_vms,omitempty" doc:"How many microVMs it takes at the most."`
	VMs           int      `json:"vms" doc:"How many there are, those of builds included."`
	Snapshots     []string `json:"snapshots,omitempty" nullable:"false" doc:"Runtime snapshots whose files it has."`
}

// CreateJoinToken asks for a token with which one host can join, once.
type CreateJoinToken struct {
	Host       string `json:"host,omitempty" maxLength:"63" doc:"Name or id of a host that is known already, and has lost its certificate; a new host if left out."`
	TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"0" maximum:"604800" doc:"How long it is good; 0 or left out: an hour."`
}

// JoinToken is the answer: what the host's agent needs.
type JoinToken struct {
	Secret    string    `json:"secret" doc:"For warmboot agent --join. It is shown this once."`
	ExpiresAt time.Time `json:"expires_at"`
}

// DrainHost asks for a host without containers.
type DrainHost struct {
	TimeoutSeconds *int `json:"timeout_seconds,omitempty" minimum:"0" maximum:"3600" doc:"How long each command may take to end by itself; 10 if left out."`
}

// StopContainer asks for a running container's end.
type StopContainer struct {
	TimeoutSeconds *int `json:"timeout_seconds,omitempty" minimum:"0" maximum:"3600" doc:"How long the command may take to end by itself; 10 if left out."`
}

// Exec asks to run a command in a running container. The connection is then upgraded to a WebSocket; see ExecFrame.
type Exec struct {
	Command []string          `json:"command" minItems:"1"`
	EnvVars map[string]string `json:"env_vars,omitempty"`
	Workdir string            `json:"workdir,omitempty"`
	User    string            `json:"user,omitempty"`
	TTY     bool              `json:"tty,omitempty"`
	Stdin   bool              `json:"stdin,omitempty" doc:"Whether the command's standard input is connected."`
}

// ExecFrame is one JSON text message on an exec WebSocket, in either direction: the client sends first Start, then Stdin,
// CloseStdin and Resize; the server sends Stdout, Stderr, and last either ExitCode or Error. Byte fields are base64.
type ExecFrame struct {
	Start      *Exec  `json:"start,omitempty"`
	Stdin      []byte `json:"stdin,omitempty"`
	CloseStdin bool   `json:"close_stdin,omitempty"`
	Resize     *Size  `json:"resize,omitempty"`
	Stdout     []byte `json:"stdout,omitempty"`
	Stderr     []byte `json:"stderr,omitempty"`
	ExitCode   *int   `json:"exit_code,omitempty"`
	Error      string `json:"error,omitempty"`
}

// Size is a terminal's, in characters.
type Size struct {
	Columns uint `json:"columns"`
	Rows    uint `json:"rows"`
}

// LogLine is one line of GET /v1/containers/{id}/logs, which answers with newline-delimited JSON.
type LogLine struct {
	Stream string    `json:"stream" enum:"stdout,stderr"`
	Time   time.Time `json:"time"`
	Text   string    `json:"text" doc:"As the command wrote it, with its line end."`
}

// Garbage is the answer of POST /v1/gc: what was removed, or would be.
type Garbage struct {
	DryRun     bool          `json:"dry_run"`
	FreedBytes int64         `json:"freed_bytes" doc:"Disk space that was freed, or would be."`
	Items      []GarbageItem `json:"items"`
}

// GarbageItem is one thing that garbage collection did, or would do.
type GarbageItem struct {
	Kind   string `json:"kind" enum:"snapshot,container,temporary,image"`
	Action string `json:"action" enum:"delete,remove,forget" doc:"delete: a snapshot is marked deleted and its files go; remove: files go; forget: a deleted snapshot without files is no longer listed."`
	ID     string `json:"id,omitempty" doc:"Of a snapshot or container."`
	Path   string `json:"path,omitempty"`
	Bytes  int64  `json:"bytes" doc:"Disk space that this frees."`
	Reason string `json:"reason"`
	Error  string `json:"error,omitempty" doc:"Why it could not be done."`
}

// Version tells what is serving.
type Version struct {
	Version   string `json:"version"`
	GoVersion string `json:"go_version"`
	VMM       string `json:"vmm" doc:"The VMM that microVMs run under." example:"qemu-7.2.22"`
	VMMWhy    string `json:"vmm_why" doc:"One line: why this one, with this accelerator."`
}

// Event is one event of GET /v1/events: a container, a snapshot or a host is in another state, has another name, or another boot method is known.
type Event struct {
	ID         string    `json:"id"`
	Type       string    `json:"type" enum:"container,snapshot,host,reset"`
	Time       time.Time `json:"time"`
	EntityID   string    `json:"entity_id,omitempty"`
	Name       string    `json:"name,omitempty"`
	State      string    `json:"state,omitempty" doc:"That of the container, snapshot or host; deleted for a container or host that is gone."`
	BootMethod string    `json:"boot_method,omitempty"`
}

// Readiness is the answer of /readyz.
type Readiness struct {
	Ready  bool             `json:"ready"`
	Checks []ReadinessCheck `json:"checks" nullable:"false"`
}

// ReadinessCheck is one thing that every request needs.
type ReadinessCheck struct {
	Name  string `json:"name" enum:"store,host"`
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty" doc:"Why it is not."`
}

// Problem is an error, as application/problem+json (RFC 9457). Detail says what happened, why, and what to do next.
type Problem struct {
	Type   string          `json:"type,omitempty"`
	Title  string          `json:"title"`
	Status int             `json:"status"`
	Detail string          `json:"detail"`
	Code   string          `json:"code" doc:"A stable word for programs." example:"not_found"`
	Errors []ProblemDetail `json:"errors,omitempty"`
}

// ProblemDetail is one thing that is wrong with a request's body.
type ProblemDetail struct {
	Message  string `json:"message"`
	Location string `json:"location,omitempty" example:"body.image"`
}

// Realm is what a server that wants a token calls itself in WWW-Authenticate.
const Realm = "warmboot"

// CreateToken asks for a token.
type CreateToken struct {
	Name       string `json:"name" minLength:"1" maxLength:"63" pattern:"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$" doc:"Unique; it names the token's owner in the audit log." example:"ci"`
	Role       string `json:"role" enum:"viewer,operator,admin" doc:"viewer: look at everything but tokens and the audit log. operator: change containers, snapshots and images too. admin: give and take tokens too."`
	TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"1" maximum:"315360000" doc:"How long it is good for, in seconds; for ever if left out."`
}

// CreatedToken is the answer to a CreateToken.
type CreatedToken struct {
	Item   Token  `json:"item"`
	Secret string `json:"secret" doc:"What has to be sent as Bearer token. It is shown this once."`
}

// Token lets its owner use the API.
type Token struct {
	ID         string     `json:"id" format:"uuid"`
	Name       string     `json:"name"`
	Role       string     `json:"role" enum:"viewer,operator,admin"`
	CreatedAt  time.Time  `json:"created_at"`
	CreatedBy  string     `json:"created_by" doc:"The token that it was made with."`
	ExpiresAt  *time.Time `json:"expires_at" doc:"null: never."`
	Expired    bool       `json:"expired"`
	LastUsedAt *time.Time `json:"last_used_at" doc:"null: never, as far as is known; stored once a minute."`
}

// Access is what the server knows of who asks.
type Access struct {
	Name      string     `json:"name" doc:"Of the token; $MANAGER_API_TOKEN for that of the server's configuration, --auth=none where none is asked for."`
	TokenID   string     `json:"token_id,omitempty"`
	Role      string     `json:"role" enum:"viewer,operator,admin"`
	ExpiresAt *time.Time `json:"expires_at,omitempty"`
}

// AuditPage is a part of the audit log.
type AuditPage struct {
	Items      []AuditEntry `json:"items" nullable:"false"`
	NextCursor string       `json:"next_cursor,omitempty" doc:"Where the entries before these begin; left out after the oldest."`
}

// AuditEntry is one change that somebody asked for.
type AuditEntry struct {
	ID         string     `json:"id"`
	Time       time.Time  `json:"time"`
	Actor      string     `json:"actor" doc:"The name of the token, or what Access.name says."`
	TokenID    string     `json:"token_id,omitempty"`
	Role       string     `json:"role" enum:"viewer,operator,admin"`
	Operation  string     `json:"operation" doc:"The operationId." example:"create-container"`
	EntityType string     `json:"entity_type" enum:"container,snapshot,image,token,server"`
	EntityID   string     `json:"entity_id,omitempty"`
	EntityName string     `json:"entity_name,omitempty"`
	Source     string     `json:"source,omitempty" doc:"The address that the request came from."`
	RequestID  string     `json:"request_id,omitempty" doc:"X-Request-Id of the answer."`
	Outcome    string     `json:"outcome,omitempty" doc:"ok, repeated if the same request had made the change before, or the code of the error. Left out while the change is being made, and for ever if the server died meanwhile. What goes on in the background is ok once it has begun."`
	FinishedAt *time.Time `json:"finished_at,omitempty"`
}
