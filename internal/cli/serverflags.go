package cli

import (
	"log/slog"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"warmboot/internal/hostnet"
	"warmboot/internal/preflight"
	"warmboot/internal/vmm/choice"
)

// ServerOptions are the settings that every long-running command has.
type ServerOptions struct {
	StorageRoot string
	Name        string // of this host or manager; empty: the machine's
	LogLevel    slog.Level
	LogFormat   string // "text" or "json"
}

// ControlOptions are the settings of a control plane: of `warmboot serve` and `warmboot manager`.
type ControlOptions struct {
	Listen       string // host:port of the API
	DatabaseURL  string // postgres://…, or the path of an SQLite file; empty: one below the storage root
	Access       AccessOptions
	MaxSnapshots int // 0: the default
	SnapshotWait time.Duration
	AutoSnapshot bool          // build a snapshot of every image that is registered
	SnapshotTTL  time.Duration // 0: the default
}

// HostOptions are the settings of a host: of `warmboot serve` and `warmboot agent`.
type HostOptions struct {
	PlainHTTPRegistries []string // host[:port]
	ImageRoots          []string // directories that registered images may lie in, besides the storage root's own
	KernelArgs          []string // added to those of every guest's kernel
	VCPUs, MemoryMiB    int      // of a microVM that asks for no more; 0: the default
	MaxVMs              int      // that are placed here; 0: the default
	Network             string   // "auto", "tap" or "user"
	NetworkCIDR         netip.Prefix
	VMM                 VMMOptions
}

// VMMOptions say which VMM microVMs run under.
type VMMOptions struct {
	Want        string // "auto", "firecracker" or "qemu"
	Firecracker string // its binary; empty: looked for
	Jailer      string // its jailer's; empty: beside it, or in PATH
	NoJailer    bool
}

// serverFlags are the flags and variables of ServerOptions.
type serverFlags struct {
	o     *ServerOptions
	level string
}

func (a *app) newServerFlags(f *pflag.FlagSet, o *ServerOptions, what string) *serverFlags {
	c := &serverFlags{o: o}
	f.StringVar(&o.StorageRoot, "storage-root", a.storageRoot(), "`directory` for everything that is kept (MANAGER_STORAGE_ROOT)")
	f.StringVar(&o.Name, "name", "", "`name` of this "+what+"; the machine's if left out")
	f.StringVar(&c.level, "log-level", "info", "`level` of the log: debug, info, warn or error")
	f.StringVar(&o.LogFormat, "log-format", "text", "`format` of the log: text or json")
	return c
}

// read completes the options from what was typed.
func (c *serverFlags) read() error {
	if err := c.o.LogLevel.UnmarshalText([]byte(c.level)); err != nil {
		return invalid("--log-level %s: use debug, info, warn or error", c.level)
	}
	if c.o.LogFormat != "text" && c.o.LogFormat != "json" {
		return invalid("--log-format %s: use text or json", c.o.LogFormat)
	}
	return nil
}

// controlFlags are the flags and variables of ControlOptions.
type controlFlags struct {
	a      *app
	o      *ControlOptions
	access *accessFlags
	envErr error // of a variable that cannot be understood
}

func (a *app) newControlFlags(f *pflag.FlagSet, o *ControlOptions) *controlFlags {
	c := &controlFlags{a: a, o: o, access: a.newAccessFlags(&o.Access)}
	maxSnapshots, autoSnapshot, snapshotTTL := 10, true, 30*24*time.Hour
	c.fromEnv("MANAGER_MAX_RUNTIME_SNAPSHOTS", "which is not a number; set it to one, or unset it", func(v string) (err error) { maxSnapshots, err = strconv.Atoi(v); return })
	c.fromEnv("MANAGER_AUTO_SNAPSHOT", "set it to true or false, or unset it", func(v string) (err error) { autoSnapshot, err = strconv.ParseBool(v); return })
	c.fromEnv("MANAGER_SNAPSHOT_TTL", "which is not a time; set it to one like 720h, or unset it", func(v string) (err error) { snapshotTTL, err = time.ParseDuration(v); return })
	f.StringVar(&o.Listen, "listen", a.env("MANAGER_LISTEN", preflight.DefaultListen), "`address` to serve the API on (MANAGER_LISTEN)")
	f.StringVar(&o.DatabaseURL, "database-url", "", "`URL` of the database, postgres://…; or an SQLite file; default: one below the storage root (DATABASE_URL)")
	f.IntVar(&o.MaxSnapshots, "max-runtime-snapshots", maxSnapshots, "`number` of snapshots that may exist (MANAGER_MAX_RUNTIME_SNAPSHOTS)")
	f.DurationVar(&o.SnapshotWait, "snapshot-wait", time.Minute, "`time` that a create waits for a snapshot that is being built")
	f.BoolVar(&o.AutoSnapshot, "auto-snapshot", autoSnapshot, "build a snapshot of every runtime image when it is registered (MANAGER_AUTO_SNAPSHOT)")
	f.DurationVar(&o.SnapshotTTL, "snapshot-ttl", snapshotTTL, "`time` after which garbage collection deletes a snapshot that nobody has used (MANAGER_SNAPSHOT_TTL)")
	c.access.add(f)
	return c
}

func (c *controlFlags) fromEnv(name, form string, read func(string) error) {
	text := c.a.Env(name)
	if text == "" {
		return
	}
	if err := read(text); err != nil && c.envErr == nil {
		c.envErr = invalid("%s is %q, %s", name, text, form)
	}
}

// read completes the options from what was typed.
func (c *controlFlags) read() error {
	switch {
	case c.envErr != nil:
		return c.envErr
	case c.o.SnapshotTTL <= 0:
		return invalid("--snapshot-ttl (MANAGER_SNAPSHOT_TTL) must be more than nothing; the default is 720h, which is 30 days")
	case c.o.MaxSnapshots < 1:
		return invalid("--max-runtime-snapshots (MANAGER_MAX_RUNTIME_SNAPSHOTS) must be at least 1; the default is 10")
	case c.o.SnapshotWait <= 0:
		return invalid("--snapshot-wait must be more than nothing; the default is 1m")
	}
	if c.o.DatabaseURL == "" { // no default of the flag, because help would show the password in it
		c.o.DatabaseURL = c.a.Env("DATABASE_URL")
	}
	return c.access.read()
}

// hostFlags are the flags of HostOptions.
type hostFlags struct {
	o          *HostOptions
	cidr       string
	kernelArgs string
}

func (a *app) newHostFlags(f *pflag.FlagSet, o *HostOptions) *hostFlags {
	c := &hostFlags{o: o}
	f.StringArrayVar(&o.PlainHTTPRegistries, "plain-http-registry", nil, "registry, `host[:port]`, that is spoken to without TLS (repeatable)")
	f.StringArrayVar(&o.ImageRoots, "image-root", nil, "`directory` that registered runtime images may lie in, besides the storage root's own (repeatable)")
	f.IntVar(&o.VCPUs, "vcpus", 0, "`number` of CPUs of a microVM that asks for no more; 0: 1")
	f.IntVar(&o.MemoryMiB, "memory-mib", 0, "`MiB` of memory of a microVM that asks for no more; 0: 512")
	f.IntVar(&o.MaxVMs, "max-vms", 0, "`number` of microVMs that are placed here; 0: as many as have four times this machine's memory together")
	f.StringVar(&o.Network, "network", a.env("MANAGER_NETWORK", "auto"), "`kind` of network that microVMs have: tap, in namespaces of their own; user, by QEMU itself; or auto: tap where that works (MANAGER_NETWORK)")
	a.vmmFlags(f, &o.VMM)
	f.StringVar(&c.cidr, "network-cidr", a.env("MANAGER_NETWORK_CIDR", hostnet.DefaultCIDR.String()), "`network` that microVMs with TAPs have addresses from, inside this host only (MANAGER_NETWORK_CIDR)")
	f.StringVar(&c.kernelArgs, "kernel-args", a.Env("CONTAINER_RUNTIME_KERNEL_ARGS"), "`arguments` added to those of every guest's kernel; snapshots keep those that they were built with (CONTAINER_RUNTIME_KERNEL_ARGS)")
	return c
}

// vmmFlags are the flags and variables of VMMOptions.
func (a *app) vmmFlags(f *pflag.FlagSet, o *VMMOptions) {
	f.StringVar(&o.Want, "vmm", a.env("MANAGER_VMM", choice.Auto), "`VMM` that microVMs run under: firecracker; qemu; or auto: Firecracker where it works (MANAGER_VMM)")
	f.StringVar(&o.Firecracker, "firecracker", a.Env("FIRECRACKER"), "Firecracker's `binary`; if left out, the one that \"warmboot doctor --fix\" has installed, or else the one in PATH (FIRECRACKER)")
	f.StringVar(&o.Jailer, "jailer", a.Env("JAILER"), "its jailer's `binary`; if left out, the one beside it, or else the one in PATH (JAILER)")
	f.BoolVar(&o.NoJailer, "unsafe-no-jailer", false, "run Firecracker without its jailer; for development only")
}

// check says what is wrong with what was typed.
func (o VMMOptions) check() error {
	if !choice.Known(o.Want) {
		return invalid("--vmm (MANAGER_VMM) is %q; use auto, firecracker or qemu", o.Want)
	}
	if o.NoJailer && o.Jailer != "" {
		return invalid("--jailer (JAILER) and --unsafe-no-jailer do not go together")
	}
	return nil
}

func (c *hostFlags) read() error {
	if c.o.Network != "auto" && c.o.Network != "tap" && c.o.Network != "user" {
		return invalid("--network (MANAGER_NETWORK) is %q; use auto, tap or user", c.o.Network)
	}
	if err := c.o.VMM.check(); err != nil {
		return err
	}
	if c.o.VMM.Want == choice.Firecracker && c.o.Network == "user" {
		return invalid("--vmm firecracker and --network user do not go together: Firecracker has no network of its own, and needs TAPs")
	}
	c.o.KernelArgs = strings.Fields(c.kernelArgs)
	var err error
	if c.o.NetworkCIDR, err = netip.ParsePrefix(c.cidr); err != nil {
		return invalid("--network-cidr (MANAGER_NETWORK_CIDR) is %q, which is not a network; use one like %s", c.cidr, hostnet.DefaultCIDR)
	}
	if c.o.VCPUs < 0 || c.o.MemoryMiB < 0 || c.o.MaxVMs < 0 {
		return invalid("--vcpus, --memory-mib and --max-vms must not be negative; 0 means the default")
	}
	return nil
}
