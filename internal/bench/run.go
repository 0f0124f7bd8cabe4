package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/access"
	"warmboot/internal/localregistry"
	"warmboot/internal/rollback"
	"warmboot/internal/snapshot"
)

// Setup is what Run measures with.
type Setup struct {
	Binary  string            // of warmboot: the server under test is a process of its own
	Version string            // of it
	Image   api.RegisterImage // the runtime image
	Roots   []string          // the directories that its files lie in
	// Progress is told what is being measured and which part of all is done, from 0 to 1.
	Progress func(step string, fraction float64)
}

// ownerBase is where the user ids of the benchmark's VMMs begin, apart from those of any server beside it.
const ownerBase = 1_940_000_000

// Run measures. It starts a server of its own in an empty storage root, builds a snapshot there, and removes everything when
// it is done; another server may run beside it but must be idle.
func Run(ctx context.Context, o Options, setup Setup) (_ Result, err error) {
	var undo rollback.Stack
	defer func() { err = errors.Join(err, undo.Unwind()) }()
	r := &runner{Options: o, Setup: setup, undo: &undo, steps: 2 + o.Cold + o.Runs}
	if o.Concurrent > 0 {
		r.steps++
	}
	if err := r.prepare(ctx); err != nil {
		return Result{}, err
	}
	if err := r.measure(ctx); err != nil {
		return Result{}, err
	}
	return r.result, nil
}

type runner struct {
	Options
	Setup
	undo   *rollback.Stack
	root   string
	server *exec.Cmd
	api    *client.Client
	art    *snapshot.Artifact
	result Result

	steps, done int
	binary      string           // of the VMM, as the server has said
	handArgs    []string         // see handCommand
	hand        *handFirecracker // see firecrackerByHand
}

// step reports that one of the steps begins.
func (r *runner) step(format string, args ...any) {
	r.Progress(fmt.Sprintf(format, args...), float64(r.done)/float64(r.steps))
	r.done++
}

// prepare gets a server, a registry and a snapshot.
func (r *runner) prepare(ctx context.Context) error {
	const op = "prepare benchmark"
	fail := func(err error) error { return &warmboot.Error{Code: warmboot.CodeOf(err), Op: op, Err: err} }
	r.step("starting a server")
	var err error
	if r.root, err = os.MkdirTemp("/var/tmp", "warmboot-bench-"); err != nil {
		return fail(err)
	}
	r.undo.Push("remove storage root", func() error { return os.RemoveAll(r.root) })
	if err := os.Chmod(r.root, 0o711); err != nil {
		return fail(err)
	}
	var flags []string
	if r.Options.Image == "" {
		registry, err := localregistry.Serve(ctx, localregistry.Config{})
		if err != nil {
			return err
		}
		r.undo.Push("close registry", registry.Close)
		r.Options.Image = registry.Image
		flags = append(flags, "--plain-http-registry", registry.Host)
	}
	for _, dir := range r.Roots {
		flags = append(flags, "--image-root", dir)
	}
	if err := r.serve(ctx, flags); err != nil {
		return err
	}
	img, err := r.api.RegisterImage(ctx, r.Setup.Image)
	if err != nil {
		return err
	}
	r.step("building a snapshot")
	id, err := r.api.CreateSnapshot(ctx, img.ID)
	if err != nil {
		return err
	}
	snap, err := r.awaitSnapshot(ctx, id)
	if err != nil {
		return err
	}
	if r.art, err = snapshot.Open(snap.SnapshotPath); err != nil {
		return err
	}
	v, err := r.api.Version(ctx)
	if err != nil {
		return err
	}
	r.result.Date, r.result.Image, r.result.SnapshotPause = time.Now().UTC(), r.Options.Image, snap.Metadata.PauseSeconds
	if r.result.Machine, err = describeMachine(v.VMM, r.art.Metadata.Fingerprint.Accelerator, r.Version); err != nil {
		return err
	}
	fp := r.art.Metadata.Fingerprint
	r.result.Machine.VMMDigest, r.result.Machine.SnapshotFormat, r.result.Machine.ImageDigest, r.result.Machine.Network = fp.BinaryDigest, fp.SnapshotVersion, fp.ImageDigest, fp.Network
	return nil
}

// serve starts `warmboot serve` and waits until it says that it serves.
func (r *runner) serve(ctx context.Context, flags []string) error {
	const op = "start server"
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	r.server = exec.Command(r.Binary, append([]string{"serve", "--listen", addr, "--storage-root", r.root}, flags...)...)
	r.server.Env = append(os.Environ(), fmt.Sprintf("WARMBOOT_UID_BASE=%d", ownerBase), "MANAGER_API_TOKEN=", "CONTAINER_RUNTIME_KERNEL=", "CONTAINER_RUNTIME_ROOTFS=",
		"DATABASE_URL=", "MANAGER_AUTO_SNAPSHOT=false", "MANAGER_AUTH=", "MANAGER_TLS=", "MANAGER_TLS_CERT=", "MANAGER_TLS_KEY=", "MANAGER_RATE_LIMIT=")
	r.server.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is ours to act on
	log, err := r.server.StderrPipe()
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	if err := r.server.Start(); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	serving := make(chan bool, 1)
	ended := make(chan struct{})
	var last string
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			last = lines.Text()
			if _, path, ok := strings.Cut(last, " binary="); ok && strings.Contains(last, "MicroVMs run under") {
				r.binary = path
			}
			if strings.Contains(last, " serves http://") {
				serving <- true
			}
		}
		_, _ = io.Copy(io.Discard, log) // a line too long for the scanner must not block the server
	}()
	r.undo.Push("end server", func() error {
		err := r.server.Process.Signal(syscall.SIGTERM)
		<-ended
		_ = r.server.Wait() // how it ends does not matter any more
		return err
	})
	select {
	case <-serving:
	case <-ended:
		return warmboot.Errorf(warmboot.Internal, op, "it ended: %s", last)
	case <-ctx.Done():
		return ctx.Err()
	}
	token, _, err := access.ReadLocal(r.root)
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: op, Err: err}
	}
	r.api, err = client.New(client.Config{Addr: "http://" + addr, Token: token})
	return err
}

// awaitSnapshot polls, as every user of the API must: its state has no long poll.
func (r *runner) awaitSnapshot(ctx context.Context, id string) (api.Snapshot, error) {
	for {
		snap, err := r.api.Snapshot(ctx, id)
		switch {
		case err != nil:
			return api.Snapshot{}, err
		case snap.State == string(warmboot.SnapshotReady):
			return snap, nil
		case snap.State != string(warmboot.SnapshotCreating):
			return api.Snapshot{}, warmboot.Errorf(warmboot.Internal, "build snapshot", "%s", snap.Metadata.Error)
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return api.Snapshot{}, ctx.Err()
		}
	}
}

// rest is how long the machine is left alone before a sample. The server clears away the one before once nobody has wanted anything for a
// moment, which is not to fall into the next one's time, ours or the floor's.
const rest = time.Second

// measure takes all samples. Floor restores take turns with the warm boots, so that whatever else the machine does meets both.
func (r *runner) measure(ctx context.Context) error {
	sample := func(take func() (Sample, error), to *[]Sample) error {
		select {
		case <-time.After(rest):
		case <-ctx.Done():
			return ctx.Err()
		}
		s, err := take()
		if err == nil {
			*to = append(*to, s)
		}
		return err
	}
	for i := range r.Cold {
		r.step("cold boot %d of %d", i+1, r.Cold)
		if err := sample(func() (Sample, error) { return r.boot(ctx, true) }, &r.result.Cold); err != nil {
			return err
		}
	}
	for i := range r.Runs {
		r.step("warm boot %d of %d", i+1, r.Runs)
		if err := sample(func() (Sample, error) { return r.boot(ctx, false) }, &r.result.Warm); err != nil {
			return err
		}
		if d, ok := r.result.Warm[i].Phase(warmboot.PhaseDisk); ok {
			r.result.CloneDisk = append(r.result.CloneDisk, d)
		}
		if !r.Floor {
			continue
		}
		if err := sample(func() (Sample, error) { return r.floor(ctx) }, &r.result.Floor); err != nil {
			return err
		}
	}
	if r.Concurrent > 0 {
		r.step("%d warm boots at once", r.Concurrent)
		if err := r.concurrent(ctx); err != nil {
			return err
		}
	}
	var err error
	r.result.ServeRSS, err = residentBytes(r.server.Process.Pid)
	return err
}

// boot creates a container, measures until it runs, and removes it.
func (r *runner) boot(ctx context.Context, cold bool) (Sample, error) {
	s, c, err := r.create(ctx, cold)
	if err != nil {
		return Sample{}, err
	}
	if got := *c.BootMethod == string(warmboot.BootCold); got != cold {
		return Sample{}, warmboot.Errorf(warmboot.Internal, "boot container", "it was to boot warm and did not: %s", c.BootReason)
	}
	if r.BootOnly {
		return s, r.api.DeleteContainer(ctx, c.ID, true)
	}
	start := time.Now().Add(-time.Duration(s.Ready * float64(time.Second)))
	if c, err = r.api.WaitContainer(ctx, c.ID, "started"); err != nil {
		return Sample{}, err
	}
	s.Running, s.Phases = time.Since(start).Seconds(), c.Phases
	if c.State != string(warmboot.ContainerRunning) {
		return Sample{}, warmboot.Errorf(warmboot.Internal, "run container", "it is %s: %s", c.State, c.Error)
	}
	return s, r.api.DeleteContainer(ctx, c.ID, true)
}

// create asks for a container and waits until its Docker has answered.
func (r *runner) create(ctx context.Context, cold bool) (Sample, api.Container, error) {
	start := time.Now()
	c, err := r.api.CreateContainerAndWait(ctx, api.CreateContainer{Image: r.Options.Image, Args: []string{"sleep", "100000"}, ColdBoot: cold}, "booted")
	if err != nil {
		return Sample{}, api.Container{}, err
	}
	if c.BootMethod == nil {
		return Sample{}, api.Container{}, warmboot.Errorf(warmboot.Internal, "boot container", "it is %s: %s", c.State, c.Error)
	}
	return Sample{Ready: time.Since(start).Seconds(), Phases: c.Phases}, c, nil
}

// concurrent creates many containers at once.
func (r *runner) concurrent(ctx context.Context) error {
	c := &Concurrent{Count: r.Concurrent, Samples: make([]Sample, r.Concurrent)}
	ids, errs := make([]string, r.Concurrent), make([]error, r.Concurrent)
	methods := make([]string, r.Concurrent)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range r.Concurrent {
		wg.Go(func() {
			s, got, err := r.create(ctx, false)
			if errs[i] = err; err == nil {
				c.Samples[i], ids[i], methods[i] = s, got.ID, *got.BootMethod
			}
		})
	}
	wg.Wait()
	c.AllReady = time.Since(start).Seconds()
	for i, id := range ids {
		if methods[i] == string(warmboot.BootCold) {
			c.Cold++
		}
		if id != "" {
			errs = append(errs, r.api.DeleteContainer(ctx, id, true))
		}
	}
	r.result.Concurrent = c
	return errors.Join(errs...)
}

// describeMachine says where the benchmark ran.
func describeMachine(vmm, accelerator, version string) (Machine, error) {
	m := Machine{Cores: runtime.NumCPU(), VMM: vmm, Accelerator: accelerator, GoVersion: runtime.Version(), Warmboot: version}
	var err error
	if m.CPU, err = procField("/proc/cpuinfo", "model name"); err != nil {
		return Machine{}, err
	}
	total, err := procField("/proc/meminfo", "MemTotal")
	if err != nil {
		return Machine{}, err
	}
	if _, err := fmt.Sscan(total, &m.MemoryBytes); err != nil {
		return Machine{}, err
	}
	m.MemoryBytes <<= 10 // it is given in KiB
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	m.Kernel = strings.TrimSpace(string(release))
	return m, err
}

// residentBytes is a process's resident memory.
func residentBytes(pid int) (int64, error) {
	text, err := procField(fmt.Sprintf("/proc/%d/status", pid), "VmRSS")
	if err != nil {
		return 0, err
	}
	var kib int64
	_, err = fmt.Sscan(text, &kib)
	return kib << 10, err
}

// procField is the value of the first line "name: value" of a file below /proc.
func procField(path, name string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s has no field %q", path, name)
}
