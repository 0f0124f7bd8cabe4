package storetest

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
)

func newHost(t *testing.T, s warmboot.Store, name string) *warmboot.Host {
	t.Helper()
	h := &warmboot.Host{ID: warmboot.NewID(), Name: name, Address: name + ":7000", State: warmboot.HostUp, CreatedAt: now(), Inventory: warmboot.HostInventory{VMM: "qemu-7.2.22", Platform: "p"}}
	expect.NoError(t, s.CreateHost(t.Context(), h))
	return h
}

func newManager(t *testing.T, s warmboot.Store, name string) *warmboot.Manager {
	t.Helper()
	m := &warmboot.Manager{ID: warmboot.NewID(), Name: name, StartedAt: now()}
	expect.NoError(t, s.JoinManagers(t.Context(), m))
	return m
}

func testHosts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	seen := now()
	b := &warmboot.Host{
		ID: warmboot.NewID(), Name: "b", Address: "10.0.0.2:7000", State: warmboot.HostDown, Cordoned: true, Beat: 3, LastSeenAt: &seen, CreatedAt: now(),
		Inventory: warmboot.HostInventory{
			Version: "v1", VMM: "v1.15.1", VMMWhy: "KVM works", VMMWarning: "it has a fault", Arch: "x86_64", CPU: "AMD", BootID: "x", Platform: "f00d", CPUs: 2, MemoryBytes: 1 << 34, DiskBytes: 1 << 40, DiskFree: 1 << 39,
			MaxVMs: 100, VMs: 7, Snapshots: []warmboot.ID{warmboot.NewID()}, Images: []string{"a", "b"},
		},
	}
	expect.NoError(t, s.CreateHost(ctx, b))
	a := newHost(t, s, "a")
	all, err := s.Hosts(ctx, "", 0)
	expect.NoError(t, err)
	wantEqual(t, all, []*warmboot.Host{a, b})
	for _, ref := range []string{"b", string(b.ID), strings.ToUpper(string(b.ID))} {
		got, err := s.FindHost(ctx, ref)
		expect.NoError(t, err)
		wantEqual(t, got, b)
	}
	_, err = s.FindHost(ctx, "absent")
	expect.Code(t, err, warmboot.NotFound, "absent")
	twin := *b
	twin.ID = warmboot.NewID()
	expect.Code(t, s.CreateHost(ctx, &twin), warmboot.Conflict, "b", b.ID.Short())

	at := now().Add(time.Minute)
	expect.NoError(t, s.BeatHosts(ctx, []warmboot.ID{b.ID, warmboot.NewID()}, at))
	_, err = s.UpdateHost(ctx, b.ID, func(h *warmboot.Host) error {
		h.State, h.Cordoned, h.Inventory.VMs, h.Address = warmboot.HostUp, false, 8, "10.0.0.3:7000"
		h.Beat, h.LastSeenAt = 0, nil // not its to change
		return nil
	})
	expect.NoError(t, err)
	b.State, b.Cordoned, b.Inventory.VMs, b.Address, b.Beat, b.LastSeenAt = warmboot.HostUp, false, 8, "10.0.0.3:7000", 4, &at
	got, err := s.Host(ctx, b.ID)
	expect.NoError(t, err)
	wantEqual(t, got, b)
	_, err = s.UpdateHost(ctx, b.ID, func(*warmboot.Host) error { return warmboot.Errorf(warmboot.Denied, "", "no") })
	expect.Code(t, err, warmboot.Denied)
}

func testDeleteHost(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	h := newHost(t, s, "a")
	c := container(img, "web")
	c.HostID = h.ID
	expect.NoError(t, s.CreateContainer(ctx, c))
	snap := snapshot(img, "p")
	snap.HostID = h.ID
	expect.NoError(t, s.CreateSnapshot(ctx, snap))
	expect.Code(t, s.DeleteHost(ctx, h.ID), warmboot.Conflict, "1 containers", "1 snapshots")
	expect.NoError(t, s.DeleteContainer(ctx, c.ID))
	expect.Code(t, s.DeleteHost(ctx, h.ID), warmboot.Conflict)
	expect.NoError(t, s.DeleteSnapshot(ctx, snap.ID))
	expect.Code(t, s.DeleteHost(ctx, h.ID, func(*warmboot.Host) error { return warmboot.Errorf(warmboot.Stale, "", "seen another") }), warmboot.Stale)
	expect.NoError(t, s.DeleteHost(ctx, h.ID))
	_, err := s.Snapshot(ctx, snap.ID)
	expect.Code(t, err, warmboot.NotFound)
	expect.Code(t, s.DeleteHost(ctx, h.ID), warmboot.NotFound)
	orphan := container(img, "orphan")
	orphan.HostID = h.ID
	expect.Code(t, s.CreateContainer(ctx, orphan), warmboot.Unavailable, "has been removed")
}

func testManagers(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	m := newManager(t, s, "one")
	all, err := s.BeatManager(ctx, m.ID)
	expect.NoError(t, err)
	m.Beat = 1
	wantEqual(t, all, []*warmboot.Manager{m})
	expect.NoError(t, s.RemoveManager(ctx, m.ID, 0)) // it has lived since
	_, err = s.BeatManager(ctx, m.ID)
	expect.NoError(t, err)
	expect.NoError(t, s.RemoveManager(ctx, m.ID, 2))
	_, err = s.BeatManager(ctx, m.ID)
	expect.Code(t, err, warmboot.NotFound)

	first := newManager(t, s, "one")
	second := newManager(t, s, "one")
	_, err = s.BeatManager(ctx, first.ID)
	expect.Code(t, err, warmboot.NotFound)
	expect.NoError(t, s.LeaveManagers(ctx, second.ID))
	expect.NoError(t, s.LeaveManagers(ctx, second.ID))
	_, err = s.BeatManager(ctx, second.ID)
	expect.Code(t, err, warmboot.NotFound)
}

func testLeases(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	m := newManager(t, s, "one")
	img := newImage(t, s, "runtime")
	c := newContainer(t, s, img, "web")
	got, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Lease = c.Lease.Take(m.ID); return nil })
	expect.NoError(t, err)
	wantEqual(t, got.Lease, warmboot.Lease{Owner: m.ID, Generation: 1, Held: true})
	wantEqual(t, got.Lease.HeldByOther(warmboot.NewID()), true)
	expect.NoError(t, s.LeaveManagers(ctx, m.ID)) // it dies
	got, err = s.Container(ctx, c.ID)
	expect.NoError(t, err)
	wantEqual(t, got.Lease, warmboot.Lease{Owner: m.ID, Generation: 1})
}

func testDeletedContainers(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	c, kept := newContainer(t, s, img, "gone"), newContainer(t, s, img, "kept")
	expect.NoError(t, s.DeleteContainer(ctx, c.ID))
	ids := []warmboot.ID{c.ID, kept.ID, warmboot.NewID()}
	for range 1500 {
		ids = append(ids, warmboot.NewID())
	}
	got, err := s.DeletedContainers(ctx, ids)
	expect.NoError(t, err)
	wantEqual(t, got, map[warmboot.ID]bool{c.ID: true})
	expect.NoError(t, s.ForgetDeletedContainers(ctx, now().Add(-time.Hour)))
	got, err = s.DeletedContainers(ctx, ids)
	expect.NoError(t, err)
	wantEqual(t, len(got), 1)
	expect.NoError(t, s.ForgetDeletedContainers(ctx, now().Add(time.Hour)))
	got, err = s.DeletedContainers(ctx, ids)
	expect.NoError(t, err)
	wantEqual(t, len(got), 0)
}

func testPortsOfHosts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	a, b := newHost(t, s, "a"), newHost(t, s, "b")
	p := port("0.0.0.0", 80, warmboot.TCP)
	on := func(h *warmboot.Host, name string) *warmboot.Container {
		c := container(img, name, p)
		c.HostID = h.ID
		return c
	}
	first, second := on(a, "first"), on(b, "second")
	expect.NoError(t, s.CreateContainer(ctx, first))
	expect.NoError(t, s.CreateContainer(ctx, second))
	expect.Code(t, s.CreateContainer(ctx, on(b, "third")), warmboot.Conflict, "second")
	// Placed on another host, it takes its ports along.
	move := func(c *warmboot.Container) error { c.HostID = b.ID; return nil }
	_, err := s.UpdateContainer(ctx, first.ID, move)
	expect.Code(t, err, warmboot.Conflict, "second")
	expect.NoError(t, s.DeleteContainer(ctx, second.ID))
	_, err = s.UpdateContainer(ctx, first.ID, move)
	expect.NoError(t, err)
	expect.NoError(t, s.CreateContainer(ctx, on(a, "fourth")))
}

// testFeed wants whatever is published to be heard, where there may be somebody else to hear it.
func testFeed(t *testing.T, s warmboot.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	connected, heard := make(chan struct{}, 1), make(chan string, 10)
	ended := make(chan error, 1)
	go func() {
		ended <- s.Follow(ctx, func() { connected <- struct{}{} }, func(m string) { heard <- m })
	}()
	<-connected
	long := strings.Repeat("x", warmboot.FeedLimit)
	expect.NoError(t, s.Publish(ctx, []string{"it's", long}))
	if alone := s.Publish(ctx, []string{long + "x"}) == nil; !alone {
		for _, want := range []string{"it's", long} {
			select {
			case got := <-heard:
				wantEqual(t, got, want)
			case <-ctx.Done():
				t.Fatalf("%.10s was not heard", want)
			}
		}
	}
	cancel()
	expect.Code(t, <-ended, warmboot.Canceled)
}

// testClosedHosts wants nothing new to be stored on a host that takes nothing, whatever a manager believed.
func testClosedHosts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	h, other := newHost(t, s, "a"), newHost(t, s, "b")
	elsewhere := container(img, "elsewhere")
	elsewhere.HostID = other.ID
	expect.NoError(t, s.CreateContainer(ctx, elsewhere))
	alter := func(change func(*warmboot.Host)) {
		t.Helper()
		_, err := s.UpdateHost(ctx, h.ID, func(h *warmboot.Host) error { change(h); return nil })
		expect.NoError(t, err)
	}
	wantClosed := func(err error, says string) {
		t.Helper()
		expect.Code(t, err, warmboot.Unavailable, says)
		if !errors.Is(err, warmboot.ErrHostClosed) {
			t.Errorf("the error is %v", err)
		}
	}
	fresh := container(img, "fresh")
	fresh.HostID = h.ID
	move := func(c *warmboot.Container) error { c.HostID = h.ID; return nil }
	for says, close := range map[string]func(*warmboot.Host){
		"host a is cordoned": func(h *warmboot.Host) { h.Cordoned = true },
		"host a is down":     func(h *warmboot.Host) { h.State = warmboot.HostDown },
	} {
		alter(close)
		wantClosed(s.CreateContainer(ctx, fresh), says)
		_, err := s.UpdateContainer(ctx, elsewhere.ID, move)
		wantClosed(err, says)
		alter(func(h *warmboot.Host) { h.Cordoned, h.State = false, warmboot.HostUp })
	}
	expect.NoError(t, s.CreateContainer(ctx, fresh))
	alter(func(h *warmboot.Host) { h.Cordoned = true })
	_, err := s.UpdateContainer(ctx, fresh.ID, func(c *warmboot.Container) error { c.VMID = "vm-1"; return nil })
	expect.NoError(t, err) // it is there already
	running := container(img, "running")
	running.HostID, running.State = h.ID, warmboot.ContainerRunning
	expect.NoError(t, s.CreateContainer(ctx, running)) // so was this one, before the database was restored
}
