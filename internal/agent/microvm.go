package agent

import (
	"context"
	"net"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
	"warmboot/internal/guestrpc"
	"warmboot/internal/hostnet"
	"warmboot/internal/rollback"
	"warmboot/internal/vmm"
)

// microVM is a running machine whose Docker has answered.
type microVM struct {
	machine vmm.Machine
	slot    *hostnet.Slot
	docker  *dockerClient   // speaks through whatever connection there is to the guest
	undo    *rollback.Stack // ends the machine and gives back what it took; its disk stays
	unwatch func()          // ends the wait for the command's end; nil before the command is started

	life    context.Context // over once nobody may connect any more
	endLife context.CancelFunc
	busy    chan struct{}    // holds a value while somebody uses guest
	guest   *guestrpc.Client // nil before the first connection

	pinged *guestv1.WaitDockerResponse // that Docker has answered since the machine was restored, for awaitDocker
}

func newMicroVM(m vmm.Machine, slot *hostnet.Slot) *microVM {
	vm := &microVM{machine: m, slot: slot, busy: make(chan struct{}, 1)}
	vm.life, vm.endLife = context.WithCancel(context.Background())
	return vm
}

// reconnectTimeout is how long a guest agent that was lost may take to be back. The guest's init starts it again.
const reconnectTimeout = 30 * time.Second

// reach returns a connection to the guest: the one that there is, or a new one if the guest agent ended it. That happens where the agent
// is a service under the guest's own init, which starts it again when it dies; the container and its Docker do not notice.
func (vm *microVM) reach(ctx context.Context) (*guestrpc.Client, error) {
	const op = "reach microVM"
	select {
	case vm.busy <- struct{}{}:
		defer func() { <-vm.busy }()
	case <-ctx.Done():
		return nil, &warmboot.Error{Code: warmboot.CodeOf(ctx.Err()), Op: op, Err: ctx.Err()}
	}
	if vm.life.Err() != nil {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "the microVM is being ended")
	}
	if vm.guest != nil {
		select {
		case <-vm.guest.Done():
		default:
			return vm.guest, nil
		}
	}
	limit := DefaultBootTimeout
	if vm.guest != nil {
		limit = reconnectTimeout
	} else if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline) // whoever waits for a boot knows how long
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(vm.life, cancel)()
	ctx, stop := whileAlive(ctx, vm.machine)
	defer stop()
	g, err := guestrpc.Connect(ctx, vm.machine.DialGuest)
	if err != nil {
		return nil, err
	}
	vm.guest = g
	return g, nil
}

// reidentify makes the guest a machine of its own. It asks again if the connection is lost meanwhile, as the first to a restored guest may be (see
// vmm.Machine); for the guest it is the same to be asked twice.
func (vm *microVM) reidentify(ctx context.Context, n vmm.Network, id *guestv1.Identity, pingDocker bool) error {
	for again := false; ; again = true {
		g, err := vm.reach(ctx)
		if err != nil {
			return err
		}
		vm.pinged, err = reidentify(ctx, g, n, id, pingDocker)
		if err == nil || again {
			return err
		}
		select {
		case <-g.Done():
		default:
			return err
		}
	}
}

// awaitDocker waits until the guest's Docker answers, and speaks the version of its API from then on.
func (vm *microVM) awaitDocker(ctx context.Context) error {
	timeout := DefaultBootTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = time.Until(deadline)
	}
	res := vm.pinged
	if vm.pinged = nil; res == nil {
		g, err := vm.reach(ctx)
		if err != nil {
			return err
		}
		if res, err = g.WaitDocker(ctx, timeout); err != nil {
			return err
		}
	}
	if vm.docker != nil {
		return nil
	}
	var err error
	vm.docker, err = newDockerClient(func(ctx context.Context) (net.Conn, error) {
		g, err := vm.reach(ctx)
		if err != nil {
			return nil, err
		}
		return g.DialDocker(ctx)
	}, res.GetApiVersion())
	if err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "speak to Docker", Msg: guestrpc.Brief(err.Error())}
	}
	return nil
}

// hangUp closes the connections to the guest for good. The machine goes on.
func (vm *microVM) hangUp() {
	vm.endLife()
	vm.busy <- struct{}{}
	defer func() { <-vm.busy }()
	if vm.docker != nil {
		vm.docker.Close()
	}
	if vm.guest != nil {
		vm.guest.Close()
	}
}
