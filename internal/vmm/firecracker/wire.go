package firecracker

import (
	"encoding/json"
	"reflect"
	"strings"

	"warmboot"
)

// The bodies of the API's requests, those that the driver has no use for yet included. Firecracker refuses a body with a field that it does not
// know, so a field that not every release has says in its `since` tag which have it (see Release.knows), and encode never sends it
// to another. So it is with a value that came later than its field, which is in the field's `value` tag, before the releases that have it. A
// field that may be left out is left out when it is zero.

// BootSource is what a machine boots.
type BootSource struct {
	KernelImagePath string `json:"kernel_image_path"`
	InitrdPath      string `json:"initrd_path,omitempty"`
	BootArgs        string `json:"boot_args,omitempty"`
}

// Drive is a disk. The guest sees drives in the order in which they were put.
type Drive struct {
	DriveID      string `json:"drive_id"` // letters, digits and "_"
	PathOnHost   string `json:"path_on_host"`
	IsRootDevice bool   `json:"is_root_device"`
	IsReadOnly   bool   `json:"is_read_only"`
	CacheType    string `json:"cache_type,omitempty"` // "Unsafe" (flushes do nothing) or "Writeback"
	IOEngine     string `json:"io_engine,omitempty"`  // "Sync" or "Async"
}

// MachineConfig is a machine's size.
type MachineConfig struct {
	VCPUCount       int    `json:"vcpu_count"`
	MemSizeMiB      int    `json:"mem_size_mib"`
	SMT             bool   `json:"smt,omitempty"`
	CPUTemplate     string `json:"cpu_template,omitempty"`
	TrackDirtyPages bool   `json:"track_dirty_pages,omitempty"`
	HugePages       string `json:"huge_pages,omitempty" value:"Transparent 1.17"` // "None", "2M" or "Transparent"
}

// CPUConfig is a custom CPU template. Its lists are passed through.
type CPUConfig struct {
	KVMCapabilities []string          `json:"kvm_capabilities,omitempty"` // in the published descriptions from 1.12 on, but all releases take it
	CPUIDModifiers  []json.RawMessage `json:"cpuid_modifiers,omitempty"`
	MSRModifiers    []json.RawMessage `json:"msr_modifiers,omitempty"`
}

// NetworkInterface is a network interface and the TAP behind it.
type NetworkInterface struct {
	IfaceID     string `json:"iface_id"` // letters, digits and "_"
	HostDevName string `json:"host_dev_name"`
	GuestMAC    string `json:"guest_mac,omitempty"`
	MTU         int    `json:"mtu,omitempty" since:"1.16"`
}

// Vsock is the vsock device.
type Vsock struct {
	GuestCID uint32 `json:"guest_cid"` // 3 or more
	UDSPath  string `json:"uds_path"`  // a socket that Firecracker makes; there must be nothing yet
}

// Entropy is the virtio random source.
type Entropy struct{}

// Balloon is the balloon device.
type Balloon struct {
	AmountMiB             int  `json:"amount_mib"`
	DeflateOnOOM          bool `json:"deflate_on_oom"`
	StatsPollingIntervalS int  `json:"stats_polling_interval_s,omitempty"` // 0: no statistics, for the life of the machine
	FreePageHinting       bool `json:"free_page_hinting,omitempty" since:"1.14"`
	FreePageReporting     bool `json:"free_page_reporting,omitempty" since:"1.14"`
}

type balloonUpdate struct {
	AmountMiB int `json:"amount_mib"`
}

type balloonStatsUpdate struct {
	StatsPollingIntervalS int `json:"stats_polling_interval_s"`
}

// BalloonStats is what the balloon and the guest tell. Sizes other than the MiB are bytes; what the guest has not told is 0.
type BalloonStats struct {
	TargetMiB       int    `json:"target_mib"`
	ActualMiB       int    `json:"actual_mib"`
	FreeMemory      uint64 `json:"free_memory"`
	TotalMemory     uint64 `json:"total_memory"`
	AvailableMemory uint64 `json:"available_memory"`
	DiskCaches      uint64 `json:"disk_caches"`
}

// Metrics says where metrics are written.
type Metrics struct {
	MetricsPath string            `json:"metrics_path"`
	EmitID      bool              `json:"emit_id,omitempty" since:"1.17"`
	Properties  map[string]string `json:"properties,omitempty" since:"1.17"`
}

// Logger says where and what is logged.
type Logger struct {
	LogPath       string `json:"log_path,omitempty"`
	Level         string `json:"level,omitempty"` // "Error", "Warning", "Info", "Debug"
	ShowLevel     bool   `json:"show_level,omitempty"`
	ShowLogOrigin bool   `json:"show_log_origin,omitempty"`
	Module        string `json:"module,omitempty"`
}

// Serial says where the guest's serial console is written; without it, to standard output.
type Serial struct {
	SerialOutPath string       `json:"serial_out_path,omitempty"`
	RateLimiter   *TokenBucket `json:"rate_limiter,omitempty" since:"1.16"`
}

// TokenBucket limits a rate: Size tokens every RefillTime milliseconds, and OneTimeBurst at first.
type TokenBucket struct {
	Size         uint64 `json:"size"`
	OneTimeBurst uint64 `json:"one_time_burst,omitempty"`
	RefillTime   uint64 `json:"refill_time"`
}

type action struct {
	ActionType string `json:"action_type"`
}

type vmState struct {
	State string `json:"state"` // "Paused" or "Resumed"
}

// SnapshotCreate says where a snapshot is written.
type SnapshotCreate struct {
	SnapshotType string `json:"snapshot_type"` // "Full" or "Diff"
	SnapshotPath string `json:"snapshot_path"`
	MemFilePath  string `json:"mem_file_path"`
}

// SnapshotLoad says how a snapshot is loaded.
type SnapshotLoad struct {
	SnapshotPath     string            `json:"snapshot_path"`
	MemBackend       MemBackend        `json:"mem_backend"`
	ResumeVM         bool              `json:"resume_vm"`
	TrackDirtyPages  bool              `json:"track_dirty_pages,omitempty" since:"1.13"`
	NetworkOverrides []NetworkOverride `json:"network_overrides,omitempty" since:"1.12"`
	VsockOverride    *VsockOverride    `json:"vsock_override,omitempty" since:"1.16"`
	ClockRealtime    bool              `json:"clock_realtime,omitempty" since:"1.14.4 1.15.1 1.16"`
	HugePages        string            `json:"huge_pages,omitempty" since:"1.17"`
}

// MemBackend is where a restored machine's memory comes from.
type MemBackend struct {
	BackendType string `json:"backend_type"` // "File", mapped privately, or "Uffd"
	BackendPath string `json:"backend_path"`
}

// NetworkOverride gives a restored interface another TAP.
type NetworkOverride struct {
	IfaceID     string `json:"iface_id"`
	HostDevName string `json:"host_dev_name"`
}

// VsockOverride gives a restored vsock device another socket.
type VsockOverride struct {
	UDSPath string `json:"uds_path"`
}

// InstanceInfo is what a Firecracker process says of itself.
type InstanceInfo struct {
	ID         string `json:"id"`
	State      string `json:"state"` // "Not started", "Running" or "Paused"
	VMMVersion string `json:"vmm_version"`
	AppName    string `json:"app_name"`
}

// payloadLimit is how large a request's body may be, in bytes: Firecracker's default.
const payloadLimit = 51_200

// encode makes the body of a request for a release. A field that is set and that the release does not have is an Unavailable error,
// and so nothing is sent; a body that is too large is TooLarge.
func encode(op string, r Release, body any) ([]byte, error) {
	if name, since := unknownField(r, reflect.ValueOf(body)); name != "" {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "Firecracker %s does not have %q, which came with %s; install a newer release", r, name, strings.ReplaceAll(since, " ", ", "))
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, warmboot.Errorf(warmboot.Invalid, op, "%w", err)
	}
	if len(text) > payloadLimit {
		return nil, warmboot.Errorf(warmboot.TooLarge, op, "the request has %d bytes, and Firecracker takes %d; shorten the kernel's arguments (--kernel-args)", len(text), payloadLimit)
	}
	return text, nil
}

// unknownField finds a field that is set although the release does not have it, or not with that value.
func unknownField(r Release, v reflect.Value) (name, since string) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return "", ""
		}
		return unknownField(r, v.Elem())
	case reflect.Slice:
		for i := range v.Len() {
			if name, since := unknownField(r, v.Index(i)); name != "" {
				return name, since
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			field := v.Type().Field(i)
			if v.Field(i).IsZero() && strings.Contains(field.Tag.Get("json"), ",omitempty") {
				continue
			}
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if since := field.Tag.Get("since"); !r.knows(since) {
				return name, since
			}
			if value, since, ok := strings.Cut(field.Tag.Get("value"), " "); ok && v.Field(i).String() == value && !r.knows(since) {
				return name + " " + value, since
			}
			if name, since := unknownField(r, v.Field(i)); name != "" {
				return name, since
			}
		}
	default:
	}
	return "", ""
}
