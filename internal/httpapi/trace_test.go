package httpapi_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/controlplane/hosttest"
	"warmboot/internal/httpapi"
	"warmboot/internal/telemetry"
	"warmboot/internal/telemetry/otlptest"
	"warmboot/internal/telemetry/span"
)

// newTracedRig is a rig whose traces go to a collector. sent ends tracing and returns the spans of one trace.
func newTracedRig(t *testing.T, shape func(*hosttest.Host, *httpapi.Config)) (r *rig, collector *otlptest.Collector, sent func(trace string) []otlptest.Span) {
	t.Helper()
	collector = otlptest.Start(t)
	var tracing *telemetry.Tracing
	r = newRig(t, func(h *hosttest.Host, c *httpapi.Config) {
		var err error
		tracing, err = telemetry.NewTracing(t.Context(), telemetry.TracingConfig{Endpoint: collector.URL, Version: "1.2.3", Instance: "box", Log: c.Log})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(tracing.Close)
		c.Tracing = tracing
		if shape != nil {
			shape(h, c)
		}
	})
	return r, collector, func(trace string) []otlptest.Span {
		tracing.Close()
		return slices.DeleteFunc(collector.Spans(), func(s otlptest.Span) bool { return s.Trace != trace })
	}
}

const callersSpan = "00f067aa0ba902b7"

// call is a context of somebody who is traced.
func call(t *testing.T, trace string) context.Context {
	return span.Remote(within(t), "00-"+trace+"-"+callersSpan+"-01")
}

func TestACreateIsOneTrace(t *testing.T) {
	const building, creating, failing = "4bf92f3577b34da6a3ce929d0e0e4701", "4bf92f3577b34da6a3ce929d0e0e4702", "4bf92f3577b34da6a3ce929d0e0e4703"
	r, collector, sent := newTracedRig(t, func(h *hosttest.Host, _ *httpapi.Config) {
		h.OnStart = func(_ context.Context, c warmboot.Container) error {
			if c.Image == "missing" {
				return warmboot.Errorf(warmboot.ImagePull, "pull", "there is no such image")
			}
			return nil
		}
	})
	id, err := r.client.CreateSnapshot(call(t, building), r.image.ID)
	r.must(err)
	r.waitReady(id)
	c, err := r.client.CreateContainerAndWait(call(t, creating), api.CreateContainer{Name: "web", Image: "nginx"}, client.Started)
	r.must(err)
	_, err = r.client.CreateContainerAndWait(call(t, failing), api.CreateContainer{Image: "missing"}, client.Started)
	r.must(err)
	isBuild := func(s otlptest.Span) bool { return s.Name == "build snapshot" }
	collector.Await(t, 20*time.Second, isBuild) // its job ends a moment after it is ready

	spans := sent(creating)
	want := []string{
		"POST /v1/containers",
		"POST /v1/containers > create container",
		"POST /v1/containers > create container > bring container up",
		"POST /v1/containers > create container > bring container up > boot",
		"POST /v1/containers > create container > bring container up > boot > find snapshot",
		"POST /v1/containers > create container > bring container up > boot > warm boot",
		"POST /v1/containers > create container > bring container up > fetch runtime image",
		"POST /v1/containers > create container > bring container up > start command",
		"POST /v1/containers > create container > store: create container",
	}
	var got []string
	for _, path := range otlptest.Paths(spans) {
		if last := path[strings.LastIndex(path, " > ")+1:]; !strings.Contains(last, "store:") || strings.HasSuffix(path, "store: create container") { // how often the store is asked for more is its own affair
			got = append(got, path)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, s := range spans {
		if s.Service != "warmboot" || s.Error != "" {
			t.Errorf("%+v", s)
		}
		switch s.Name {
		case "POST /v1/containers":
			if s.Parent != callersSpan || s.Kind != "server" || s.Attributes["http.route"] != "/v1/containers" || s.Attributes["http.response.status_code"] != "201" || len(s.Attributes["warmboot.request_id"]) != 12 {
				t.Errorf("%+v", s)
			}
		case "create container", "bring container up":
			if s.Attributes["warmboot.container_id"] != c.ID || s.Attributes["warmboot.host"] != "box" {
				t.Errorf("%+v", s)
			}
		case "boot":
			if s.Attributes["warmboot.boot_method"] != "warm" || s.Attributes["warmboot.vm_id"] != c.VMID {
				t.Errorf("%+v", s)
			}
		case "warm boot":
			if s.Attributes["warmboot.snapshot_id"] != id {
				t.Errorf("%+v", s)
			}
		case "start command":
			if !slices.Contains(s.Events, "pulling nginx") {
				t.Errorf("%+v", s)
			}
		}
	}

	// The build is a job, which is done by whichever manager has time for it.
	spans = sent(building)
	for _, path := range []string{"POST /v1/runtime-snapshots", "POST /v1/runtime-snapshots > job: build_snapshot", "POST /v1/runtime-snapshots > job: build_snapshot > build snapshot"} {
		if paths := otlptest.Paths(spans); !slices.Contains(paths, path) {
			t.Errorf("no %s in %s", path, strings.Join(paths, "\n"))
		}
	}
	if i := slices.IndexFunc(spans, isBuild); i < 0 || !slices.Contains(spans[i].Events, "booting") || spans[i].Attributes["warmboot.snapshot_id"] != id {
		t.Errorf("%+v", spans)
	}

	errors := map[string]string{}
	for _, s := range sent(failing) {
		errors[s.Name] = s.Error
	}
	for name, failed := range map[string]bool{"POST /v1/containers": false, "create container": false, "boot": false, "bring container up": true, "start command": true} {
		if strings.Contains(errors[name], "there is no such image") != failed {
			t.Errorf("%s has the error %q", name, errors[name])
		}
	}
}

func TestWhatIsTraced(t *testing.T) {
	r, collector, sent := newTracedRig(t, nil)
	for _, path := range []string{"/healthz", "/readyz"} {
		r.request(http.MethodGet, path, "")
	}
	res, _ := r.request(http.MethodGet, "/v1/containers/nobody", "", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	if res.StatusCode != http.StatusNotFound {
		t.Fatal(res.StatusCode)
	}
	// A caller that is not sampled is not traced either; one whose header is none begins a trace.
	r.request(http.MethodGet, "/v1/images", "", "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4737-00f067aa0ba902b7-00")
	r.request(http.MethodGet, "/v1/hosts", "", "traceparent: bogus")
	r.request(http.MethodGet, "/nothing/here", "")
	spans := sent("4bf92f3577b34da6a3ce929d0e0e4736")
	if len(spans) != 1 || spans[0].Name != "GET /v1/containers/{id}" || spans[0].Error != "" || spans[0].Attributes["http.response.status_code"] != "404" || spans[0].Attributes["url.path"] != "/v1/containers/nobody" {
		t.Errorf("%+v", spans)
	}
	roots := map[string]bool{}
	for _, s := range collector.Spans() {
		if s.Kind == "server" {
			roots[s.Name] = s.Parent == ""
		}
	}
	if diff := cmp.Diff(map[string]bool{"POST /v1/images": true, "GET /v1/images/{id}": true /* of the rig's image */, "GET /v1/containers/{id}": false, "GET /v1/hosts": true, "GET": true}, roots); diff != "" {
		t.Error(diff)
	}
}

// TestACollectorThatIsGoneHarmsNobody has the collector refuse everything.
func TestACollectorThatIsGoneHarmsNobody(t *testing.T) {
	r, collector, sent := newTracedRig(t, nil)
	collector.Fail(true)
	r.create(api.CreateContainer{Name: "web"})
	if spans := sent(""); len(spans) != 0 {
		t.Errorf("%+v", spans)
	}
	if !strings.Contains(r.log.String(), "Traces could not be sent to the collector and are lost") {
		t.Error("nobody is told")
	}
	r.create(api.CreateContainer{Name: "web2"})
}
