// Package cli is the warmboot command: Docker's verbs for containers in microVMs, and the commands for what is below them.
// Data goes to standard output, progress and errors to standard error. Everything that touches a server goes through
// the public client; what runs on this machine itself (serve, image build, bench, doctor) comes in as functions of Config.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/bench"
	"warmboot/internal/preflight"
	"warmboot/internal/telemetry/span"
)

// Config is what the commands need from outside. In, Out, Err and Env are required, and so are the functions.
type Config struct {
	In       io.Reader
	Out, Err io.Writer
	Env      func(name string) string // "" for a variable that is not set
	Version  string                   // of this program

	// Signals delivers the user's interruptions. If nil, Run takes SIGINT and SIGTERM of this process; the context
	// given to Run should then not be bound to them, or a first Ctrl-C could not stop a container in good order.
	Signals <-chan os.Signal

	// Serve runs the server until ctx ends.
	Serve func(context.Context, ServeOptions) error
	// Manager and Agent run the two halves of it for several machines, until ctx ends.
	Manager func(context.Context, ManagerOptions) error
	Agent   func(context.Context, AgentOptions) error
	// BuildImage makes a runtime image on this machine. cached tells that an image of the same recipe was there already.
	BuildImage func(context.Context, BuildImageOptions, Progress) (img api.RegisterImage, cached bool, err error)
	// Bench measures.
	Bench func(context.Context, BenchOptions, Progress) (bench.Result, error)
	// Doctor looks at this machine, and Fix puts right what it can.
	Doctor func(context.Context, DoctorOptions) []preflight.Check
	Fix    func(context.Context, DoctorOptions, Progress) []preflight.Fixed

	stopSignals func() // gives the next interruption back to the system, which ends the process
}

// Progress is told what is being done, and which part of all work is done, from 0 to 1; negative if that is not known.
type Progress = func(step string, fraction float64)

// BuildImageOptions are the settings of `warmboot image build`.
type BuildImageOptions struct {
	Name        string // of the image; empty: the builder's choice
	Suite       string // of Debian
	Mirror      string // of Debian packages; empty: the builder's choice
	StorageRoot string // the image goes below its directory "images"
	NoCache     bool   // build even if an image of the same recipe is there
}

// BenchOptions are the settings of `warmboot bench`.
type BenchOptions struct {
	bench.Options
	StorageRoot string // whose runtime image is measured with
}

// app is one invocation.
type app struct {
	Config
	format string // "table" or "json"
	host   string
	token  string
	tlsCA  string
}

// Run executes one command line, without the program's name, and returns the exit code. Errors are printed on Err.
func Run(ctx context.Context, c Config, args []string) int {
	if c.Signals == nil {
		signals := make(chan os.Signal, 2)
		signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
		defer signal.Stop(signals)
		c.Signals, c.stopSignals = signals, func() { signal.Stop(signals) }
	}
	root := New(c)
	root.SetArgs(args)
	// Whoever runs us may be traced, and so will be what we ask the server for.
	cmd, err := root.ExecuteContextC(span.Remote(ctx, c.Env("TRACEPARENT")))
	return exitCode(c.Err, cmd, err)
}

// The groups of commands in the help.
const (
	groupContainers = "containers"
	groupRuntime    = "runtime"
	groupAccess     = "access"
	groupMachine    = "machine"
)

// New returns the root command.
func New(c Config) *cobra.Command {
	a := &app{Config: c}
	root := &cobra.Command{
		Use:   "warmboot",
		Short: "Containers in microVMs of their own, started from a frozen machine in which Docker already runs",
		Long: `Containers in microVMs of their own, started from a frozen machine in which Docker already runs.

First steps:
  warmboot serve                      # in a terminal of its own
  warmboot image build                # once
  warmboot snapshot create            # once: boots the image, waits for Docker, freezes the machine
  warmboot run debian:trixie uname -a # restores it; boots from the kernel on if that fails

Exit codes: "run" and "exec" exit with the exit code of the command in the container, and with 125 if warmboot itself
fails. All others: 0 done, 1 a fault of warmboot, 2 wrong usage or an invalid request, 3 not allowed, 4 not found, 5 in
conflict with what is there, 6 a limit is reached, 7 the image cannot be pulled, 8 the server cannot be reached or cannot do it
now, 9 timed out, 10 corrupt data, 11 incompatible snapshot, 130 interrupted.`,
		Version:       c.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.format != "table" && a.format != "json" {
				return fmt.Errorf("-o %q: the output formats are table and json", a.format)
			}
			return nil
		},
	}
	root.SetIn(c.In)
	root.SetOut(c.Out)
	root.SetErr(c.Err)
	root.SetVersionTemplate("warmboot {{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVarP(&a.format, "output", "o", "table", "output format: table or json")
	flags.StringVarP(&a.host, "host", "H", a.env("WARMBOOT_HOST", client.DefaultAddr), "address of the server (WARMBOOT_HOST)")
	flags.StringVar(&a.token, "token", "", "token that the server asks for (WARMBOOT_TOKEN; root on the server's machine needs none)")
	flags.StringVar(&a.tlsCA, "tls-ca", a.Env("WARMBOOT_TLS_CA"), "whom an https server must be: a PEM file, or sha256: and a certificate's fingerprint (WARMBOOT_TLS_CA)")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp)))
	root.AddGroup(
		&cobra.Group{ID: groupContainers, Title: "Containers:"},
		&cobra.Group{ID: groupRuntime, Title: "Runtime images and snapshots:"},
		&cobra.Group{ID: groupAccess, Title: "Who may do what:"},
		&cobra.Group{ID: groupMachine, Title: "This machine:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, cmd := range cmds {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add(groupContainers, a.runCmd(), a.psCmd(), a.logsCmd(), a.execCmd(), a.stopCmd(), a.startCmd(), a.rmCmd(), a.updateCmd(), a.renameCmd(), a.inspectCmd(), a.eventsCmd())
	add(groupRuntime, a.imageCmd(), a.snapshotCmd())
	add(groupAccess, a.tokenCmd(), a.auditCmd())
	add(groupMachine, a.serveCmd(), a.managerCmd(), a.agentCmd(), a.hostCmd(), a.gcCmd(), a.doctorCmd(), a.benchCmd(), a.versionCmd())
	return root
}

// must panics on an error that only a mistake in this package can cause, such as a flag that does not exist.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// env is an environment variable, or def if it is not set.
func (a *app) env(name, def string) string {
	if v := a.Env(name); v != "" {
		return v
	}
	return def
}

// do makes f a command's action. Its context ends at the first interruption; the second ends the process.
func (a *app) do(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return a.doSelf(func(ctx context.Context, args []string) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			select {
			case <-a.Signals:
				if a.stopSignals != nil {
					a.stopSignals()
				}
				cancel()
			case <-ctx.Done():
			}
		}()
		return f(ctx, args)
	})
}

// doSelf is do for an action that takes care of interruptions itself.
func (a *app) doSelf(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd.Context(), args); err != nil {
			return failure{err}
		}
		return nil
	}
}

// failure marks an error of an action. Any other error of a command line is wrong usage.
type failure struct{ error }

func (f failure) Unwrap() error { return f.error }

// exitStatus ends the program with an exit code and without a word.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Exit codes that no warmboot.Code has.
const (
	exitUsage       = 2
	exitOwnFault    = 125 // of run and exec, whose other codes are the command's in the container
	exitInterrupted = 130
)

// exitCode prints an error and returns the exit code that goes with it.
func exitCode(w io.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	var status exitStatus
	if errors.As(err, &status) {
		return int(status)
	}
	passes := cmd.Annotations[passesExitCode] != ""
	var failed failure
	if !errors.As(err, &failed) {
		fmt.Fprintf(w, "warmboot: %v\nSee `%s --help`.\n", err, cmd.CommandPath())
		if passes {
			return exitOwnFault
		}
		return exitUsage
	}
	code := warmboot.CodeOf(failed.error)
	if code == warmboot.Canceled {
		return exitInterrupted // who pressed Ctrl-C knows
	}
	for _, e := range parts(failed.error) {
		fmt.Fprintf(w, "warmboot: %v\n", e)
	}
	if passes {
		return exitOwnFault
	}
	return code.Outcome().Exit
}

// passesExitCode annotates the commands that exit with the code of a command in a container.
const passesExitCode = "passes-exit-code"

// parts are the errors that were joined.
func parts(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// oneLine cuts text to one line of at most n runes.
func oneLine(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
