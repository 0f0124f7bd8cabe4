package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

func ended(c api.Container) bool {
	s := warmboot.ContainerState(c.State)
	return s == warmboot.ContainerStopped || s == warmboot.ContainerFailed
}

// command is what was asked to run; "-" if the image decides.
func command(c api.Container) string {
	if words := slices.Concat(c.Command, c.Args); len(words) > 0 {
		return strings.Join(words, " ")
	}
	return "-"
}

// status is a container's state as people say it.
func status(c api.Container) string {
	text := state(c)
	if c.HostState == string(warmboot.HostDown) {
		text += " (host " + c.Host + " is down)"
	}
	return text
}

func state(c api.Container) string {
	switch s := warmboot.ContainerState(c.State); {
	case s == warmboot.ContainerRunning && c.StartedAt != nil:
		return "Up " + since(*c.StartedAt)
	case s == warmboot.ContainerStopped && c.FinishedAt != nil:
		code := ""
		if c.ExitCode != nil {
			code = fmt.Sprintf("(%d) ", *c.ExitCode)
		}
		return "Exited " + code + ago(*c.FinishedAt)
	case s == warmboot.ContainerFailed && c.FinishedAt != nil:
		return "Failed " + ago(*c.FinishedAt)
	}
	if c.State == "" {
		return "-"
	}
	return strings.ToUpper(c.State[:1]) + c.State[1:]
}

// boot tells which way the microVM came up, and in what time Docker answered in it.
func boot(c api.Container) string {
	if c.BootMethod == nil {
		return "-"
	}
	return *c.BootMethod + " " + dur(bootSeconds(c.Phases))
}

// ports writes published ports: "127.0.0.1:8080->80/tcp".
func ports(mappings []api.PortMapping) string {
	var list []string
	for _, p := range mappings {
		list = append(list, fmt.Sprintf("%s->%d/%s", net.JoinHostPort(p.HostIP, strconv.Itoa(p.HostPort)), p.ContainerPort, p.Protocol))
	}
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ", ")
}

func (a *app) stopCmd() *cobra.Command {
	var timeout int
	cmd := &cobra.Command{
		Use:                   "stop [-t SECONDS] CONTAINER...",
		DisableFlagsInUseLine: true,
		Short:                 "End the commands of containers; their disks and logs stay",
		Args:                  cobra.MinimumNArgs(1),
		ValidArgsFunction:     a.completeContainers(func(c api.Container) bool { return !ended(c) }),
	}
	cmd.Flags().IntVarP(&timeout, "time", "t", 10, "`seconds` that the command may take to end by itself")
	cmd.RunE = a.do(func(ctx context.Context, refs []string) error {
		var grace *int // the server has a default of its own
		if cmd.Flags().Changed("time") {
			if timeout < 0 {
				return warmboot.Errorf(warmboot.Invalid, "", "-t %d: the time must not be negative", timeout)
			}
			grace = &timeout
		}
		return each(a, refs, func(cl *client.Client, ref string) (api.Container, error) {
			return cl.StopContainer(ctx, ref, grace)
		})
	})
	return cmd
}

func (a *app) startCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "start CONTAINER...",
		Short:             "Start stopped containers again, from their own disks",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeContainers(ended),
		RunE: a.do(func(ctx context.Context, refs []string) error {
			d := a.newDisplay("starting "+strings.Join(refs, ", "), !isTerminal(a.Err))
			defer d.close()
			return each(a, refs, func(cl *client.Client, ref string) (api.Container, error) {
				id, err := cl.StartContainer(ctx, ref)
				if err != nil {
					return api.Container{}, err
				}
				c, err := cl.WaitContainer(ctx, id, client.Started)
				if err == nil && c.Error != "" {
					err = couldNotStart(c)
				}
				return c, err
			})
		}),
	}
}

// couldNotStart is the error of a container that failed. Its text is the server's and says what to do.
func couldNotStart(c api.Container) error {
	return warmboot.Errorf(warmboot.Internal, "", "container %s could not be started: %s", c.Name, c.Error)
}

func (a *app) rmCmd() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:                   "rm [-f] CONTAINER...",
		DisableFlagsInUseLine: true,
		Short:                 "Remove containers with their disks and logs",
		Args:                  cobra.MinimumNArgs(1),
		ValidArgsFunction:     a.completeContainers(nil),
		RunE: a.do(func(ctx context.Context, refs []string) error {
			return each(a, refs, func(cl *client.Client, ref string) (string, error) {
				return ref, cl.DeleteContainer(ctx, ref, force)
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also containers whose command runs, or whose host is down")
	return cmd
}

// eachLimit is how many of several things named on a command line are done at once.
const eachLimit = 8

// each does something to everything that was named, several at once, and prints each name as soon as that is done; in JSON, the results at the end.
// What fails keeps nothing else from being done.
func each[T any](a *app, refs []string, f func(*client.Client, string) (T, error)) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		turns   = make(chan struct{}, eachLimit)
		errs    = make([]error, len(refs))
		results = make([]T, len(refs))
	)
	for i, ref := range refs {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if results[i], errs[i] = f(cl, ref); errs[i] == nil && a.format != "json" {
				mu.Lock()
				defer mu.Unlock()
				fmt.Fprintln(a.Out, ref)
			}
		})
	}
	wg.Wait()
	if a.format == "json" {
		done := []T{}
		for i, r := range results {
			if errs[i] == nil {
				done = append(done, r)
			}
		}
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	return errors.Join(errs...)
}
