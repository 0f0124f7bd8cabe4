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

// Inventory tells what there is at the moment of a scrape.
type Inventory struct {
	// Service is a controlplane.Service.
	Service interface {
		Counts(context.Context) (*warmboot.Counts, error)
		Hosts(ctx context.Context, after string, limit int) ([]*warmboot.Host, error)
	}
	// Slots tells how many of the host's places for microVMs are taken; nil: that is not known here.
	Slots func() (used, total int)
	// Jobs counts what the job queue has still to do, by state; nil: there is no queue.
	Jobs func(context.Context) (map[string]int, error)
	Log  *slog.Logger
}

// Watch adds what there is to the metrics. It is called once.
func (m *Metrics) Watch(i Inventory) error {
	if err := m.registry.Register(&inventory{i}); err != nil {
		return &warmboot.Error{Code: warmboot.Internal, Op: "register metrics", Msg: "Watch may be called once", Err: err}
	}
	return nil
}

// What is in the store is told alike by every manager that shares it. The names of hosts are given by whoever lets them join, and so may be
// labels.
var (
	containersDesc = prometheus.NewDesc("warmboot_containers", "Containers, by state.", []string{"state"}, nil)
	snapshotsDesc  = prometheus.NewDesc("warmboot_snapshots", "Runtime snapshots, by state.", []string{"state"}, nil)
	vmsDesc        = prometheus.NewDesc("warmboot_vms_running", "MicroVMs of containers that are up.", nil, nil)
	managersDesc   = prometheus.NewDesc("warmboot_managers", "Managers that share the store and live.", nil, nil)
	hostsDesc      = prometheus.NewDesc("warmboot_hosts", "Hosts, by state.", []string{"state"}, nil)
	cordonedDesc   = prometheus.NewDesc("warmboot_hosts_cordoned", "Hosts that get no new containers and builds.", nil, nil)
	lastSeenDesc   = prometheus.NewDesc("warmboot_host_last_seen_age_seconds", "How long ago a host gave its last sign of life.", []string{"host"}, nil)
	hostVMsDesc    = prometheus.NewDesc("warmboot_host_vms", "MicroVMs on a host, builds included, as it told last.", []string{"host"}, nil)
	hostMaxDesc    = prometheus.NewDesc("warmboot_host_vms_max", "How many microVMs a host takes.", []string{"host"}, nil)
	jobsDesc       = prometheus.NewDesc("warmboot_jobs", "Jobs that wait or run, by state.", []string{"state"}, nil)
	slotsUsedDesc  = prometheus.NewDesc("warmboot_slots_used", "Places for microVMs that are taken, builds included.", nil, nil)
	slotsDesc      = prometheus.NewDesc("warmboot_slots", "Places for microVMs on this host.", nil, nil)
	storeUpDesc    = prometheus.NewDesc("warmboot_store_up", "Whether the store answered this scrape; if not, what it would tell is missing.", nil, nil)
)

// inventory is a prometheus.Collector.
type inventory struct{ Inventory }

// Describe implements prometheus.Collector.
func (i *inventory) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		containersDesc, snapshotsDesc, vmsDesc, managersDesc, hostsDesc, cordonedDesc, lastSeenDesc, hostVMsDesc, hostMaxDesc, jobsDesc, slotsUsedDesc, slotsDesc, storeUpDesc,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (i *inventory) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if i.Slots != nil {
		used, total := i.Slots()
		gauge(slotsUsedDesc, float64(used))
		gauge(slotsDesc, float64(total))
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapeLimit)
	defer cancel()
	counts, err := i.Service.Counts(ctx)
	var hosts []*warmboot.Host
	if err == nil {
		hosts, err = i.Service.Hosts(ctx, "", 0)
	}
	var jobs map[string]int
	if err == nil && i.Jobs != nil {
		jobs, err = i.Jobs(ctx)
	}
	if err != nil {
		i.Log.Warn("The store did not answer a scrape of the metrics", "err", err)
		gauge(storeUpDesc, 0)
		return
	}
	gauge(storeUpDesc, 1)
	// States that nothing is in are told too: a gauge that vanishes cannot be told from a scrape that failed.
	for _, state := range []warmboot.ContainerState{
		warmboot.ContainerCreating, warmboot.ContainerRunning, warmboot.ContainerStopping, warmboot.ContainerStopped,
		warmboot.ContainerStarting, warmboot.ContainerFailed, warmboot.ContainerDeleting,
	} {
		gauge(containersDesc, float64(counts.Containers[state]), string(state))
	}
	for _, state := range []warmboot.SnapshotState{warmboot.SnapshotCreating, warmboot.SnapshotReady, warmboot.SnapshotUnhealthy, warmboot.SnapshotDeleted} {
		gauge(snapshotsDesc, float64(counts.Snapshots[state]), string(state))
	}
	gauge(vmsDesc, float64(counts.VMs))
	gauge(managersDesc, float64(counts.Managers))
	for state, n := range jobs {
		gauge(jobsDesc, float64(n), state)
	}
	i.hosts(gauge, hosts)
}

func (i *inventory) hosts(gauge func(*prometheus.Desc, float64, ...string), all []*warmboot.Host) {
	states, cordoned := map[warmboot.HostState]int{warmboot.HostUp: 0, warmboot.HostDown: 0}, 0
	for _, h := range all {
		states[h.State]++
		if h.Cordoned {
			cordoned++
		}
		if h.LastSeenAt != nil {
			gauge(lastSeenDesc, max(0, time.Since(*h.LastSeenAt).Seconds()), h.Name) // another manager's clock may be ahead
		}
		gauge(hostVMsDesc, float64(h.Inventory.VMs), h.Name)
		gauge(hostMaxDesc, float64(h.Inventory.MaxVMs), h.Name)
	}
	for state, n := range states {
		gauge(hostsDesc, float64(n), string(state))
	}
	gauge(cordonedDesc, float64(cordoned))
}
