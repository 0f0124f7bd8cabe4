package hostnet

import (
	"log/slog"
	"net/netip"
	"testing"

	"warmboot"
	"warmboot/internal/vmm"
)

func benchNet(b *testing.B, ready int) *Net {
	b.Helper()
	n, err := Open(b.Context(), Config{Mode: TAP, Owner: owner(), FirstUID: 1_969_000_001, Ready: ready, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Skip("SKIPPED: needs root: ", err)
	}
	b.Cleanup(func() { n.Close() })
	if err := n.Settle(); err != nil {
		b.Fatal(err)
	}
	return n
}

// BenchmarkTakeReady takes a slot that is ready, and then publishes a port and sets a policy as a container may want it.
func BenchmarkTakeReady(b *testing.B) {
	port := vmm.Forward{Protocol: warmboot.TCP, HostIP: netip.MustParseAddr("127.99.99.99"), HostPort: 8080, GuestPort: 80}
	for name, w := range map[string]Wants{
		"plain": {}, "port": {Forwards: []vmm.Forward{port}}, "policy": {Egress: warmboot.Egress{Policy: warmboot.EgressDeny}},
		"bandwidth": {Bandwidth: warmboot.Bandwidth{EgressMbit: 100, IngressMbit: 100}},
	} {
		b.Run(name, func(b *testing.B) {
			n := benchNet(b, -1)
			for b.Loop() {
				b.StopTimer()
				number, err := n.numbers.takeIdle()
				if err != nil {
					b.Fatal(err)
				}
				s, err := n.keeper.build(number)
				if err != nil {
					b.Fatal(err)
				}
				n.keeper.mu.Lock()
				n.keeper.ready = append(n.keeper.ready, s)
				n.keeper.mu.Unlock()
				b.StartTimer()
				slot, err := n.Take(b.Context(), w)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := slot.Release(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

// BenchmarkBuild makes a slot, and BenchmarkRemove removes it, with what the host knows of its connections.
func BenchmarkBuild(b *testing.B) {
	n := benchNet(b, -1)
	for b.Loop() {
		s, err := n.Take(b.Context(), Wants{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Release(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkRemove(b *testing.B) {
	n := benchNet(b, -1)
	for b.Loop() {
		b.StopTimer()
		s, err := n.Take(b.Context(), Wants{})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := s.Release(); err != nil {
			b.Fatal(err)
		}
		if err := n.keeper.tidy(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTry(b *testing.B) {
	for b.Loop() {
		if err := Try(b.Context(), DefaultCIDR); err != nil {
			b.Skip("SKIPPED: ", err)
		}
	}
}
