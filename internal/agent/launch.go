package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/controlplane"
	"warmboot/internal/guestrpc"
	"warmboot/internal/hostnet"
	"warmboot/internal/rollback"
	"warmboot/internal/telemetry/span"
	"warmboot/internal/vmm"
)

// launch is a container's microVM on its way up. Whatever it takes, it puts on undo; end either hands that to the
// container or gives it all back.
type launch struct {
	a      *Agent
	c      *container
	fresh  bool // the container had nothing on this host before
	slot   *hostnet.Slot
	undo   rollback.Stack
	phases []warmboot.Phase
	timed  time.Time // where the latest phase ends and the next begins: there is no time between two; zero before the first
	vm     *microVM  // nil before its VMM runs

	hostname string
}

// launch takes a container's directory and a slot.
func (a *Agent) launch(ctx context.Context, m controlplane.MachineSpec) (*launch, error) {
	const op = "prepare microVM"
	l := &launch{a: a, hostname: m.Hostname}
	id := m.Container.ID
	if known, err := a.find(id); err == nil {
		if known.running() {
			return nil, warmboot.Errorf(warmboot.Conflict, op, "container %s has a microVM already", id)
		}
		l.c = known
	} else {
		l.c, l.fresh = &container{id: id, dir: a.containerDir(id), rec: record{ID: id}}, true
		if err := os.Mkdir(l.c.dir, 0o711); err != nil {
			return nil, ioError(op, err)
		}
		a.add(l.c)
	}
	if n := a.net.Used(); n >= a.MaxVMs { // several managers may have chosen this host at once
		return nil, l.end(warmboot.Errorf(warmboot.Exhausted, op, "this host has %d microVMs and takes no more than %d; stop some, or raise --max-vms", n, a.MaxVMs))
	}
	wants := networkOf(m.Spec)
	var err error
	if l.slot, err = a.net.Take(ctx, wants); err != nil {
		return nil, l.end(err)
	}
	l.undo.Push("free slot", l.slot.Release)
	if err := os.Mkdir(l.c.vmDir(), 0o700); err != nil {
		return nil, l.end(ioError(op, err))
	}
	l.undo.Push("remove VMM's directory", func() error { return os.RemoveAll(l.c.vmDir()) })
	if err := l.c.keep(func(r *record) {
		r.Slot, r.Network, r.Egress, r.Bandwidth = &l.slot.Number, &l.slot.Network, wants.Egress, wants.Bandwidth
		r.Generation, r.Container = m.Container.Generation, nil // not started yet
	}); err != nil {
		return nil, l.end(err)
	}
	return l, nil
}

// end finishes a launch. Without an error the container has its microVM; with one, everything is as it was before, and the error
// comes back.
func (l *launch) end(cause error) error {
	c := l.c
	if cause == nil {
		l.slot.Up()
		l.vm.undo = l.undo.Move()
		c.mu.Lock()
		c.live = l.vm
		c.mu.Unlock()
		return nil
	}
	err := l.undo.Unwind()
	if l.fresh {
		err = errors.Join(err, os.RemoveAll(c.dir))
		l.a.drop(c)
	} else {
		err = errors.Join(err, c.keep(func(r *record) { r.Slot, r.Network, r.Handle = nil, nil, nil }))
	}
	if err != nil {
		l.a.Log.Error("What a failed microVM had taken could not all be released", "container_id", c.id, "err", err)
	}
	return cause
}

// time runs a step and notes how long it took.
func (l *launch) time(ctx context.Context, name warmboot.PhaseName, step func(context.Context) error) error {
	start := time.Now()
	if !l.timed.IsZero() {
		start = l.timed
	}
	ctx, s := span.Start(ctx, "phase: "+string(name))
	err := step(ctx)
	s.End(err)
	l.timed = time.Now()
	l.phases = append(l.phases, warmboot.Phase{Name: name, Duration: l.timed.Sub(start)})
	return err
}

// start runs a driver's Create or Restore and keeps the machine's handle, so that the machine can be found again from then on. The driver itself
// tells how long its phases took. With the machine comes the context for what is waited for from its guest: it ends with the machine, or when
// that has had limit to boot. stop must be called then.
func (l *launch) start(ctx context.Context, limit time.Duration, boot func(context.Context) (vmm.Machine, error)) (guest context.Context, stop func(), err error) {
	begin := time.Now()
	guest = ctx
	ctx, s := span.Start(ctx, "start VMM", "vmm", l.a.Driver.Name())
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	m, err := boot(ctx)
	if err == nil {
		for _, p := range m.Timings() {
			s.Set("phase."+string(p.Name), p.Duration)
		}
	}
	if s.End(err); err != nil {
		return nil, nil, err
	}
	l.vm = newMicroVM(m, l.slot)
	l.undo.Push("stop machine", func() error { return stopMachine(m) })
	l.phases = append(l.phases, m.Timings()...)
	for _, p := range m.Timings() {
		l.timed = l.timed.Add(p.Duration)
	}
	h := m.Handle()
	if err := l.c.keep(func(r *record) { r.Handle = &h }); err != nil {
		return nil, nil, err
	}
	guest, stop = whileBooting(guest, m, begin, limit)
	return guest, stop, nil
}

// connect reaches the guest agent.
func (l *launch) connect(ctx context.Context) error {
	l.undo.Push("close guest channel", func() error { l.vm.hangUp(); return nil })
	_, err := l.vm.reach(ctx)
	return err
}

// reidentify gives the guest its identity. engineID is empty where Docker is to make its own. In a clone Docker is there already, and is asked with
// the same call.
func (l *launch) reidentify(ctx context.Context, engineID string, clone bool) error {
	if err := l.c.keep(func(r *record) { r.EngineID = engineID }); err != nil {
		return err
	}
	return l.vm.reidentify(ctx, l.slot.Network, machineIdentity(l.c.id, l.hostname, engineID), clone)
}

// shift makes the end of the latest phase a part of the next one. The guest has said how long that is.
func (l *launch) shift(d time.Duration) {
	latest := &l.phases[len(l.phases)-1]
	d = min(max(0, d), latest.Duration)
	latest.Duration -= d
	l.timed = l.timed.Add(-d)
}

// machineIdentity is what a container's guest is called. It follows from the container's random id, so it is the same again when the
// container boots again, and no other container has it.
func machineIdentity(id warmboot.ID, hostname, engineID string) *guestv1.Identity {
	hex := strings.ReplaceAll(string(id), "-", "")
	if hostname == "" {
		hostname = id.Short()
	}
	return &guestv1.Identity{
		Hostname:  hostname,
		MachineId: hex,
		EngineId:  engineID,
		// 02 marks an address that no manufacturer assigned (IEEE 802, locally administered unicast).
		Mac: "02:" + hex[0:2] + ":" + hex[2:4] + ":" + hex[4:6] + ":" + hex[6:8] + ":" + hex[8:10],
	}
}

// reidentify makes a guest a machine of its own on its network. The client compares what the guest reads back with what was asked. With
// pingDocker it also asks the guest's Docker whether it is there; it returns nil if not.
func reidentify(ctx context.Context, g *guestrpc.Client, n vmm.Network, id *guestv1.Identity, pingDocker bool) (docker *guestv1.WaitDockerResponse, err error) {
	id.Address = n.Guest().String()
	seed := make([]byte, 64)
	rand.Read(seed) // never fails: crypto/rand aborts the program instead
	resp, err := g.Reidentify(ctx, &guestv1.ReidentifyRequest{
		Identity: id, Gateway: n.Gateway().String(), Dns: n.DNS().String(), Seed: seed, PingDocker: pingDocker,
	})
	return resp.GetDocker(), err
}

// errVMDied is the cause of a context that whileAlive ended.
var errVMDied = errors.New("the VMM's process ended")

// whileAlive derives a context that ends with the machine: nobody waits for the guest of a VMM that is gone.
func whileAlive(ctx context.Context, m vmm.Machine) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := make(chan struct{})
	go func() {
		select {
		case <-m.Done():
			cancel(errVMDied)
		case <-ctx.Done():
		case <-stop:
		}
	}()
	return ctx, func() { close(stop); cancel(nil) }
}

// whileBooting is whileAlive with patience.
func whileBooting(ctx context.Context, m vmm.Machine, begin time.Time, limit time.Duration) (context.Context, context.CancelFunc) {
	ctx, impatient := patience(ctx, m.Handle().PID, begin, 0, limit)
	ctx, dead := whileAlive(ctx, m)
	return ctx, func() { dead(); impatient() }
}

// died tells whether what failed did so because its machine has ended. A connection to the guest breaks off before the process is gone.
func died(ctx context.Context, m vmm.Machine) bool {
	if ctx.Err() == nil {
		select {
		case <-m.Done():
			return true
		case <-time.After(deathThroes):
		}
	}
	return errors.Is(context.Cause(ctx), errVMDied)
}

// deathThroes is how long a VMM's process may take to be gone after its guest's connections.
const deathThroes = 200 * time.Millisecond

// crash finds the lines with which a Linux kernel says why it cannot go on. Those around them are registers and code.
var crash = regexp.MustCompile(`BUG: |kernel BUG at|Oops: |Oops - |general protection fault|stack segment|double fault|RIP: |Kernel panic|VFS: Unable|Out of memory`)

// How much of a console stands in an error.
const (
	consoleLines = 3   // how it ends
	crashLines   = 5   // or these, if its kernel has crashed
	consoleWidth = 160 // bytes of a line
)

// lastWords is what the guest's console tells of its end, to stand at the end of a message; empty if nothing is known of it.
func lastWords(m vmm.Machine) string {
	k, ok := m.(vmm.ConsoleKeeper)
	if !ok {
		return ""
	}
	lines := strings.FieldsFunc(k.Console(), func(r rune) bool { return r == '\n' || r == '\r' })
	if len(lines) == 0 {
		return ""
	}
	var why []string
	for _, line := range lines {
		if len(why) < crashLines && crash.MatchString(line) {
			why = append(why, line)
		}
	}
	if why == nil {
		why = lines[max(0, len(lines)-consoleLines):]
	}
	for i, line := range why {
		why[i] = line[:min(len(line), consoleWidth)]
	}
	return fmt.Sprintf("; the guest's console says %q", strings.Join(why, "\n"))
}

// bootError tells what the end of a boot's context means, and what the guest's kernel said last; otherwise it passes err on.
func bootError(ctx context.Context, m vmm.Machine, op string, limit time.Duration, err error) error {
	if err == nil {
		return nil
	}
	said := lastWords(m)
	switch {
	case died(ctx, m):
		return warmboot.Errorf(warmboot.Unavailable, op, "the VMM's process ended before the machine was ready%s", said)
	case errors.Is(context.Cause(ctx), context.DeadlineExceeded), warmboot.CodeOf(err) == warmboot.Timeout: // the guest may be the first whose time is over
		after := limit.String()
		if s := starved(m.Handle().PID).Round(time.Second); s > 0 {
			after += fmt.Sprintf(", and %s in which the host had no processor for it", s)
		}
		return warmboot.Errorf(warmboot.Timeout, op, "Docker had not answered after %s (%w)%s", after, err, said)
	}
	return err
}

// restoredError is bootError for a restored machine. What its guest says is no word on what this host has, or on what was asked for: the snapshot does not work.
func restoredError(ctx context.Context, m vmm.Machine, op string, limit time.Duration, err error) error {
	err = bootError(ctx, m, op, limit, err)
	if code := warmboot.CodeOf(err); code == warmboot.Conflict || code == warmboot.Invalid || code == warmboot.Exhausted {
		return warmboot.Errorf(warmboot.Internal, op, "the guest did not get ready: %w", err)
	}
	return err
}

// stopMachine ends a machine at once. It does not depend on the context of what failed.
func stopMachine(m vmm.Machine) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return m.Stop(ctx, 0)
}
