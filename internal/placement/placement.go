// Package placement decides which host a container or a snapshot's build goes to. Its functions are pure: everything that they decide by
// is given to them.
package placement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"warmboot"
)

// Host is a host as a candidate.
type Host struct {
	*warmboot.Host
	VMs int // containers that are placed there and not stopped, with those that are only just being placed
}

// Choice is a host and how it can use a snapshot.
type Choice struct {
	Host *warmboot.Host
	// Snapshot is the one to start from; nil: none fits this host.
	Snapshot *warmboot.RuntimeSnapshot
	// Fetch says that the host does not have the snapshot's files yet.
	Fetch bool
}

// Container chooses the host of a container. ready are the snapshots that the container could start from. In order of weight: a host
// that has a compatible snapshot goes before one that can fetch one, and that before one that has to boot cold; then comes the
// one with the smallest part of its places taken. A host that is down, cordoned, excluded or full, or that cannot keep the spec's limits, is
// not considered; if none is left, the error says what is wrong with each of them, and is Exhausted if some are only full.
func Container(hosts []Host, ready []*warmboot.RuntimeSnapshot, spec warmboot.ContainerSpec, excluded map[warmboot.ID]bool) (Choice, error) {
	const op = "place container"
	usable, err := candidates(op, hosts, spec.Egress.Limited() || spec.Bandwidth.Limited(), excluded)
	if err != nil {
		return Choice{}, err
	}
	best := slices.MinFunc(usable, func(a, b Host) int {
		return cmp.Or(
			cmp.Compare(distance(a.Host, ready), distance(b.Host, ready)),
			compareLoad(a, b),
		)
	})
	return choice(best.Host, ready), nil
}

// Build chooses the host that builds a snapshot of an image: one that has the image's files goes before one that must fetch them, then the
// one with the smallest part of its places taken. platform, if not empty, is what the host's must be.
func Build(hosts []Host, image *warmboot.Image, platform string) (*warmboot.Host, error) {
	const op = "place build"
	if platform != "" {
		hosts = slices.DeleteFunc(slices.Clone(hosts), func(h Host) bool { return h.Inventory.Platform != platform })
	}
	usable, err := candidates(op, hosts, false, nil)
	if err != nil {
		return nil, err
	}
	best := slices.MinFunc(usable, func(a, b Host) int {
		return cmp.Or(
			cmp.Compare(lacks(a, image), lacks(b, image)),
			compareLoad(a, b),
		)
	})
	return best.Host, nil
}

// userMode is what is wrong with a host for a container with limits to its network.
const userMode = "connected in user mode, which keeps no egress policy and no bandwidth limit"

func lacks(h Host, image *warmboot.Image) int {
	if slices.Contains(h.Inventory.Images, image.Digest) {
		return 0
	}
	return 1
}

// candidates are the hosts that take anything new at all, and, if it has limits to its network, keep those.
func candidates(op string, hosts []Host, limited bool, excluded map[warmboot.ID]bool) ([]Host, error) {
	var usable []Host
	counts := map[string]int{}
	for _, h := range hosts {
		switch {
		case excluded[h.ID]:
			counts["did not bring it up"]++
		case h.State != warmboot.HostUp:
			counts["down"]++
		case h.Cordoned:
			counts["cordoned"]++
		case limited && h.Inventory.Network != "tap":
			counts[userMode]++
		case h.Inventory.MaxVMs > 0 && h.VMs >= h.Inventory.MaxVMs:
			counts["full"]++
		default:
			usable = append(usable, h)
		}
	}
	if len(usable) > 0 {
		return usable, nil
	}
	if len(hosts) == 0 {
		return nil, warmboot.Errorf(warmboot.Unavailable, op, "no host has joined that could run it; `warmboot host token` tells how one does")
	}
	var why []string
	for _, reason := range []string{"full", "cordoned", "down", "did not bring it up", userMode} {
		if n := counts[reason]; n > 0 {
			why = append(why, fmt.Sprintf("%d %s", n, reason))
		}
	}
	code := warmboot.Unavailable
	if counts["full"] > 0 {
		code = warmboot.Exhausted
	}
	return nil, warmboot.Errorf(code, op, "no host can take it (%s); `warmboot host ls` shows them. Delete or stop containers, uncordon a host, or add one", strings.Join(why, ", "))
}

// distance is how far a host is from a warm boot: 0 has a snapshot, 1 can fetch one, 2 boots cold.
func distance(h *warmboot.Host, ready []*warmboot.RuntimeSnapshot) int {
	switch c := choice(h, ready); {
	case c.Snapshot == nil:
		return 2
	case c.Fetch:
		return 1
	}
	return 0
}

// choice finds the snapshot that a host would start from: one that it has, else one that it can fetch.
func choice(h *warmboot.Host, ready []*warmboot.RuntimeSnapshot) Choice {
	c := Choice{Host: h}
	for _, s := range ready {
		if s.Platform != h.Inventory.Platform {
			continue
		}
		if s.HostID == h.ID || slices.Contains(h.Inventory.Snapshots, s.ID) {
			return Choice{Host: h, Snapshot: s}
		}
		if c.Snapshot == nil {
			c.Snapshot, c.Fetch = s, true
		}
	}
	return c
}

// compareLoad compares the parts of the places that are taken; equals go by number, then by name.
func compareLoad(a, b Host) int {
	return cmp.Or(cmp.Compare(load(a), load(b)), cmp.Compare(a.VMs, b.VMs), cmp.Compare(a.Name, b.Name))
}

func load(h Host) float64 {
	if h.Inventory.MaxVMs == 0 {
		return 0
	}
	return float64(h.VMs) / float64(h.Inventory.MaxVMs)
}
