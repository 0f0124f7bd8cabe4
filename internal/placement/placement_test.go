package placement

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"warmboot"
)

func host(name, platform string, vms, limit int, has ...*warmboot.RuntimeSnapshot) Host {
	h := Host{Host: &warmboot.Host{ID: warmboot.ID(name), Name: name, State: warmboot.HostUp, Inventory: warmboot.HostInventory{Platform: platform, MaxVMs: limit}}, VMs: vms}
	for _, s := range has {
		h.Inventory.Snapshots = append(h.Inventory.Snapshots, s.ID)
	}
	return h
}

func TestWeights(t *testing.T) {
	t.Parallel()
	p, q := &warmboot.RuntimeSnapshot{ID: "p", Platform: "p", HostID: "builder"}, &warmboot.RuntimeSnapshot{ID: "q", Platform: "q"}
	ready := []*warmboot.RuntimeSnapshot{p, q}
	cordoned, down := host("cordoned", "p", 0, 10, p), host("down", "p", 0, 10, p)
	cordoned.Cordoned, down.State = true, warmboot.HostDown
	for name, tt := range map[string]struct {
		hosts []Host
		want  Choice
	}{
		"what has the snapshot, however busy":    {[]Host{host("a", "p", 0, 10), host("b", "p", 9, 10, p)}, Choice{Snapshot: p}},
		"its builder has it":                     {[]Host{host("a", "p", 0, 10), host("builder", "p", 9, 10)}, Choice{Snapshot: p}},
		"what can fetch it, unless what has it":  {[]Host{host("a", "x", 0, 10), host("b", "p", 5, 10), host("c", "p", 10, 10, p)}, Choice{Snapshot: p, Fetch: true}},
		"a host that cannot use any boots cold":  {[]Host{host("b", "x", 5, 10), cordoned, down}, Choice{}},
		"spread by the part of the places taken": {[]Host{host("a", "p", 5, 10, p), host("b", "p", 8, 100, p)}, Choice{Snapshot: p}},
		"no limit":                               {[]Host{host("a", "p", 5, 10, p), host("b", "p", 8, 0, p)}, Choice{Snapshot: p}},
		"each its own":                           {[]Host{host("b", "q", 5, 10, q)}, Choice{Snapshot: q}},
	} {
		got, err := Container(tt.hosts, ready, warmboot.ContainerSpec{}, nil)
		if err != nil || got.Snapshot != tt.want.Snapshot || got.Fetch != tt.want.Fetch || (got.Host.Name != "b" && got.Host.Name != "builder") {
			t.Errorf("%s: %+v on %v, %v", name, got, got.Host, err)
		}
	}
}

func TestWhyThereIsNoPlace(t *testing.T) {
	t.Parallel()
	cordoned, down := host("cordoned", "p", 0, 10), host("down", "p", 0, 10)
	cordoned.Cordoned, down.State = true, warmboot.HostDown
	for name, tt := range map[string]struct {
		hosts []Host
		code  warmboot.Code
		words string
	}{
		"no host":  {nil, warmboot.Unavailable, "no host has joined"},
		"all full": {[]Host{host("a", "p", 3, 3), host("b", "p", 4, 3)}, warmboot.Exhausted, "no host can take it (2 full)"},
		"mixed":    {[]Host{host("a", "p", 3, 3), cordoned, down, host("x", "p", 0, 1)}, warmboot.Exhausted, "(1 full, 1 cordoned, 1 down, 1 did not bring it up)"},
		"down":     {[]Host{down}, warmboot.Unavailable, "(1 down)"},
	} {
		_, err := Container(tt.hosts, nil, warmboot.ContainerSpec{}, map[warmboot.ID]bool{"x": true})
		if warmboot.CodeOf(err) != tt.code || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestLimitsGoWhereTheyAreKept(t *testing.T) {
	t.Parallel()
	user, tap, full := host("user", "p", 0, 10), host("tap", "p", 9, 10), host("full", "p", 10, 10)
	user.Inventory.Network, tap.Inventory.Network, full.Inventory.Network = "user", "tap", "tap"
	for _, spec := range []warmboot.ContainerSpec{{Egress: warmboot.Egress{Policy: warmboot.EgressDeny}}, {Bandwidth: warmboot.Bandwidth{EgressMbit: 1}}} {
		if c, err := Container([]Host{user, tap}, nil, spec, nil); err != nil || c.Host.Name != "tap" {
			t.Errorf("%+v goes to %v, %v", spec, c.Host, err)
		}
		if _, err := Container([]Host{user}, nil, spec, nil); warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "1 connected in user mode") {
			t.Errorf("%+v: %v", spec, err)
		}
		if _, err := Container([]Host{user, full}, nil, spec, nil); warmboot.CodeOf(err) != warmboot.Exhausted {
			t.Errorf("%+v: %v", spec, err)
		}
	}
	if c, err := Container([]Host{user, tap}, nil, warmboot.ContainerSpec{Egress: warmboot.Egress{Policy: warmboot.EgressAllow}}, nil); err != nil || c.Host.Name != "user" {
		t.Errorf("without limits: %v, %v", c.Host, err)
	}
}

func TestBuildsGoWhereTheImageIs(t *testing.T) {
	t.Parallel()
	img := &warmboot.Image{Digest: "d"}
	has := host("has", "p", 9, 10)
	has.Inventory.Images = []string{"x", "d"}
	hosts := []Host{host("idle", "p", 0, 10), has, host("other", "q", 0, 10)}
	if h, err := Build(hosts, img, ""); err != nil || h.Name != "has" {
		t.Errorf("%v, %v", h, err)
	}
	if h, err := Build(hosts, img, "q"); err != nil || h.Name != "other" {
		t.Errorf("%v, %v", h, err)
	}
	if _, err := Build(hosts, img, "z"); warmboot.CodeOf(err) != warmboot.Unavailable {
		t.Error(err)
	}
	if len(hosts) != 3 || hosts[2].Name != "other" {
		t.Error("the caller's list was changed")
	}
}

// TestPlacementSpreads places containers one after the other: no host gets more than one more than another of its kind, and none more than
// it takes.
func TestPlacementSpreads(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(r *rapid.T) {
		snap := &warmboot.RuntimeSnapshot{ID: "p", Platform: "p"}
		limit := rapid.IntRange(1, 8).Draw(r, "limit")
		var hosts []Host
		for i := range rapid.IntRange(1, 6).Draw(r, "hosts") {
			hosts = append(hosts, host(string(rune('a'+i)), "p", 0, limit, snap))
		}
		for n := range limit * len(hosts) {
			c, err := Container(hosts, []*warmboot.RuntimeSnapshot{snap}, warmboot.ContainerSpec{}, nil)
			if err != nil {
				r.Fatalf("container %d: %v", n, err)
			}
			least, most := limit, 0
			for i := range hosts {
				if hosts[i].ID == c.Host.ID {
					hosts[i].VMs++
				}
				least, most = min(least, hosts[i].VMs), max(most, hosts[i].VMs)
			}
			if most-least > 1 {
				r.Fatalf("uneven: %d and %d", least, most)
			}
		}
		if _, err := Container(hosts, nil, warmboot.ContainerSpec{}, nil); warmboot.CodeOf(err) != warmboot.Exhausted {
			r.Fatal(err)
		}
	})
}
