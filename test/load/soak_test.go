package load

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"warmboot/api"
	"warmboot/internal/expect"
)

// rss is how much memory a process has, in MiB.
func rss(b *testing.B, pid int) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	expect.NoError(b, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			expect.NoError(b, err)
			return float64(kb) / 1024
		}
	}
	b.Fatal("no VmRSS")
	return 0
}

// BenchmarkSoak creates, lists and deletes containers for a long time and reports how much memory the manager has over it.
func BenchmarkSoak(b *testing.B) {
	during, err := time.ParseDuration(os.Getenv("WARMBOOT_SOAK"))
	if err != nil {
		b.Skip("SKIPPED: takes as long as WARMBOOT_SOAK says; set it to 10m")
	}
	m := started(b, postgres(b))
	for b.Loop() {
		ctx, cancel := context.WithTimeout(b.Context(), during)
		var lives atomic.Int64
		var all sync.WaitGroup
		for w := range 8 {
			all.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					name := fmt.Sprintf("w%d-%d", w, i)
					_, err := m.CreateContainer(b.Context(), api.CreateContainer{Name: name, Image: "debian:trixie"})
					expect.NoError(b, err)
					_, err = m.WaitContainer(b.Context(), name, "started")
					expect.NoError(b, err)
					_, err = m.Containers(b.Context())
					expect.NoError(b, err)
					expect.NoError(b, m.DeleteContainer(b.Context(), name, true))
					lives.Add(1)
				}
			})
		}
		var memory []float64 // ten samples
		for range 10 {
			select {
			case <-time.After(during / 10):
			case <-ctx.Done():
			}
			memory = append(memory, rss(b, m.PID()))
		}
		cancel()
		all.Wait()
		for i, mib := range memory {
			report(b, mib, fmt.Sprintf("MiB-after-%d%%", 10*(i+1)))
		}
		report(b, float64(lives.Load()), "containers")
	}
}
