package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
)

// runOptions are the flags of run.
type runOptions struct {
	detach, remove, cold, quiet bool
	interactive, tty            bool
	name, entrypoint            string
	runtimeImage, memory        string
	env, envFiles, publish      []string
	egress                      string
	egressAllow                 []string
	ingressMbit, egressMbit     int
	cpus                        float64
	username, restart           string
	passwordStdin               bool
}

func (a *app) runCmd() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:                   "run [FLAGS] IMAGE [ARG...]",
		DisableFlagsInUseLine: true,
		Short:                 "Run an image in a new container, in a microVM of its own",
		Long: `Run an image in a new container, in a microVM of its own.

In the foreground, run shows how the microVM came up, then the container's output, and exits with the exit code of its
command; 125 means that warmboot itself failed. Ctrl-C stops the container, a second Ctrl-C leaves it alone. While
the container is still being brought up, Ctrl-C removes it.`,
		Example: `  warmboot run --rm debian:trixie cat /etc/os-release
  warmboot run -d --name web -p 8080:80 nginx`,
		Args:        cobra.MinimumNArgs(1),
		Annotations: map[string]string{passesExitCode: "yes"},
		RunE:        a.doSelf(func(ctx context.Context, args []string) error { return a.run(ctx, o, args[0], args[1:]) }),
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows IMAGE is the container's
	f.BoolVarP(&o.detach, "detach", "d", false, "leave the container in the background and print its id")
	f.BoolVar(&o.remove, "rm", false, "remove the container once its command has ended")
	f.StringVar(&o.name, "name", "", "`name` of the container; one is made up if left out")
	f.StringArrayVarP(&o.env, "env", "e", nil, "environment variable, `NAME=VALUE`; NAME alone hands yours on")
	f.StringArrayVar(&o.envFiles, "env-file", nil, "`file` of lines like the values of -e")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "publish a port on the host, `[[ip:]host:]container[/proto]`; the ip is 127.0.0.1 if left out")
	f.StringVar(&o.egress, "egress", "", "`policy` for connections that it makes: allow, or deny; published ports are answered all the same")
	f.StringArrayVar(&o.egressAllow, "egress-allow", nil, "`network` or address that it may connect to, and to no others; \"dns\" to resolve names (repeatable)")
	f.IntVar(&o.ingressMbit, "ingress-mbit", 0, "`Mbit/s` that it receives at most; 0: no limit")
	f.IntVar(&o.egressMbit, "egress-mbit", 0, "`Mbit/s` that it sends at most; 0: no limit")
	f.Float64Var(&o.cpus, "cpus", 0, "`number` of CPUs; 0: the microVM's own")
	f.StringVarP(&o.memory, "memory", "m", "", "`amount` of memory, for example 512m; the microVM's own if left out")
	f.StringVar(&o.entrypoint, "entrypoint", "", "`program` that replaces the image's entrypoint")
	f.StringVar(&o.runtimeImage, "runtime-image", "", "`name` or id of the runtime image to boot; the newest if left out")
	f.StringVar(&o.restart, "restart", "", "`policy` by which it is started again by itself: no, on-failure, on-failure:N, always or unless-stopped")
	f.BoolVar(&o.cold, "cold", false, "boot from the kernel on, even if there is a snapshot")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not show how the microVM comes up")
	f.StringVar(&o.username, "username", "", "`name` for the registry")
	f.BoolVar(&o.passwordStdin, "password-stdin", false, "read the password for the registry from standard input")
	f.BoolVarP(&o.interactive, "interactive", "i", false, "")
	f.BoolVarP(&o.tty, "tty", "t", false, "")
	must(f.MarkHidden("interactive")) // Docker's habit; it gets an answer that helps
	must(f.MarkHidden("tty"))
	must(cmd.RegisterFlagCompletionFunc("runtime-image", a.completeImages))
	must(cmd.RegisterFlagCompletionFunc("egress", cobra.FixedCompletions([]string{"allow", "deny"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions([]string{"no", "on-failure", "always", "unless-stopped"}, cobra.ShellCompDirectiveNoFileComp)))
	cmd.ValidArgsFunction = cobra.NoFileCompletions
	return cmd
}

func (a *app) run(ctx context.Context, o runOptions, image string, args []string) error {
	cl, err := a.client()
	if err != nil {
		return err
	}
	req, err := a.createRequest(ctx, cl, o, image, args)
	if err != nil {
		return err
	}
	id, err := cl.CreateContainer(ctx, req)
	if err != nil {
		return err
	}
	c, err := a.bringUp(ctx, cl, id, o)
	if req.AutoRemove && warmboot.CodeOf(err) == warmboot.NotFound { // its command has ended already
		c, err = api.Container{ID: id, Name: req.Name, Image: req.Image, State: string(warmboot.ContainerDeleting), AutoRemove: true}, nil
	}
	if err != nil {
		return err
	}
	if o.detach {
		if a.format == "json" {
			return a.printJSON(c)
		}
		fmt.Fprintln(a.Out, c.ID)
		return nil
	}
	code, err := a.follow(ctx, cl, c)
	if err == nil && o.remove {
		err = cl.DeleteContainer(ctx, id, true)
	}
	if err == nil && code != 0 {
		err = exitStatus(code)
	}
	return err
}

// createRequest makes the request out of the flags.
func (a *app) createRequest(ctx context.Context, cl *client.Client, o runOptions, image string, args []string) (api.CreateContainer, error) {
	req := api.CreateContainer{Name: o.name, Image: image, Args: args, CPULimit: o.cpus, ColdBoot: o.cold, RestartPolicy: o.restart}
	if o.remove && o.restart != "" && o.restart != string(warmboot.RestartNo) {
		return req, warmboot.Errorf(warmboot.Invalid, "", "--rm and --restart contradict each other: what is removed at its end cannot be started again")
	}
	if o.interactive || o.tty {
		return req, warmboot.Errorf(warmboot.Invalid, "", "run does not connect a terminal or standard input; start the container with -d, then `warmboot exec -it NAME COMMAND`")
	}
	req.AutoRemove = o.detach && o.remove // in the foreground it is removed once its output has been shown
	if o.entrypoint != "" {
		req.Command = []string{o.entrypoint}
	}
	var err error
	if req.EnvVars, err = a.parseEnv(o.env, o.envFiles); err != nil {
		return req, err
	}
	if req.Egress, err = parseEgress(o.egress, o.egressAllow); err != nil {
		return req, err
	}
	if o.ingressMbit != 0 || o.egressMbit != 0 {
		req.Bandwidth = &api.Bandwidth{IngressMbit: o.ingressMbit, EgressMbit: o.egressMbit}
		if err := (warmboot.Bandwidth{IngressMbit: o.ingressMbit, EgressMbit: o.egressMbit}).Validate(); err != nil {
			return req, err
		}
	}
	if req.MemoryLimitMB, err = parseMemory(o.memory); err != nil {
		return req, err
	}
	for _, p := range o.publish {
		m, err := parsePort(p)
		if err != nil {
			return req, err
		}
		req.PortMappings = append(req.PortMappings, m)
	}
	if req.RegistryAuth, err = a.registryAuth(o); err != nil {
		return req, err
	}
	if o.runtimeImage != "" {
		img, err := a.findImage(ctx, cl, o.runtimeImage)
		if err != nil {
			return req, err
		}
		req.RuntimeImageID = img.ID
	}
	return req, nil
}

// passwordLimit is how much of standard input is read as a password, in bytes; it is what the API allows.
const passwordLimit = 4096

// registryAuth reads the password from standard input, as no password belongs on a command line.
func (a *app) registryAuth(o runOptions) (*api.RegistryAuth, error) {
	if o.username == "" && !o.passwordStdin {
		return nil, nil
	}
	if o.username == "" || !o.passwordStdin {
		return nil, warmboot.Errorf(warmboot.Invalid, "", "--username and --password-stdin go together: `warmboot run --username NAME --password-stdin IMAGE <password-file`")
	}
	text, err := io.ReadAll(io.LimitReader(a.In, passwordLimit+2))
	if err != nil {
		return nil, &warmboot.Error{Code: warmboot.Internal, Op: "read password", Err: err}
	}
	password := strings.TrimRight(string(text), "\r\n")
	if password == "" || len(password) > passwordLimit {
		return nil, warmboot.Errorf(warmboot.Invalid, "", "--password-stdin: a password of 1 to %d bytes is expected on standard input", passwordLimit)
	}
	return &api.RegistryAuth{Username: o.username, Password: password}, nil
}

// bringUp waits until a new container runs, showing how. An interruption removes the container, and so does a failure with
// --rm.
func (a *app) bringUp(ctx context.Context, cl *client.Client, id string, o runOptions) (api.Container, error) {
	d := a.newDisplay("", o.quiet)
	defer d.close()
	if d.live() {
		d.step("bringing up a microVM")
	}
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		c   api.Container
		err error
	}
	started := make(chan result, 1)
	go func() {
		c, err := cl.WaitContainer(wctx, id, client.Started)
		started <- result{c, err}
	}()
	booted := make(chan api.Container, 1)
	if d.live() {
		go func() {
			if c, err := cl.WaitContainer(wctx, id, client.Booted); err == nil { // for the eye only: started tells of errors
				booted <- c
			}
		}()
	}
	for {
		select {
		case c := <-booted:
			if c.BootMethod != nil {
				d.step(fmt.Sprintf("%s boot in %s; pulling %s", *c.BootMethod, dur(bootSeconds(c.Phases)), c.Image))
			}
		case <-a.Signals:
			cancel()
			d.close()
			if err := cl.DeleteContainer(ctx, id, true); err != nil {
				return api.Container{}, err
			}
			fmt.Fprintln(a.Err, "warmboot: interrupted; the container is removed")
			return api.Container{}, exitStatus(exitInterrupted)
		case r := <-started:
			d.close()
			if r.err != nil {
				return r.c, r.err
			}
			if !o.quiet && r.c.BootMethod != nil {
				fmt.Fprintf(a.Err, "%s: %s\n", r.c.Name, bootLine(r.c))
			}
			if r.c.State == string(warmboot.ContainerFailed) {
				err := couldNotStart(r.c)
				if o.remove {
					err = errors.Join(err, cl.DeleteContainer(ctx, id, true))
				}
				return r.c, err
			}
			return r.c, nil
		}
	}
}

// follow shows a container's output until its command ends, and returns its exit code. The first interruption stops the
// container, the second leaves it.
func (a *app) follow(ctx context.Context, cl *client.Client, c api.Container) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		c   api.Container
		err error
	}
	over := make(chan result, 1)
	go func() {
		logErr := a.copyLogs(ctx, cl, c.ID, logOptions{follow: true, tail: -1})
		c, err := cl.WaitContainer(ctx, c.ID, client.Stopped)
		if err == nil && logErr != nil {
			fmt.Fprintf(a.Err, "warmboot: the output broke off: %v\n", logErr)
		}
		over <- result{c, err}
	}()
	stopped := make(chan error, 1)
	stopping := false
	for {
		select {
		case <-a.Signals:
			if stopping {
				fmt.Fprintf(a.Err, "warmboot: leaving container %s; see `warmboot ps -a`\n", c.Name)
				return 0, exitStatus(exitInterrupted)
			}
			stopping = true
			fmt.Fprintf(a.Err, "warmboot: stopping %s; Ctrl-C again leaves it\n", c.Name)
			go func() {
				_, err := cl.StopContainer(ctx, c.ID, nil)
				stopped <- err
			}()
		case err := <-stopped:
			// A Conflict means that the command was ending by itself, which the other goroutine tells.
			if err != nil && warmboot.CodeOf(err) != warmboot.Conflict && ctx.Err() == nil {
				return 0, err
			}
		case r := <-over:
			if r.err != nil {
				return 0, r.err
			}
			if r.c.ExitCode == nil {
				return 0, warmboot.Errorf(warmboot.Internal, "", "container %s ended and its exit code is not known: %s", c.Name, r.c.Error)
			}
			return *r.c.ExitCode, nil
		}
	}
}

// bootLine tells how a container came up: the way, the time to Docker's answer, its phases, and for a cold boot the reason.
func bootLine(c api.Container) string {
	var boot, after []string
	for _, p := range c.Phases {
		switch warmboot.PhaseName(p.Name) {
		case warmboot.PhasePull:
			after = append(after, "pulled in "+dur(p.Seconds))
		case warmboot.PhaseStart:
			after = append(after, "started in "+dur(p.Seconds))
		default:
			boot = append(boot, p.Name+" "+dur(p.Seconds))
		}
	}
	s := fmt.Sprintf("%s boot in %s", *c.BootMethod, dur(bootSeconds(c.Phases)))
	if c.BootReason != "" {
		s += ": " + c.BootReason
	}
	if len(boot) > 0 {
		s += " (" + strings.Join(boot, ", ") + ")"
	}
	return strings.Join(append([]string{s}, after...), ", ")
}

// bootSeconds is the time up to Docker's answer.
func bootSeconds(phases []api.Phase) float64 {
	sum := 0.0
	for _, p := range phases {
		if n := warmboot.PhaseName(p.Name); n != warmboot.PhasePull && n != warmboot.PhaseStart {
			sum += p.Seconds
		}
	}
	return sum
}
