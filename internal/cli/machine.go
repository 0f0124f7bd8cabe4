package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/internal/bench"
	"warmboot/internal/preflight"
	"warmboot/internal/vmm/firecracker/install"
)

// DoctorOptions are the settings of `warmboot doctor`.
type DoctorOptions struct {
	StorageRoot string
	VMM         VMMOptions
}

func (a *app) doctorCmd() *cobra.Command {
	var o DoctorOptions
	var fix bool
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look whether this machine has what warmboot needs",
		Long: `Look whether this machine has what warmboot needs, and tell what to do where it has not. Exits with 1 if something fails
without which warmboot cannot work.

With --fix it first does what it can do by itself. It loads the kernel's modules for TAPs and KVM. And it downloads Firecracker ` + install.Version + `
from its makers and installs it below ` + install.Dir + `, if it would be used: KVM works, nothing else on this machine
keeps Firecracker from working, and there is none yet, or one that does not work or has a known fault, which is not used any more then.
Nothing is installed where a binary is named (--firecracker), or where one is newer than what this warmboot knows and works.`,
		Example: `  sudo warmboot doctor
  sudo warmboot doctor --fix
  warmboot doctor -o json | jq '.[] | select(.status != "ok")'`,
		Args: cobra.NoArgs,
	}
	f := cmd.Flags()
	f.StringVar(&o.StorageRoot, "storage-root", a.storageRoot(), "`directory` of the server (MANAGER_STORAGE_ROOT)")
	f.BoolVar(&fix, "fix", false, "put right what can be put right without asking, and install Firecracker where it would be used")
	a.vmmFlags(f, &o.VMM)
	cmd.RunE = a.do(func(ctx context.Context, _ []string) error {
		if err := o.VMM.check(); err != nil {
			return err
		}
		var failed error
		if fix {
			failed = a.fix(ctx, o)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		checks := a.Doctor(ctx, o)
		if a.format == "json" {
			if err := a.printJSON(checks); err != nil {
				return err
			}
		} else {
			for _, c := range checks {
				fmt.Fprintf(a.Out, "%s %-20s %s\n", marks[c.Status], c.Name, c.Detail)
				if c.Fix != "" {
					fmt.Fprintf(a.Out, "  %-20s → %s\n", "", c.Fix)
				}
			}
		}
		if failed == nil && preflight.Worst(checks) == preflight.Fail {
			return exitStatus(1)
		}
		return failed
	})
	return cmd
}

// fix does what doctor --fix does before it looks, and tells it.
func (a *app) fix(ctx context.Context, o DoctorOptions) error {
	d := a.newDisplay("Trying KVM", false)
	done := a.Fix(ctx, o, d.progress)
	d.close()
	var errs []error
	for _, f := range done {
		if f.Err != nil {
			errs = append(errs, f.Err)
			continue
		}
		fmt.Fprintf(a.Err, "%s: %s\n", f.Name, f.Detail)
	}
	return errors.Join(errs...)
}

var marks = map[preflight.Status]string{preflight.OK: "✓", preflight.Warn: "!", preflight.Fail: "✗"}

func (a *app) benchCmd() *cobra.Command {
	var o BenchOptions
	var svg string
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure cold and warm boots of real containers",
		Long: `Measure cold and warm boots of real containers, by a server that bench starts for itself in an empty storage root and ends
again. Nothing else should be going on on this machine. The result is a table; with -o json it is every single sample.`,
		Args: cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			if o.Runs < 0 || o.Cold < 0 || o.Concurrent < 0 || o.Runs+o.Cold == 0 {
				return invalid("-n, --cold and --concurrent must not be negative, and there must be something to measure")
			}
			d := a.newDisplay("preparing", false)
			defer d.close()
			result, err := a.Bench(ctx, o, d.progress)
			if err != nil {
				return err
			}
			d.close()
			if svg != "" {
				if err := writeSVG(svg, result); err != nil {
					return err
				}
			}
			if a.format == "json" {
				return bench.WriteJSON(a.Out, result)
			}
			return bench.Table(a.Out, result)
		}),
	}
	f := cmd.Flags()
	f.IntVarP(&o.Runs, "runs", "n", 50, "`number` of warm boots")
	f.IntVar(&o.Cold, "cold", 5, "`number` of cold boots")
	f.IntVar(&o.Concurrent, "concurrent", 8, "`number` of warm boots at once, in a run of its own; 0: none")
	f.BoolVar(&o.Floor, "floor", false, "also restore the same snapshot with the bare VMM commands, in turn with the warm boots")
	f.BoolVar(&o.BootOnly, "boot-only", false, "do not wait for a container to be started in what has booted")
	f.StringVar(&o.Image, "image", "", "OCI `image` to run; one that bench makes and serves if left out")
	f.StringVar(&o.StorageRoot, "storage-root", a.storageRoot(), "the storage `directory` whose runtime image is used (MANAGER_STORAGE_ROOT)")
	f.StringVar(&svg, "svg", "", "also draw the result into this `file`")
	return cmd
}

// writeSVG draws a result into a file.
func writeSVG(path string, r bench.Result) error {
	f, err := os.Create(path)
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "write picture", Err: err}
	}
	if err := bench.SVG(f, r); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "write picture", Err: err}
	}
	return nil
}

// clientVersion tells about this program.
type clientVersion struct {
	Version   string `json:"version"`
	GoVersion string `json:"go_version"`
}

// versions is what `warmboot version` prints.
type versions struct {
	Client clientVersion `json:"client"`
	Server *api.Version  `json:"server"` // null if it cannot be reached
}

func (a *app) versionCmd() *cobra.Command {
	var onlyClient bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Show the versions of this program and of the server",
		Args:  cobra.NoArgs,
		RunE: a.do(func(ctx context.Context, _ []string) error {
			v := versions{Client: clientVersion{a.Version, runtime.Version()}}
			var serverErr error
			if !onlyClient {
				if server, err := a.serverVersion(ctx); err != nil {
					serverErr = err
				} else {
					v.Server = &server
				}
			}
			if a.format == "json" {
				if err := a.printJSON(v); err != nil {
					return err
				}
				return serverErr
			}
			fmt.Fprintf(a.Out, "client  warmboot %s, %s\n", v.Client.Version, v.Client.GoVersion)
			if s := v.Server; s != nil {
				fmt.Fprintf(a.Out, "server  warmboot %s, %s, %s\n        %s\n", s.Version, s.GoVersion, s.VMM, s.VMMWhy)
			}
			return serverErr
		}),
	}
	cmd.Flags().BoolVar(&onlyClient, "client", false, "do not ask the server")
	return cmd
}

func (a *app) serverVersion(ctx context.Context) (api.Version, error) {
	cl, err := a.client()
	if err != nil {
		return api.Version{}, err
	}
	return cl.Version(ctx)
}
