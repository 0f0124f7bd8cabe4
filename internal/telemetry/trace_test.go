package telemetry_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"warmboot/internal/telemetry"
	"warmboot/internal/telemetry/otlptest"
)

// TestEnvironmentDecidesWhatIsTraced sets OpenTelemetry's own variables.
func TestEnvironmentDecidesWhatIsTraced(t *testing.T) {
	collector := otlptest.Start(t)
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT"
	for name, c := range map[string]struct {
		env    map[string]string
		traced bool
		log    string
	}{
		"nothing":              {nil, false, ""},
		"an endpoint":          {map[string]string{endpoint: collector.URL}, true, "Traces are sent to a collector"},
		"one for traces":       {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.URL + "/v1/traces"}, true, ""},
		"disabled":             {map[string]string{endpoint: collector.URL, "OTEL_SDK_DISABLED": "true"}, false, ""},
		"no exporter":          {map[string]string{endpoint: collector.URL, "OTEL_TRACES_EXPORTER": "none"}, false, ""},
		"another exporter":     {map[string]string{endpoint: collector.URL, "OTEL_TRACES_EXPORTER": "zipkin"}, false, "OTEL_TRACES_EXPORTER is zipkin"},
		"another protocol":     {map[string]string{endpoint: collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, "the one that is spoken is http/protobuf"},
		"the protocol":         {map[string]string{endpoint: collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, true, ""},
		"another for the rest": {map[string]string{endpoint: collector.URL, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, true, ""},
		"nothing is sampled":   {map[string]string{endpoint: collector.URL, "OTEL_TRACES_SAMPLER": "always_off"}, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
			t.Setenv("OTEL_SERVICE_NAME", strings.ReplaceAll(name, " ", "-"))
			var log bytes.Buffer
			tracing, err := telemetry.NewTracing(t.Context(), telemetry.TracingConfig{Version: "v1", Instance: "box", Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil {
				t.Fatal(err)
			}
			before := len(collector.Spans())
			_, s := tracing.Start(t.Context(), "something")
			s.End(nil)
			tracing.Close()
			sent := collector.Spans()[before:]
			if (len(sent) == 1) != c.traced || !strings.Contains(log.String(), c.log) {
				t.Errorf("%+v; the log says %s", sent, log.String())
			}
			if c.traced && sent[0].Service != strings.ReplaceAll(name, " ", "-") {
				t.Errorf("%+v", sent)
			}
		})
	}
}
