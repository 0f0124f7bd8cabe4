package guest

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	guestv1 "warmboot/gen/guest/v1"
)

// health tells how the machine is. It never waits for anything.
func (g *Guest) health() *guestv1.HealthResponse {
	h := &guestv1.HealthResponse{AgentVersion: g.Version, UptimeSeconds: uptime().Seconds()}
	h.Identity, _ = g.readIdentity()
	if h.Identity != nil {
		h.Identity.EngineId = g.engineIDFile()
	}
	for _, s := range []*service{g.containerd, g.dockerd} {
		if s != nil {
			h.Services = append(h.Services, s.health())
		}
	}
	g.mu.Lock()
	h.Quiesced = g.quiesced
	g.mu.Unlock()
	h.UnixNanos = time.Now().UnixNano()
	return h
}

// engineIDFile is Docker's engine id as Docker keeps it on disk; "" before its first start.
func (g *Guest) engineIDFile() string {
	text, err := readFile(g.path(engineIDPath))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// uptime is how long the kernel has been running, without the time in which the machine was frozen.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}
