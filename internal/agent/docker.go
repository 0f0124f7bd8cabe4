package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	dockertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/client"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/guestrpc"
	"warmboot/internal/telemetry/span"
)

// ociContainer is the name, in the guest's Docker, of the one container that a microVM is for.
const ociContainer = "main"

// StartContainer pulls the image into the container's machine, creates and starts the OCI container. If the machine's disk holds
// that container already it is only started.
func (a *Agent) StartContainer(ctx context.Context, c warmboot.Container, auth *controlplane.RegistryAuth, step func(string)) ([]warmboot.Phase, error) {
	ctx, done, err := a.command(ctx, controlplane.ContainerRef{ID: c.ID, Generation: c.Lease.Generation})
	if err != nil {
		return nil, err
	}
	defer done()
	own, err := a.find(c.ID)
	if err != nil {
		return nil, err
	}
	vm, err := own.vm()
	if err != nil {
		return nil, err
	}
	ctx, stop := whileAlive(ctx, vm.machine)
	defer stop()
	ctx, stopAsking := whileAnswering(ctx, vm.machine.Handle().PID, a.AnswerTimeout, vm.ping)
	defer stopAsking()
	phases, asked, err := a.startContainer(ctx, vm, c, auth, step)
	if err == nil {
		err = own.keep(func(r *record) { r.Container = &c })
	}
	if err == nil {
		a.watch(own, vm)
	}
	switch {
	case err == nil:
	case died(ctx, vm.machine):
		err = endedBeforeStart(c, asked, "the VMM's process ended", lastWords(vm.machine))
	case errors.Is(context.Cause(ctx), errSilent):
		ended := fmt.Sprintf("the microVM was ended, because its Docker had not answered for %v,", a.AnswerTimeout)
		err = errors.Join(endedBeforeStart(c, asked, ended, lastWords(vm.machine)), stopMachine(vm.machine))
	}
	return phases, err
}

// endedBeforeStart is the error of a container whose machine has ended while it was being started. asked tells whether Docker had been asked to start the command by then: if
// so it may have run, and only a restart policy allows that it runs again. how is how it has ended.
func endedBeforeStart(c warmboot.Container, asked bool, how, lastWords string) error {
	const op = "start container"
	if asked && !c.ShouldRestart(false) {
		return warmboot.Errorf(warmboot.Unavailable, op, "%s while the container was being started; its command may have run already, so start it again yourself%s", how, lastWords)
	}
	return warmboot.Errorf(warmboot.Unavailable, op, "%s while the container was being started (%w)%s", how, controlplane.ErrNotStarted, lastWords)
}

// startContainer is StartContainer in a machine. asked tells whether Docker was asked to start the command.
func (a *Agent) startContainer(ctx context.Context, vm *microVM, c warmboot.Container, auth *controlplane.RegistryAuth, step func(string)) (phases []warmboot.Phase, asked bool, err error) {
	if shortOfProcessors() {
		step("This host has too much to do; the container takes its turn")
	}
	pid := vm.machine.Handle().PID
	done, err := a.starts.takeWhileShort(ctx, shortOfProcessors, func() time.Duration { return wanted(pid) })
	if err != nil {
		return nil, false, warmboot.Errorf(warmboot.CodeOf(err), "start container", "%w", err)
	}
	defer done()
	known, err := vm.docker.ContainerInspect(ctx, ociContainer, client.ContainerInspectOptions{})
	if err != nil && !cerrdefs.IsNotFound(err) {
		return nil, false, dockerError("start container", err)
	}
	exists, before := err == nil, neverStarted
	if exists {
		if s := known.Container.State; s != nil {
			before = s.StartedAt
		}
		if err := a.adjust(ctx, vm, c, known.Container.HostConfig); err != nil {
			return nil, false, err
		}
	} else {
		begin := time.Now()
		if err := a.pullOpen(ctx, vm, c, auth, step); err != nil {
			return nil, false, err
		}
		phases = append(phases, warmboot.Phase{Name: warmboot.PhasePull, Duration: time.Since(begin)})
	}
	begin := time.Now()
	ctx, s := span.Start(ctx, "phase: "+string(warmboot.PhaseStart))
	defer func() { s.End(err) }()
	if !exists {
		step("Creating the container")
		config, host := ociConfig(c)
		if err := createOnce(ctx, vm.docker, client.ContainerCreateOptions{Name: ociContainer, Config: config, HostConfig: host}, step); err != nil {
			return nil, false, dockerError("create container", err)
		}
	}
	step("Starting the container")
	if err := startOnce(ctx, vm.docker, before, step); err != nil {
		return nil, true, dockerError("start container", err)
	}
	return append(phases, warmboot.Phase{Name: warmboot.PhaseStart, Duration: time.Since(begin)}), true, nil
}

// ociConfig is the Docker container that c asks for. It uses the microVM's own network: the VM is the wall, a second network
// inside it would only cost.
func ociConfig(c warmboot.Container) (*dockertypes.Config, *dockertypes.HostConfig) {
	config := &dockertypes.Config{Image: c.Image, Entrypoint: c.Spec.Command, Cmd: c.Spec.Args}
	for k, v := range c.Spec.EnvVars {
		config.Env = append(config.Env, k+"="+v)
	}
	slices.Sort(config.Env)
	// The host name is the microVM's as well: Docker would keep that of the first start on the container's disk, where no update reaches it.
	host := &dockertypes.HostConfig{NetworkMode: "host", UTSMode: "host", Binds: []string{"/etc/hostname:/etc/hostname"}}
	host.NanoCPUs = int64(c.Spec.CPULimit * 1e9)
	host.Memory = int64(c.Spec.MemoryLimitMB) << 20
	host.RestartPolicy = restartPolicy(c)
	return config, host
}

// restartPolicy is a container's, as Docker has it.
func restartPolicy(c warmboot.Container) dockertypes.RestartPolicy {
	name := c.Spec.RestartPolicy.Name
	if name == "" {
		name = warmboot.RestartNo // to an update, none means that it stays
	}
	return dockertypes.RestartPolicy{Name: dockertypes.RestartPolicyMode(name), MaximumRetryCount: c.Spec.RestartPolicy.MaxRetries}
}

// adjust makes the container that Docker knows what c asks for by now. Docker cannot take a limit away, but one as large as the microVM limits nothing.
func (a *Agent) adjust(ctx context.Context, vm *microVM, c warmboot.Container, now *dockertypes.HostConfig) error {
	_, want := ociConfig(c)
	vcpus, memory := a.size(c.Spec)
	if want.NanoCPUs == 0 && now.NanoCPUs != 0 {
		want.NanoCPUs = int64(vcpus) * 1e9
	}
	if want.Memory == 0 && now.Memory != 0 {
		want.Memory = int64(memory) << 20
	}
	var change client.ContainerUpdateOptions
	if want.NanoCPUs != now.NanoCPUs || want.Memory != now.Memory {
		// Docker's own rule for a new container: as much swap as memory, both counted together.
		change.Resources = &dockertypes.Resources{NanoCPUs: want.NanoCPUs, Memory: want.Memory, MemorySwap: 2 * want.Memory}
	}
	if policy := restartPolicy(c); policy != now.RestartPolicy {
		change.RestartPolicy = &policy
	}
	if change == (client.ContainerUpdateOptions{}) {
		return nil
	}
	_, err := vm.docker.ContainerUpdate(ctx, ociContainer, change)
	return dockerError("update container", err)
}

// UpdateContainer makes the Docker of a container whose command runs follow its restart policy.
func (a *Agent) UpdateContainer(ctx context.Context, c warmboot.Container) error {
	ctx, done, err := a.command(ctx, controlplane.ContainerRef{ID: c.ID, Generation: c.Lease.Generation})
	if err != nil {
		return err
	}
	defer done()
	own, err := a.find(c.ID)
	if err != nil {
		return err
	}
	vm, err := own.vm()
	if err != nil {
		return err
	}
	ctx, stop := whileAlive(ctx, vm.machine)
	defer stop()
	policy := restartPolicy(c)
	if _, err := vm.docker.ContainerUpdate(ctx, ociContainer, client.ContainerUpdateOptions{RestartPolicy: &policy}); err != nil {
		return dockerError("update container", err)
	}
	return own.keep(func(r *record) { r.Container = &c })
}

// pullOpen is pull with a network that leads to registries. There is no container yet whose policy that would break, and before there is one
// the policy holds again.
func (a *Agent) pullOpen(ctx context.Context, vm *microVM, c warmboot.Container, auth *controlplane.RegistryAuth, step func(string)) error {
	if !c.Spec.Egress.Limited() {
		return a.pull(ctx, vm, c.Image, auth, step)
	}
	if err := vm.slot.Limit(warmboot.Egress{}, c.Spec.Bandwidth); err != nil {
		return err
	}
	err := a.pull(ctx, vm, c.Image, auth, step)
	return errors.Join(err, vm.slot.Limit(c.Spec.Egress, c.Spec.Bandwidth))
}

// pull makes the guest's Docker fetch an image from its registry.
func (a *Agent) pull(ctx context.Context, vm *microVM, image string, auth *controlplane.RegistryAuth, step func(string)) (err error) {
	const op = "pull image"
	ctx, s := span.Start(ctx, "phase: "+string(warmboot.PhasePull), "image", image)
	defer func() { s.End(err) }()
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return warmboot.Errorf(warmboot.Invalid, op, "%q is not an image reference: %v", image, err)
	}
	host := reference.Domain(ref)
	if err := a.openRegistry(ctx, vm, host); err != nil {
		return err
	}
	opts := client.ImagePullOptions{}
	if auth != nil {
		if opts.RegistryAuth, err = authconfig.Encode(registry.AuthConfig{Username: auth.Username, Password: auth.Password, ServerAddress: host}); err != nil {
			return &warmboot.Error{Code: warmboot.Invalid, Op: op, Err: err}
		}
	}
	step("Pulling " + image)
	hungry := func() time.Duration { return starved(vm.machine.Handle().PID) }
	if err := pullImage(ctx, vm.docker, reference.TagNameOnly(ref).String(), opts, hungry, step); err != nil {
		return pullError(ctx, image, host, err)
	}
	return nil
}

// openRegistry lets the guest reach a registry that is not on the public Internet with a certificate of its own.
func (a *Agent) openRegistry(ctx context.Context, vm *microVM, host string) error {
	listed := slices.Contains(a.PlainHTTPRegistries, host)
	if onLoopback(host) && !listed {
		return warmboot.Errorf(warmboot.Denied, "pull image", "registry %s is on this host's own loopback, which containers may not reach; allow it with `warmboot serve --plain-http-registry %s`", host, host)
	}
	if !listed {
		return nil
	}
	g, err := vm.reach(ctx)
	if err != nil {
		return err
	}
	return g.Registry(ctx, host, true)
}

// onLoopback reports whether a registry's host[:port] means the machine itself.
func onLoopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	ip := net.ParseIP(strings.Trim(name, "[]"))
	return name == "localhost" || strings.HasSuffix(name, ".localhost") || ip != nil && ip.IsLoopback()
}

// pullError tells a registry that refuses from a guest that does not answer.
func pullError(ctx context.Context, image, host string, err error) error {
	if ctx.Err() != nil {
		return err
	}
	text := err.Error()
	advice := "check its name and tag"
	switch {
	case strings.Contains(text, "unauthorized") || strings.Contains(text, "no basic auth credentials") || strings.Contains(text, "denied") || cerrdefs.IsUnauthorized(err):
		advice = "registry " + host + " did not accept the credentials, or wants some; give --username and --password-stdin"
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		advice = fmt.Sprintf("registry %s speaks HTTP without TLS; if you trust the network to it, allow it with `warmboot serve --plain-http-registry %s`", host, host)
	case strings.Contains(text, "connection refused") || strings.Contains(text, "no such host") || strings.Contains(text, "i/o timeout"):
		advice = "registry " + host + " cannot be reached from the microVM"
	case tooLate(err):
		advice = "registry " + host + " did not answer in time"
	case brokeOff(err):
		advice = "the connection to registry " + host + " breaks off again and again"
	case strings.Contains(text, "no space left"):
		advice = "the image does not fit on the container's disk, or the host's disk is full"
	}
	return &warmboot.Error{Code: warmboot.ImagePull, Op: "pull image " + image, Msg: advice, Err: brief{err}}
}

// dockerError keeps apart what the caller asked for wrongly and what went wrong by itself.
func dockerError(op string, err error) error {
	if err == nil {
		return nil
	}
	code := warmboot.Internal
	switch {
	case cerrdefs.IsInvalidArgument(err), strings.Contains(err.Error(), "executable file not found"), strings.Contains(err.Error(), "no such file or directory: unknown"):
		code = warmboot.Invalid
	case cerrdefs.IsNotFound(err):
		code = warmboot.NotFound
	case cerrdefs.IsConflict(err):
		code = warmboot.Conflict
	}
	return &warmboot.Error{Code: code, Op: op, Err: brief{err}}
}

// brief is an error in a guest's words.
type brief struct{ error }

func (b brief) Error() string { return guestrpc.Brief(b.error.Error()) }
func (b brief) Unwrap() error { return b.error }

// StopContainer lets the command end within grace, keeps its logs, shuts the machine down and keeps its disk. Idempotent; a
// container without a machine is stopped already. It returns the command's exit code, -1 if it is not known.
func (a *Agent) StopContainer(ctx context.Context, ref controlplane.ContainerRef, grace time.Duration) (int, error) {
	ctx, done, err := a.command(ctx, ref)
	if err != nil {
		return -1, err
	}
	defer done()
	c, err := a.find(ref.ID)
	if warmboot.CodeOf(err) == warmboot.NotFound {
		return -1, nil
	}
	vm, err := c.vm()
	if err != nil {
		return -1, nil // it has none any more
	}
	c.mu.Lock()
	vm.stopWatching()
	c.mu.Unlock()
	code := a.stopDocker(ctx, c, vm, grace)
	if err := c.endVM(); err != nil {
		return code, &warmboot.Error{Code: warmboot.Internal, Op: "stop container", Err: err}
	}
	return code, nil
}

// shutdownGrace is how long Docker and the guest have to end in good order once the command has ended.
const shutdownGrace = 20 * time.Second

// stopDocker ends the command and the guest as far as they can be reached. What fails is logged: the machine is ended in any case.
func (a *Agent) stopDocker(ctx context.Context, c *container, vm *microVM, grace time.Duration) int {
	ctx, cancel := context.WithTimeout(ctx, grace+2*shutdownGrace)
	defer cancel()
	ctx, stop := whileAlive(ctx, vm.machine)
	defer stop()
	log := a.Log.With("container_id", c.id)
	seconds := int(grace.Round(time.Second).Seconds())
	if _, err := vm.docker.ContainerStop(ctx, ociContainer, client.ContainerStopOptions{Timeout: &seconds}); err != nil && !cerrdefs.IsNotFound(err) {
		log.Warn("The container could not be stopped in good order", "err", brief{err})
	}
	code := -1
	if res, err := vm.docker.ContainerInspect(ctx, ociContainer, client.ContainerInspectOptions{}); err == nil && res.Container.State != nil && !res.Container.State.Running {
		code = res.Container.State.ExitCode
	}
	if err := saveLogs(ctx, vm.docker, c); err != nil {
		log.Warn("The container's logs could not be kept", "err", err)
	}
	g, err := vm.reach(ctx)
	if err == nil {
		err = g.Shutdown(ctx, shutdownGrace)
	}
	if err != nil && ctx.Err() == nil {
		log.Warn("The guest could not be shut down in good order", "err", err)
		return code
	}
	select {
	case <-vm.machine.Done():
	case <-ctx.Done():
	}
	return code
}
