package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"warmboot/internal/preflight"
)

func (a *app) serveCmd() *cobra.Command {
	var o ServeOptions
	var logLevel string
	access := a.newAccessFlags(&o.Access)
	envMax := a.Env("MANAGER_MAX_RUNTIME_SNAPSHOTS")
	maxSnapshots, envErr := 10, error(nil)
	if envMax != "" {
		maxSnapshots, envErr = strconv.Atoi(envMax)
	}
	envAuto := a.Env("MANAGER_AUTO_SNAPSHOT")
	autoSnapshot, autoErr := true, error(nil)
	if envAuto != "" {
		autoSnapshot, autoErr = strconv.ParseBool(envAuto)
	}
	envTTL := a.Env("MANAGER_SNAPSHOT_TTL")
	snapshotTTL, ttlErr := 30*24*time.Hour, error(nil)
	if envTTL != "" {
		snapshotTTL, ttlErr = time.ParseDuration(envTTL)
	}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the server: the API, and the microVMs of this machine",
		Long: `Run the server: the API, and the microVMs of this machine.

An interruption ends the server; containers go on running, and the next server takes charge of them.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			if envErr != nil {
				return invalid("MANAGER_MAX_RUNTIME_SNAPSHOTS is %q, which is not a number; set it to one, or unset it", envMax)
			}
			if autoErr != nil {
				return invalid("MANAGER_AUTO_SNAPSHOT is %q; set it to true or false, or unset it", envAuto)
			}
			if ttlErr != nil {
				return invalid("MANAGER_SNAPSHOT_TTL is %q, which is not a time; set it to one like 720h, or unset it", envTTL)
			}
			if o.SnapshotTTL <= 0 {
				return invalid("--snapshot-ttl (MANAGER_SNAPSHOT_TTL) must be more than nothing; the default is 720h, which is 30 days")
			}
			if err := o.LogLevel.UnmarshalText([]byte(logLevel)); err != nil {
				return invalid("--log-level %s: use debug, info, warn or error", logLevel)
			}
			if o.LogFormat != "text" && o.LogFormat != "json" {
				return invalid("--log-format %s: use text or json", o.LogFormat)
			}
			if o.MaxSnapshots < 1 || o.SnapshotWait < 0 || o.VCPUs < 0 || o.MemoryMiB < 0 || o.MaxVMs < 0 {
				return invalid("a number or time of serve's flags is too small; see `warmboot serve --help`")
			}
			if (o.Kernel == "") != (o.Rootfs == "") || o.Initrd != "" && o.Kernel == "" {
				return invalid("--kernel and --rootfs (CONTAINER_RUNTIME_KERNEL and CONTAINER_RUNTIME_ROOTFS) go together: a runtime image needs both, and may have an initrd")
			}
			if o.DatabaseURL == "" { // no default of the flag, because help would show the password in it
				o.DatabaseURL = a.Env("DATABASE_URL")
			}
			if err := access.read(); err != nil {
				return err
			}
			return a.Serve(ctx, o)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.Listen, "listen", a.env("MANAGER_LISTEN", preflight.DefaultListen), "`address` to serve the API on (MANAGER_LISTEN)")
	f.StringVar(&o.StorageRoot, "storage-root", a.storageRoot(), "`directory` for everything that is kept (MANAGER_STORAGE_ROOT)")
	f.StringVar(&o.DatabaseURL, "database-url", "", "`URL` of the database, postgres://…; or an SQLite file; default: one below the storage root (DATABASE_URL)")
	f.IntVar(&o.MaxSnapshots, "max-runtime-snapshots", maxSnapshots, "`number` of snapshots that may exist (MANAGER_MAX_RUNTIME_SNAPSHOTS)")
	f.DurationVar(&o.SnapshotWait, "snapshot-wait", time.Minute, "`time` that a create waits for a snapshot that is being built")
	f.BoolVar(&o.AutoSnapshot, "auto-snapshot", autoSnapshot, "build a snapshot of every runtime image when it is registered (MANAGER_AUTO_SNAPSHOT)")
	f.DurationVar(&o.SnapshotTTL, "snapshot-ttl", snapshotTTL, "`time` after which garbage collection deletes a snapshot that nobody has used (MANAGER_SNAPSHOT_TTL)")
	f.StringArrayVar(&o.PlainHTTPRegistries, "plain-http-registry", nil, "registry, `host[:port]`, that is spoken to without TLS (repeatable)")
	f.StringArrayVar(&o.ImageRoots, "image-root", nil, "`directory` that registered runtime images may lie in, besides the storage root's own (repeatable)")
	f.StringVar(&o.Kernel, "kernel", a.Env("CONTAINER_RUNTIME_KERNEL"), "kernel `file` of a runtime image to register (CONTAINER_RUNTIME_KERNEL)")
	f.StringVar(&o.Rootfs, "rootfs", a.Env("CONTAINER_RUNTIME_ROOTFS"), "root disk `file` of that image, ext4 (CONTAINER_RUNTIME_ROOTFS)")
	f.StringVar(&o.Initrd, "initrd", a.Env("CONTAINER_RUNTIME_INITRD"), "initrd `file` of that image, if it needs one (CONTAINER_RUNTIME_INITRD)")
	f.IntVar(&o.MaxVMs, "max-vms", 0, "`number` of microVMs that are placed here; 0: as many as have four times this machine's memory together")
	f.StringVar(&o.Name, "name", "", "`name` of this host; the machine's if left out")
	f.IntVar(&o.VCPUs, "vcpus", 0, "`number` of CPUs of a microVM that asks for no more; 0: the default")
	f.IntVar(&o.MemoryMiB, "memory-mib", 0, "`MiB` of memory of a microVM that asks for no more; 0: the default")
	access.add(f)
	f.StringVar(&logLevel, "log-level", "info", "`level` of the log: debug, info, warn or error")
	f.StringVar(&o.LogFormat, "log-format", "text", "`format` of the log: text or json")
	return cmd
}

func (a *app) storageRoot() string {
	return a.env("MANAGER_STORAGE_ROOT", preflight.DefaultStorageRoot)
}
