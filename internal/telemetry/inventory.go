package telemetry

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"warmboot"
)

// scrapeLimit is how long a scrape waits for the store.
const scrapeLimit = 5 * time.Second

// Inventory tells what there is at the moment of a scrape. A controlplane.Service is the two lists' source.
type Inventory struct {
	Service interface {
		Containers(context.Context, warmboot.ContainerFilter) ([]*warmboot.Container, error)
		Snapshots(context.Context) ([]*warmboot.RuntimeSnapshot, error)
	}
	// Slots tells how many of the host's places for microVMs are taken; nil: that is not known here.
	Slots func() (used, total int)
	Log   *slog.Logger
}

// Watch adds what there is to the metrics. It is called once.
func (m *Metrics) Watch(i Inventory) error {
	if err := m.registry.Register(&inventory{i}); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "register metrics", Msg: "Watch may be called once", Err: err}
	}
	return nil
}

var (
	containersDesc = prometheus.NewDesc("warmboot_containers", "Containers, by state.", []string{"state"}, nil)
	snapshotsDesc  = prometheus.NewDesc("warmboot_snapshots", "Runtime snapshots, by state.", []string{"state"}, nil)
	vmsDesc        = prometheus.NewDesc("warmboot_vms_running", "MicroVMs of containers that are up.", nil, nil)
	slotsUsedDesc  = prometheus.NewDesc("warmboot_slots_used", "Places for microVMs that are taken, builds included.", nil, nil)
	slotsDesc      = prometheus.NewDesc("warmboot_slots", "Places for microVMs on this host.", nil, nil)
	storeUpDesc    = prometheus.NewDesc("warmboot_store_up", "Whether the store answered this scrape; if not, what it would tell is missing.", nil, nil)
)

// inventory is a prometheus.Collector.
type inventory struct{ Inventory }

// Describe implements prometheus.Collector.
func (i *inventory) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{containersDesc, snapshotsDesc, vmsDesc, slotsUsedDesc, slotsDesc, storeUpDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (i *inventory) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	if i.Slots != nil {
		used, total := i.Slots()
		gauge(slotsUsedDesc, used)
		gauge(slotsDesc, total)
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	containers, err := i.Service.Containers(ctx, warmboot.ContainerFilter{})
	var snapshots []*warmboot.RuntimeSnapshot
	if err == nil {
		snapshots, err = i.Service.Snapshots(ctx)
	}
	if err != nil {
		i.Log.Warn("The store did not answer a scrape of the metrics", "err", err)
		gauge(storeUpDesc, 0)
		return
	}
	gauge(storeUpDesc, 1)
	// States that nothing is in are told too: a gauge that vanishes cannot be told from a scrape that failed.
	byState, vms := map[warmboot.ContainerState]int{
		warmboot.ContainerCreating: 0, warmboot.ContainerRunning: 0, warmboot.ContainerStopping: 0, warmboot.ContainerStopped: 0,
		warmboot.ContainerStarting: 0, warmboot.ContainerFailed: 0, warmboot.ContainerDeleting: 0,
	}, 0
	for _, c := range containers {
		byState[c.State]++
		if c.VMID != "" {
			vms++
		}
	}
	for state, n := range byState {
		gauge(containersDesc, n, string(state))
	}
	gauge(vmsDesc, vms)
	snaps := map[warmboot.SnapshotState]int{warmboot.SnapshotCreating: 0, warmboot.SnapshotReady: 0, warmboot.SnapshotUnhealthy: 0, warmboot.SnapshotDeleted: 0}
	for _, s := range snapshots {
		snaps[s.State]++
	}
	for state, n := range snaps {
		gauge(snapshotsDesc, n, string(state))
	}
}
