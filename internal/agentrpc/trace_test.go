package agentrpc_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"warmboot"
	"warmboot/internal/agentrpc"
	"warmboot/internal/controlplane"
	"warmboot/internal/expect"
	"warmboot/internal/telemetry"
	"warmboot/internal/telemetry/otlptest"
	"warmboot/internal/telemetry/span"
)

// TestATraceGoesOnOnTheHost: what a host does is a part of what its manager does; a call that is a part of nothing begins no trace there.
func TestATraceGoesOnOnTheHost(t *testing.T) {
	t.Parallel()
	collector := otlptest.Start(t)
	tracing, err := telemetry.NewTracing(t.Context(), telemetry.TracingConfig{Endpoint: collector.URL, Log: slog.New(slog.DiscardHandler)})
	expect.NoError(t, err)
	m := newManager(t, filepath.Join(t.TempDir(), "db"))
	a := join(t, "one", m.token(t), m.address)
	var seen []string
	a.OnCold = func(ctx context.Context, _ controlplane.MachineSpec) error {
		_, s := span.Start(ctx, "phase: boot")
		s.End(nil)
		seen = append(seen, span.TraceID(ctx))
		return nil
	}
	address, _ := serve(t, tracing.Handler(agentrpc.ManagersOnly(agentrpc.HostHandler(a.Host))), a.credentials)
	hosts := agentrpc.NewHosts(m.ca.Manager())
	defer hosts.Close()
	host, err := hosts.Host(&warmboot.Host{ID: a.ID, Name: "one", Address: address})
	expect.NoError(t, err)
	ctx, root := tracing.Start(t.Context(), "cold boot")
	for i, ctx := range []context.Context{ctx, t.Context()} {
		_, err = host.ColdBoot(ctx, controlplane.MachineSpec{Container: controlplane.ContainerRef{ID: warmboot.NewID(), Generation: int64(i + 1)}})
		expect.NoError(t, err)
	}
	root.End(nil)
	tracing.Close()
	want := []string{"cold boot", "cold boot > /warmboot.agent.v1.Host/ColdBoot", "cold boot > /warmboot.agent.v1.Host/ColdBoot > phase: boot"}
	got := otlptest.Paths(collector.Spans())
	if len(got) != len(want) {
		t.Fatalf("%q", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%q, want %q", got[i], want[i])
		}
	}
	if len(seen) != 2 || seen[0] != span.TraceID(ctx) || seen[1] != "" {
		t.Errorf("%q", seen)
	}
}
