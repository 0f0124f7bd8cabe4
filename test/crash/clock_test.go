package crash

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"warmboot"
	"warmboot/api"
	"warmboot/client"
	"warmboot/internal/expect"
)

// clockVar allows a test to set the machine's clock.
const clockVar = "WARMBOOT_TEST_CLOCK"

// TestClockJumps sets the clock of a machine that does its work an hour forward, and two hours back. Nobody counts as dead for that, no container is
// lost or doubled, and what is to be done at once is done at once.
func TestClockJumps(t *testing.T) {
	if os.Getenv(clockVar) == "" {
		t.Skip("SKIPPED: it sets this machine's clock; test/nestedhost runs it in a machine that may be broken")
	}
	p := newPlant(t, "SQLite")
	want := map[string]string{}
	create := func(name string) {
		want[name] = "running"
		c, err := p.CreateContainerAndWait(t.Context(), api.CreateContainer{Name: name, Image: "debian:trixie", RestartPolicy: "always"}, client.Started)
		expect.NoError(t, err)
		if c.State != "running" || *c.BootMethod != "warm" {
			t.Fatalf("%+v", c)
		}
	}
	create("before")
	for i, jump := range []time.Duration{time.Hour, -2 * time.Hour, time.Hour} {
		// One is being made when it happens.
		name := fmt.Sprintf("during-%d", i)
		want[name] = "running"
		_, err := p.CreateContainer(t.Context(), api.CreateContainer{Name: name, Image: "debian:trixie"})
		expect.NoError(t, err)
		setClock(t, jump)
		create(fmt.Sprintf("after-%d", i))
		p.settled(fmt.Sprintf("the clock set by %v", jump), func() error { return p.containers(want) })

		before, err := p.Container(t.Context(), "before")
		expect.NoError(t, err)
		p.host.Crash(warmboot.ID(before.ID))
		p.settled("the restart after that", func() error {
			c, err := p.Container(t.Context(), "before")
			if err == nil && (c.State != "running" || c.VMID == before.VMID) {
				err = fmt.Errorf("it is %s in %s", c.State, c.VMID)
			}
			return err
		})
		hosts, err := p.Hosts(t.Context())
		expect.NoError(t, err)
		for _, h := range hosts {
			if h.State != "up" {
				t.Errorf("host %s is %s", h.Name, h.State)
			}
		}
		snaps, err := p.Snapshots(t.Context())
		expect.NoError(t, err)
		_, err = p.RebuildSnapshot(t.Context(), snaps[0].ID)
		expect.NoError(t, err)
		p.settled("a rebuild after that", func() error {
			all, err := p.Snapshots(t.Context())
			if err == nil && (len(all) == 0 || all[0].ID == snaps[0].ID || all[0].State != "ready") {
				err = fmt.Errorf("snapshots are %+v", all)
			}
			return err
		})
	}
}

// setClock sets the machine's clock by so much.
func setClock(t *testing.T, by time.Duration) {
	t.Helper()
	to := unix.NsecToTimespec(time.Now().Add(by).UnixNano())
	expect.NoError(t, unix.ClockSettime(unix.CLOCK_REALTIME, &to))
}
