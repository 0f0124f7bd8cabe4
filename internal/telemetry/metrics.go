package telemetry

import (
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"warmboot"
)

// The buckets of the histograms, in seconds. A warm boot with KVM takes tens of milliseconds, a cold one without it minutes.
var (
	bootBuckets    = []float64{.01, .025, .05, .1, .2, .3, .5, .75, 1, 2, 5, 10, 30, 60, 120, 300}
	requestBuckets = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60}
	buildBuckets   = []float64{1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800}
)

// Metrics counts what warmboot does, in a registry of its own. It is a controlplane.Observer. No label ever has a value that a caller
// or a guest can make up.
type Metrics struct {
	registry  *prometheus.Registry
	boots     *prometheus.CounterVec
	fallbacks *prometheus.CounterVec
	bootTime  *prometheus.HistogramVec
	phaseTime *prometheus.HistogramVec
	starts    *prometheus.CounterVec
	startTime *prometheus.HistogramVec
	saved     prometheus.Counter
	builds    *prometheus.CounterVec
	buildTime prometheus.Histogram
	requests  *prometheus.CounterVec
	answered  *prometheus.HistogramVec
}

// NewMetrics returns metrics that are all zero.
func NewMetrics() *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		registry:  prometheus.NewRegistry(),
		boots:     counter("warmboot_boots_total", "Boots of containers' microVMs, up to Docker's first answer.", "method", "outcome"),
		fallbacks: counter("warmboot_fallbacks_total", "Cold boots where a warm one was wanted, by why.", "reason"),
		bootTime:  histogram("warmboot_boot_seconds", "How long boots that succeeded took, up to Docker's first answer.", bootBuckets, "method"),
		phaseTime: histogram("warmboot_phase_seconds", "How long each phase of bringing a container up took.", bootBuckets, "method", "phase"),
		starts:    counter("warmboot_container_starts_total", "Containers brought up, or not.", "outcome"),
		startTime: histogram("warmboot_container_start_seconds", "How long it took until the command of a container ran.", bootBuckets, "method"),
		saved:     prometheus.NewCounter(prometheus.CounterOpts{Name: "warmboot_saved_seconds_total", Help: "How much sooner Docker answered in warm boots than in the latest cold boot of the same image."}),
		builds:    counter("warmboot_snapshot_builds_total", "Builds of runtime snapshots that have ended.", "outcome"),
		buildTime: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "warmboot_snapshot_build_seconds", Help: "How long builds of runtime snapshots that succeeded took.", Buckets: buildBuckets}),
		requests:  counter("warmboot_http_requests_total", "Requests of the API, by route.", "route", "method", "status"),
		answered:  histogram("warmboot_http_request_seconds", "How long requests of the API took, waits and streams included.", requestBuckets, "route", "method"),
	}
	m.registry.MustRegister(m.boots, m.fallbacks, m.bootTime, m.phaseTime, m.starts, m.startTime, m.saved, m.builds, m.buildTime, m.requests, m.answered,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// A counter that is not there until the first failure cannot be alerted on: its first increase would be missed.
	for _, outcome := range []string{"success", "failed", "canceled"} {
		m.boots.WithLabelValues(string(warmboot.BootWarm), outcome)
		m.boots.WithLabelValues(string(warmboot.BootCold), outcome)
		m.builds.WithLabelValues(outcome)
		m.starts.WithLabelValues(outcome)
	}
	return m
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// outcome classes an error for a label.
func outcome(code warmboot.Code) string {
	switch code {
	case "":
		return "success"
	case warmboot.Canceled:
		return "canceled"
	}
	return "failed"
}

// Boot implements controlplane.Observer.
func (m *Metrics) Boot(method warmboot.BootMethod, took time.Duration, phases []warmboot.Phase, err error) {
	m.boots.WithLabelValues(string(method), outcome(warmboot.CodeOf(err))).Inc()
	if err == nil {
		m.bootTime.WithLabelValues(string(method)).Observe(took.Seconds())
		m.phases(method, phases)
	}
}

func (m *Metrics) phases(method warmboot.BootMethod, phases []warmboot.Phase) {
	for _, p := range phases {
		m.phaseTime.WithLabelValues(string(method), string(p.Name)).Observe(p.Duration.Seconds())
	}
}

// Fallback implements controlplane.Observer.
func (m *Metrics) Fallback(reason string) { m.fallbacks.WithLabelValues(reason).Inc() }

// Start implements controlplane.Observer.
func (m *Metrics) Start(method warmboot.BootMethod, took, saved time.Duration, phases []warmboot.Phase) {
	m.starts.WithLabelValues("success").Inc()
	m.startTime.WithLabelValues(string(method)).Observe(took.Seconds())
	m.saved.Add(saved.Seconds())
	m.phases(method, phases)
}

// StartFailed implements controlplane.Observer.
func (m *Metrics) StartFailed(code warmboot.Code) { m.starts.WithLabelValues(outcome(code)).Inc() }

// Build implements controlplane.Observer.
func (m *Metrics) Build(took time.Duration, err error) {
	m.builds.WithLabelValues(outcome(warmboot.CodeOf(err))).Inc()
	if err == nil {
		m.buildTime.Observe(took.Seconds())
	}
}

// Request counts a request that has been answered. route is the pattern that it matched, empty for none.
func (m *Metrics) Request(route, method string, status int, took time.Duration) {
	if route == "" {
		route = "none"
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = "other"
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(status)).Inc()
	m.answered.WithLabelValues(route, method).Observe(took.Seconds())
}
