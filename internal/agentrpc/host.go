package agentrpc

import (
	"context"
	"net/http"
	"time"

	"warmboot"
	"warmboot/internal/controlplane"
)

// The calls that a manager makes to a host.
const hostService = "/warmboot.agent.v1.Host/"

type imageCall struct {
	Image warmboot.Image      `json:"image"`
	Peers []controlplane.Peer `json:"peers,omitempty"`
}

type snapshotCall struct {
	Snapshot warmboot.RuntimeSnapshot `json:"snapshot"`
	Image    warmboot.Image           `json:"image,omitzero"`
	Peers    []controlplane.Peer      `json:"peers,omitempty"`
}

type bootCall struct {
	Machine  controlplane.MachineSpec `json:"machine"`
	Snapshot warmboot.RuntimeSnapshot `json:"snapshot,omitzero"`
}

type startCall struct {
	Container warmboot.Container         `json:"container"`
	Auth      *controlplane.RegistryAuth `json:"auth,omitempty"`
}

type containerCall struct {
	Ref   controlplane.ContainerRef `json:"ref"`
	Grace time.Duration             `json:"grace_ns,omitempty"`
}

type exitCode struct {
	Code int `json:"code"`
}

type list[T any] struct {
	Items []T `json:"items"`
}

// HostHandler lets managers command a host.
func HostHandler(h controlplane.Host) http.Handler {
	mux := http.NewServeMux()
	handle(mux, hostService+"Inventory", func(ctx context.Context, _ *empty) (*warmboot.HostInventory, error) {
		inv, err := h.Inventory(ctx)
		return &inv, err
	})
	handle(mux, hostService+"InspectImage", func(ctx context.Context, r *imageCall) (*warmboot.Image, error) {
		img, err := h.InspectImage(ctx, r.Image)
		return &img, err
	})
	handle(mux, hostService+"FetchImage", func(ctx context.Context, r *imageCall) (*empty, error) {
		return &empty{}, h.FetchImage(ctx, r.Image, r.Peers)
	})
	handle(mux, hostService+"ReservePorts", func(ctx context.Context, r *list[warmboot.PortMapping]) (*list[warmboot.PortMapping], error) {
		ports, err := h.ReservePorts(ctx, r.Items)
		return &list[warmboot.PortMapping]{ports}, err
	})
	handleSteps(mux, hostService+"BuildSnapshot", func(ctx context.Context, r *snapshotCall, step func(string)) (*controlplane.Built, error) {
		built, err := h.BuildSnapshot(ctx, r.Snapshot, r.Image, step)
		return &built, err
	})
	handle(mux, hostService+"FetchSnapshot", func(ctx context.Context, r *snapshotCall) (*empty, error) {
		return &empty{}, h.FetchSnapshot(ctx, r.Snapshot, r.Image, r.Peers)
	})
	handle(mux, hostService+"RemoveSnapshot", func(ctx context.Context, r *snapshotCall) (*empty, error) {
		return &empty{}, h.RemoveSnapshot(ctx, r.Snapshot)
	})
	handle(mux, hostService+"ScrubSnapshot", func(ctx context.Context, r *snapshotCall) (*empty, error) {
		return &empty{}, h.ScrubSnapshot(ctx, r.Snapshot)
	})
	handle(mux, hostService+"WarmBoot", func(ctx context.Context, r *bootCall) (*controlplane.Booted, error) {
		booted, err := h.WarmBoot(ctx, r.Machine, r.Snapshot)
		return &booted, err
	})
	handle(mux, hostService+"ColdBoot", func(ctx context.Context, r *bootCall) (*controlplane.Booted, error) {
		booted, err := h.ColdBoot(ctx, r.Machine)
		return &booted, err
	})
	handleSteps(mux, hostService+"StartContainer", func(ctx context.Context, r *startCall, step func(string)) (*list[warmboot.Phase], error) {
		phases, err := h.StartContainer(ctx, r.Container, r.Auth, step)
		return &list[warmboot.Phase]{phases}, err
	})
	handle(mux, hostService+"StopContainer", func(ctx context.Context, r *containerCall) (*exitCode, error) {
		code, err := h.StopContainer(ctx, r.Ref, r.Grace)
		return &exitCode{code}, err
	})
	handle(mux, hostService+"RemoveContainer", func(ctx context.Context, r *containerCall) (*empty, error) {
		return &empty{}, h.RemoveContainer(ctx, r.Ref)
	})
	handle(mux, hostService+"Containers", func(ctx context.Context, _ *empty) (*list[controlplane.HostContainer], error) {
		all, err := h.Containers(ctx)
		return &list[controlplane.HostContainer]{all}, err
	})
	handle(mux, hostService+"Garbage", func(ctx context.Context, _ *empty) (*list[controlplane.Garbage], error) {
		all, err := h.Garbage(ctx)
		return &list[controlplane.Garbage]{all}, err
	})
	handle(mux, hostService+"ImageFiles", func(ctx context.Context, r *list[*warmboot.Image]) (*map[string]bool, error) {
		used, err := h.ImageFiles(ctx, r.Items)
		return &used, err
	})
	handle(mux, hostService+"Discard", func(ctx context.Context, r *controlplane.Garbage) (*empty, error) {
		return &empty{}, h.Discard(ctx, *r)
	})
	logHandler(mux, h)
	execHandler(mux, h)
	return mux
}

// host is a controlplane.Host at the other end of a connection.
type host struct{ remote }

var _ controlplane.Host = host{}

func (h host) Inventory(ctx context.Context) (warmboot.HostInventory, error) {
	return value(call[empty, warmboot.HostInventory](ctx, h.remote, hostService+"Inventory", &empty{}))
}

func (h host) InspectImage(ctx context.Context, img warmboot.Image) (warmboot.Image, error) {
	return value(call[imageCall, warmboot.Image](ctx, h.remote, hostService+"InspectImage", &imageCall{Image: img}))
}

func (h host) FetchImage(ctx context.Context, img warmboot.Image, peers []controlplane.Peer) error {
	_, err := call[imageCall, empty](ctx, h.remote, hostService+"FetchImage", &imageCall{img, peers})
	return err
}

func (h host) ReservePorts(ctx context.Context, ports []warmboot.PortMapping) ([]warmboot.PortMapping, error) {
	res, err := value(call[list[warmboot.PortMapping], list[warmboot.PortMapping]](ctx, h.remote, hostService+"ReservePorts", &list[warmboot.PortMapping]{ports}))
	return res.Items, err
}

func (h host) BuildSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, step func(string)) (controlplane.Built, error) {
	return value(callSteps[snapshotCall, controlplane.Built](ctx, h.remote, hostService+"BuildSnapshot", &snapshotCall{Snapshot: snap, Image: img}, step))
}

func (h host) FetchSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot, img warmboot.Image, peers []controlplane.Peer) error {
	_, err := call[snapshotCall, empty](ctx, h.remote, hostService+"FetchSnapshot", &snapshotCall{snap, img, peers})
	return err
}

func (h host) RemoveSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) error {
	_, err := call[snapshotCall, empty](ctx, h.remote, hostService+"RemoveSnapshot", &snapshotCall{Snapshot: snap})
	return err
}

func (h host) ScrubSnapshot(ctx context.Context, snap warmboot.RuntimeSnapshot) error {
	_, err := call[snapshotCall, empty](ctx, h.remote, hostService+"ScrubSnapshot", &snapshotCall{Snapshot: snap})
	return err
}

func (h host) WarmBoot(ctx context.Context, m controlplane.MachineSpec, snap warmboot.RuntimeSnapshot) (controlplane.Booted, error) {
	return value(call[bootCall, controlplane.Booted](ctx, h.remote, hostService+"WarmBoot", &bootCall{m, snap}))
}

func (h host) ColdBoot(ctx context.Context, m controlplane.MachineSpec) (controlplane.Booted, error) {
	return value(call[bootCall, controlplane.Booted](ctx, h.remote, hostService+"ColdBoot", &bootCall{Machine: m}))
}

func (h host) StartContainer(ctx context.Context, c warmboot.Container, auth *controlplane.RegistryAuth, step func(string)) ([]warmboot.Phase, error) {
	res, err := value(callSteps[startCall, list[warmboot.Phase]](ctx, h.remote, hostService+"StartContainer", &startCall{c, auth}, step))
	return res.Items, err
}

func (h host) StopContainer(ctx context.Context, ref controlplane.ContainerRef, grace time.Duration) (int, error) {
	res, err := call[containerCall, exitCode](ctx, h.remote, hostService+"StopContainer", &containerCall{ref, grace})
	if err != nil {
		return -1, err
	}
	return res.Code, nil
}

func (h host) RemoveContainer(ctx context.Context, ref controlplane.ContainerRef) error {
	_, err := call[containerCall, empty](ctx, h.remote, hostService+"RemoveContainer", &containerCall{Ref: ref})
	return err
}

func (h host) Containers(ctx context.Context) ([]controlplane.HostContainer, error) {
	res, err := value(call[empty, list[controlplane.HostContainer]](ctx, h.remote, hostService+"Containers", &empty{}))
	return res.Items, err
}

func (h host) Garbage(ctx context.Context) ([]controlplane.Garbage, error) {
	res, err := value(call[empty, list[controlplane.Garbage]](ctx, h.remote, hostService+"Garbage", &empty{}))
	return res.Items, err
}

func (h host) ImageFiles(ctx context.Context, images []*warmboot.Image) (map[string]bool, error) {
	return value(call[list[*warmboot.Image], map[string]bool](ctx, h.remote, hostService+"ImageFiles", &list[*warmboot.Image]{images}))
}

func (h host) Discard(ctx context.Context, g controlplane.Garbage) error {
	_, err := call[controlplane.Garbage, empty](ctx, h.remote, hostService+"Discard", &g)
	return err
}

// value is what an answer points to.
func value[T any](v *T, err error) (T, error) {
	if v == nil {
		var zero T
		return zero, err
	}
	return *v, err
}
