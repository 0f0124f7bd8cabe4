package telemetry

import (
	"testing"
	"time"

	"warmboot"
)

// BenchmarkWarmBoot is what counting adds to one warm boot.
func BenchmarkWarmBoot(b *testing.B) {
	m := NewMetrics()
	boot := []warmboot.Phase{{Name: warmboot.PhaseDisk, Duration: time.Millisecond}, {Name: warmboot.PhaseVMM, Duration: time.Millisecond}, {Name: warmboot.PhaseRestore, Duration: time.Millisecond}, {Name: warmboot.PhaseReidentify, Duration: time.Millisecond}, {Name: warmboot.PhaseDocker, Duration: time.Millisecond}}
	start := []warmboot.Phase{{Name: warmboot.PhasePull, Duration: time.Second}, {Name: warmboot.PhaseStart, Duration: time.Second}}
	b.ReportAllocs()
	for b.Loop() {
		m.Boot(warmboot.BootWarm, 80*time.Millisecond, boot, nil)
		m.Start(warmboot.BootWarm, time.Second, time.Minute, start)
		m.Request("POST /v1/containers", "POST", 201, time.Millisecond)
	}
}
