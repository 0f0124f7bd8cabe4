package storetest

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
)

func testContainerRoundTrip(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	code, started, finished := 3, now(), now()
	c := &warmboot.Container{
		ID: warmboot.NewID(), Name: "web", Image: "registry:5000/team/app:1.2", RuntimeImageID: img.ID, State: warmboot.ContainerStopped,
		Spec: warmboot.ContainerSpec{
			Command: []string{"sh", "-c"}, Args: []string{"echo \"ü\"; exit 3"}, EnvVars: map[string]string{"A": "1"}, CPULimit: 1.5, MemoryLimitMB: 256,
			PortMappings:  []warmboot.PortMapping{port("127.0.0.1", 8080, warmboot.TCP), port("::1", 53, warmboot.UDP)},
			RestartPolicy: warmboot.RestartPolicy{Name: warmboot.RestartOnFailure, MaxRetries: 3},
			Egress:        warmboot.Egress{Policy: warmboot.EgressList, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, DNS: true},
			Bandwidth:     warmboot.Bandwidth{IngressMbit: 7, EgressMbit: 8},
		},
		HostID: newHost(t, s, "a").ID, Lease: warmboot.Lease{Owner: warmboot.NewID(), Generation: 7}, Private: true, StoppedByUser: true, Restarts: 2,
		BootMethod: warmboot.BootWarm, BootReason: "x", VMID: "vm-3f2a9c0d1e4b", SnapshotID: warmboot.NewID(),
		Phases: []warmboot.Phase{{Name: warmboot.PhaseDisk, Duration: 1234567}}, ExitCode: &code, Error: "e",
		CreatedAt: now(), StartedAt: &started, FinishedAt: &finished,
	}
	expect.NoError(t, s.CreateContainer(ctx, c))
	got, err := s.Container(ctx, c.ID)
	expect.NoError(t, err)
	wantEqual(t, got, c)

	bare := newContainer(t, s, img, "bare")
	got, err = s.Container(ctx, bare.ID)
	expect.NoError(t, err)
	wantEqual(t, got, bare)

	expect.NoError(t, s.DeleteContainer(ctx, c.ID))
	_, err = s.Container(ctx, c.ID)
	expect.Code(t, err, warmboot.NotFound)
	expect.Code(t, s.DeleteContainer(ctx, c.ID), warmboot.NotFound, string(c.ID))

	orphan := container(img, "orphan")
	orphan.RuntimeImageID = warmboot.NewID()
	expect.Code(t, s.CreateContainer(ctx, orphan), warmboot.NotFound, string(orphan.RuntimeImageID))
}

func testContainerNameTaken(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	first := newContainer(t, s, img, "web")
	expect.Code(t, s.CreateContainer(ctx, container(img, "web")), warmboot.Conflict, "web", first.ID.Short(), "creating")
	expect.NoError(t, s.DeleteContainer(ctx, first.ID))
	second, other := newContainer(t, s, img, "web"), newContainer(t, s, img, "other")
	rename := func(name string) error {
		_, err := s.UpdateContainer(ctx, second.ID, func(c *warmboot.Container) error { c.Name = name; return nil })
		return err
	}
	expect.Code(t, rename("other"), warmboot.Conflict, "other", other.ID.Short(), "creating")
	expect.NoError(t, rename("www"))
	newContainer(t, s, img, "web")
}

func testFindContainer(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	add := func(id, name string) *warmboot.Container {
		c := container(img, name)
		c.ID = warmboot.ID(id)
		expect.NoError(t, s.CreateContainer(ctx, c))
		return c
	}
	one := add("aaaaaaaa-1111-4000-8000-000000000001", "web")
	two := add("aaaaaaaa-2222-4000-8000-000000000002", "db")
	named := add("bbbbbbbb-0000-4000-8000-000000000003", "aaaaaaaa2222") // a name that looks like the beginning of another's id
	for ref, want := range map[string]*warmboot.Container{
		string(one.ID): one, strings.ToUpper(string(one.ID)): one, "web": one, "aaaaaaaa1": one, one.ID.Short(): one, "aaaaaaaa-1111-4": one, "AAAAAAAA1": one,
		"db": two, "aaaaaaaa22": two, "aaaaaaaa2222": named, "b": named,
	} {
		got, err := s.FindContainer(ctx, ref)
		if err != nil || got.ID != want.ID {
			t.Errorf("FindContainer(%q) = %v, %v, want %s", ref, got, err, want.ID)
		}
	}
	_, err := s.FindContainer(ctx, "aaaaaaaa")
	expect.Code(t, err, warmboot.Conflict, "web", "db")
	for _, ref := range []string{"", "-", "%", "_", "WEB", "c", "aaaaaaaa3", string(warmboot.NewID()), "x'; DROP TABLE containers; --", strings.Repeat("a", 300)} {
		_, err := s.FindContainer(ctx, ref)
		expect.Code(t, err, warmboot.NotFound)
	}
}

func testListContainers(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	a, b, c := newContainer(t, s, img, "a"), newContainer(t, s, img, "b"), newContainer(t, s, img, "c")
	become(t, s, a.ID, warmboot.ContainerRunning)
	become(t, s, b.ID, warmboot.ContainerFailed)
	for _, want := range []struct {
		states []warmboot.ContainerState
		ids    []warmboot.ID
	}{
		{nil, []warmboot.ID{c.ID, b.ID, a.ID}},
		{[]warmboot.ContainerState{warmboot.ContainerRunning}, []warmboot.ID{a.ID}},
		{[]warmboot.ContainerState{warmboot.ContainerRunning, warmboot.ContainerFailed}, []warmboot.ID{b.ID, a.ID}},
		{[]warmboot.ContainerState{warmboot.ContainerStopped}, nil},
	} {
		all, err := s.Containers(ctx, warmboot.ContainerFilter{States: want.states})
		expect.NoError(t, err)
		var ids []warmboot.ID
		for _, c := range all {
			ids = append(ids, c.ID)
		}
		wantEqual(t, ids, want.ids)
	}
}

// testContainerStates tries every move between two states.
func testContainerStates(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	states := []warmboot.ContainerState{
		warmboot.ContainerCreating, warmboot.ContainerRunning, warmboot.ContainerStopping, warmboot.ContainerStopped,
		warmboot.ContainerStarting, warmboot.ContainerFailed, warmboot.ContainerDeleting,
	}
	for _, from := range states {
		for _, to := range states {
			c := container(img, string(from)+"-"+string(to))
			c.State = from
			expect.NoError(t, s.CreateContainer(ctx, c))
			_, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.State, c.Error = to, "changed"; return nil })
			got, readErr := s.Container(ctx, c.ID)
			expect.NoError(t, readErr)
			if from == to || from.CanBecome(to) {
				expect.NoError(t, err)
				wantEqual(t, got.State, to)
				continue
			}
			expect.Code(t, err, warmboot.Conflict, string(from), string(to))
			wantEqual(t, got, c)
		}
	}
}

func testUpdateContainer(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	c := newContainer(t, s, newImage(t, s, "runtime"), "web")
	code, at := 0, now()
	got, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error {
		c.State, c.BootMethod, c.VMID, c.ExitCode, c.StartedAt = warmboot.ContainerRunning, warmboot.BootCold, "vm-1", &code, &at
		c.Phases = append(c.Phases, warmboot.Phase{Name: warmboot.PhaseBoot, Duration: time.Second})
		return nil
	})
	expect.NoError(t, err)
	want := *c
	want.State, want.BootMethod, want.VMID, want.ExitCode, want.StartedAt = warmboot.ContainerRunning, warmboot.BootCold, "vm-1", &code, &at
	want.Phases = []warmboot.Phase{{Name: warmboot.PhaseBoot, Duration: time.Second}}
	wantEqual(t, got, &want)

	refused := errors.New("refused")
	_, err = s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Error = "x"; return refused })
	if !errors.Is(err, refused) {
		t.Fatalf("the error of change was lost: %v", err)
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Error = "x"; panic("in change") })
	}()
	got, err = s.Container(ctx, c.ID)
	expect.NoError(t, err)
	wantEqual(t, got, &want)
	_, err = s.UpdateContainer(ctx, warmboot.NewID(), func(*warmboot.Container) error { t.Error("called for nothing"); return nil })
	expect.Code(t, err, warmboot.NotFound)
}

func testConcurrentUpdates(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	c := newContainer(t, s, newImage(t, s, "runtime"), "web")
	const writers, each = 8, 5
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := s.UpdateContainer(ctx, c.ID, func(c *warmboot.Container) error { c.Error += "x"; return nil }); err != nil {
					t.Error(err)
				}
				if _, err := s.Containers(ctx, warmboot.ContainerFilter{}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := s.Container(ctx, c.ID)
	expect.NoError(t, err)
	wantEqual(t, len(got.Error), writers*each)
}

func testPorts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	held := map[string]*warmboot.Container{
		"one": newContainer(t, s, img, "one", port("127.0.0.1", 80, warmboot.TCP), port("127.0.0.1", 443, warmboot.TCP)),
		"all": newContainer(t, s, img, "all", port("0.0.0.0", 81, warmboot.TCP)),
		"six": newContainer(t, s, img, "six", port("::", 82, warmboot.TCP)),
	}
	for _, c := range []struct {
		port   warmboot.PortMapping
		holder string // "" where there is no conflict
	}{
		{port("127.0.0.1", 80, warmboot.TCP), "one"},
		{port("127.0.0.1", 443, warmboot.TCP), "one"},
		{port("::ffff:127.0.0.1", 80, warmboot.TCP), "one"}, // the same address, written for IPv6
		{port("0.0.0.0", 80, warmboot.TCP), "one"},
		{port("::", 80, warmboot.TCP), "one"},
		{port("127.0.0.1", 81, warmboot.TCP), "all"},
		{port("::1", 81, warmboot.TCP), "all"},
		{port("127.0.0.1", 82, warmboot.TCP), "six"},
		{port("127.0.0.2", 80, warmboot.TCP), ""},
		{port("127.0.0.1", 80, warmboot.UDP), ""},
		{port("127.0.0.1", 83, warmboot.TCP), ""},
	} {
		again := container(img, warmboot.NewID().Short(), port("127.0.0.1", 9999, warmboot.TCP), c.port)
		err := s.CreateContainer(ctx, again)
		if c.holder == "" {
			expect.NoError(t, err)
			expect.NoError(t, s.DeleteContainer(ctx, again.ID))
			continue
		}
		expect.Code(t, err, warmboot.Conflict, "container "+c.holder, held[c.holder].ID.Short(), fmt.Sprintf("%d/tcp", c.port.HostPort))
		_, err = s.Container(ctx, again.ID)
		expect.Code(t, err, warmboot.NotFound) // and its first port is free again, as the next round shows
	}
	twice := container(img, "twice", port("127.0.0.1", 90, warmboot.TCP), port("0.0.0.0", 90, warmboot.TCP))
	expect.Code(t, s.CreateContainer(ctx, twice), warmboot.Invalid, "90/tcp", "twice")
}

func testPortsOfStopped(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	p := port("127.0.0.1", 8080, warmboot.TCP)
	first := newContainer(t, s, img, "first", p)
	become(t, s, first.ID, warmboot.ContainerRunning, warmboot.ContainerStopping)
	expect.Code(t, s.CreateContainer(ctx, container(img, "early", p)), warmboot.Conflict, "first", "stopping")
	become(t, s, first.ID, warmboot.ContainerStopped)
	second := newContainer(t, s, img, "second", p)
	_, err := s.UpdateContainer(ctx, first.ID, func(c *warmboot.Container) error { c.State = warmboot.ContainerStarting; return nil })
	expect.Code(t, err, warmboot.Conflict, "second")
	got, err := s.Container(ctx, first.ID)
	expect.NoError(t, err)
	wantEqual(t, got.State, warmboot.ContainerStopped)
	wantEqual(t, got.Spec.PortMappings, []warmboot.PortMapping{p})

	become(t, s, second.ID, warmboot.ContainerRunning, warmboot.ContainerDeleting)
	expect.Code(t, s.CreateContainer(ctx, container(img, "early", p)), warmboot.Conflict, "second", "deleting")
	expect.NoError(t, s.DeleteContainer(ctx, second.ID))
	become(t, s, first.ID, warmboot.ContainerStarting, warmboot.ContainerRunning)
	expect.Code(t, s.CreateContainer(ctx, container(img, "late", p)), warmboot.Conflict, "first", "running")
}

func testConcurrentPortClaims(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img := newImage(t, s, "runtime")
	addresses := []string{"127.0.0.1", "0.0.0.0", "::", "::1", "127.0.0.1", "0.0.0.0"}
	errs := make([]error, len(addresses))
	var wg sync.WaitGroup
	for i, ip := range addresses {
		wg.Go(func() {
			errs[i] = s.CreateContainer(ctx, container(img, fmt.Sprintf("c%d", i), port(ip, 80, warmboot.TCP)))
		})
	}
	wg.Wait()
	all, err := s.Containers(ctx, warmboot.ContainerFilter{})
	expect.NoError(t, err)
	specific, any := 0, 0
	for _, c := range all {
		if c.Spec.PortMappings[0].HostIP.IsUnspecified() {
			any++
		} else {
			specific++
		}
	}
	if any > 1 || any == 1 && specific > 0 || any+specific == 0 {
		t.Fatalf("%d containers hold port 80 on all addresses and %d on one", any, specific)
	}
	for _, err := range errs {
		if err != nil {
			expect.Code(t, err, warmboot.Conflict)
		}
	}
}
