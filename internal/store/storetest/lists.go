package storetest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"warmboot"
	"warmboot/internal/expect"
)

func testContainerFilters(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img, other := newImage(t, s, "runtime"), newImage(t, s, "other")
	here, there := newHost(t, s, "here"), newHost(t, s, "there")
	at := now()
	for i, c := range []*warmboot.Container{
		{Name: "web-1", Image: "nginx", RuntimeImageID: img.ID, HostID: here.ID, State: warmboot.ContainerRunning, BootMethod: warmboot.BootWarm},
		{Name: "web-2", Image: "nginx:1", RuntimeImageID: img.ID, HostID: there.ID, State: warmboot.ContainerRunning, BootMethod: warmboot.BootCold},
		{Name: "Web-3", Image: "nginx", RuntimeImageID: other.ID, HostID: there.ID, State: warmboot.ContainerStopped, BootMethod: warmboot.BootWarm},
		{Name: "web_4", Image: "redis", RuntimeImageID: img.ID, State: warmboot.ContainerFailed},
		{Name: "we", Image: "redis", RuntimeImageID: img.ID, HostID: here.ID, State: warmboot.ContainerCreating},
		{Name: "webz", Image: "redis", RuntimeImageID: img.ID, HostID: here.ID, State: warmboot.ContainerStopped, BootMethod: warmboot.BootCold},
	} {
		c.ID, c.CreatedAt = warmboot.NewID(), at.Add(time.Duration(i)*time.Second)
		expect.NoError(t, s.CreateContainer(ctx, c))
	}
	for _, c := range []struct {
		filter warmboot.ContainerFilter
		want   []string
	}{
		{warmboot.ContainerFilter{}, []string{"webz", "we", "web_4", "Web-3", "web-2", "web-1"}},
		{warmboot.ContainerFilter{HostID: here.ID}, []string{"webz", "we", "web-1"}},
		{warmboot.ContainerFilter{Image: "nginx"}, []string{"Web-3", "web-1"}},
		{warmboot.ContainerFilter{RuntimeImageID: other.ID}, []string{"Web-3"}},
		{warmboot.ContainerFilter{BootMethod: warmboot.BootWarm}, []string{"Web-3", "web-1"}},
		{warmboot.ContainerFilter{NamePrefix: "web"}, []string{"webz", "web_4", "web-2", "web-1"}},
		{warmboot.ContainerFilter{NamePrefix: "web-"}, []string{"web-2", "web-1"}},
		{warmboot.ContainerFilter{NamePrefix: "web-1"}, []string{"web-1"}},
		{warmboot.ContainerFilter{NamePrefix: "W"}, []string{"Web-3"}},
		{warmboot.ContainerFilter{States: []warmboot.ContainerState{warmboot.ContainerRunning, warmboot.ContainerStopped}, BootMethod: warmboot.BootCold}, []string{"webz", "web-2"}},
		{warmboot.ContainerFilter{States: []warmboot.ContainerState{warmboot.ContainerRunning}, HostID: there.ID, RuntimeImageID: img.ID, Image: "nginx:1", NamePrefix: "w", BootMethod: warmboot.BootCold}, []string{"web-2"}},
		{warmboot.ContainerFilter{States: []warmboot.ContainerState{warmboot.ContainerRunning, warmboot.ContainerStopped}, BootMethod: warmboot.BootCold, Page: warmboot.Page{Limit: 1}}, []string{"webz"}},
		// What nothing can be called matches nothing, and is no pattern.
		{warmboot.ContainerFilter{NamePrefix: "%"}, nil},
		{warmboot.ContainerFilter{NamePrefix: "web_%"}, nil},
		{warmboot.ContainerFilter{NamePrefix: "\x00"}, nil},
		{warmboot.ContainerFilter{Image: "nginx' OR '1' = '1"}, nil},
		{warmboot.ContainerFilter{Image: "\xff"}, nil},
		{warmboot.ContainerFilter{HostID: warmboot.NewID()}, nil},
	} {
		all, err := s.Containers(ctx, c.filter)
		expect.NoError(t, err)
		var names []string
		for _, one := range all {
			names = append(names, one.Name)
		}
		if diff := cmp.Diff(c.want, names); diff != "" {
			t.Errorf("%+v:\n%s", c.filter, diff)
		}
	}
}

func testSnapshotFilters(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img, other, h := newImage(t, s, "runtime"), newImage(t, s, "other"), newHost(t, s, "here")
	add := func(img *warmboot.Image, host warmboot.ID, state warmboot.SnapshotState) warmboot.ID {
		snap := snapshot(img, "p")
		snap.HostID, snap.State = host, state
		expect.NoError(t, s.CreateSnapshot(ctx, snap))
		return snap.ID
	}
	ready, gone, foreign, building := add(img, h.ID, warmboot.SnapshotReady), add(img, h.ID, warmboot.SnapshotDeleted), add(other, "", warmboot.SnapshotReady), add(img, "", warmboot.SnapshotCreating)
	for _, c := range []struct {
		filter warmboot.SnapshotFilter
		want   []warmboot.ID
	}{
		{warmboot.SnapshotFilter{}, []warmboot.ID{building, foreign, gone, ready}},
		{warmboot.SnapshotFilter{States: []warmboot.SnapshotState{warmboot.SnapshotReady}}, []warmboot.ID{foreign, ready}},
		{warmboot.SnapshotFilter{RuntimeImageID: img.ID}, []warmboot.ID{building, gone, ready}},
		{warmboot.SnapshotFilter{HostID: h.ID}, []warmboot.ID{gone, ready}},
		{warmboot.SnapshotFilter{States: []warmboot.SnapshotState{warmboot.SnapshotReady, warmboot.SnapshotCreating}, RuntimeImageID: img.ID, HostID: h.ID}, []warmboot.ID{ready}},
		{warmboot.SnapshotFilter{RuntimeImageID: img.ID, Page: warmboot.Page{Limit: 2}}, []warmboot.ID{building, gone}},
	} {
		all, err := s.Snapshots(ctx, c.filter)
		expect.NoError(t, err)
		var ids []warmboot.ID
		for _, one := range all {
			ids = append(ids, one.ID)
		}
		wantEqual(t, ids, c.want)
	}
}

// testPages reads every list page by page. Several entities are of one moment, and while the pages are read, the one that the next page begins behind is
// removed, and a newer one added.
func testPages(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	img, at := newImage(t, s, "runtime"), now().Add(time.Hour) // the image is older than all that follows
	// Seven of each kind, in pairs of one moment.
	moment := func(i int) time.Time { return at.Add(time.Duration(i/2) * time.Second) }
	lists := map[string]struct {
		add    func(i int) error
		page   func(warmboot.Page) ([]warmboot.Place, error)
		remove func(warmboot.ID) error
	}{
		"containers": {
			func(i int) error {
				c := container(img, fmt.Sprintf("c%d", i))
				c.CreatedAt = moment(i)
				return s.CreateContainer(ctx, c)
			},
			func(p warmboot.Page) ([]warmboot.Place, error) {
				all, err := s.Containers(ctx, warmboot.ContainerFilter{Page: p})
				return placesOf(all, func(c *warmboot.Container) warmboot.Place { return warmboot.Place{CreatedAt: c.CreatedAt, ID: c.ID} }), err
			},
			func(id warmboot.ID) error { return s.DeleteContainer(ctx, id) },
		},
		"snapshots": {
			func(i int) error {
				snap := snapshot(img, "p")
				snap.State, snap.CreatedAt = warmboot.SnapshotDeleted, moment(i)
				return s.CreateSnapshot(ctx, snap)
			},
			func(p warmboot.Page) ([]warmboot.Place, error) {
				all, err := s.Snapshots(ctx, warmboot.SnapshotFilter{Page: p})
				return placesOf(all, func(c *warmboot.RuntimeSnapshot) warmboot.Place {
					return warmboot.Place{CreatedAt: c.CreatedAt, ID: c.ID}
				}), err
			},
			func(id warmboot.ID) error { return s.ForgetSnapshot(ctx, id) },
		},
		"images": {
			func(i int) error {
				return s.CreateImage(ctx, &warmboot.Image{ID: warmboot.NewID(), Name: fmt.Sprintf("i%d", i), CreatedAt: moment(i)})
			},
			func(p warmboot.Page) ([]warmboot.Place, error) {
				all, err := s.Images(ctx, p)
				return placesOf(all, func(c *warmboot.Image) warmboot.Place { return warmboot.Place{CreatedAt: c.CreatedAt, ID: c.ID} }), err
			},
			func(id warmboot.ID) error { return s.DeleteImage(ctx, id) },
		},
		"tokens": {
			func(i int) error {
				return s.CreateToken(ctx, &warmboot.Token{ID: warmboot.NewID(), Name: fmt.Sprintf("t%d", i), Digest: fmt.Sprint(i), Role: warmboot.RoleViewer, CreatedAt: moment(i)})
			},
			func(p warmboot.Page) ([]warmboot.Place, error) {
				all, err := s.Tokens(ctx, p)
				return placesOf(all, func(c *warmboot.Token) warmboot.Place { return warmboot.Place{CreatedAt: c.CreatedAt, ID: c.ID} }), err
			},
			func(id warmboot.ID) error { return s.DeleteToken(ctx, id) },
		},
	}
	for name, l := range lists {
		for i := range 7 {
			expect.NoError(t, l.add(i))
		}
		whole, err := l.page(warmboot.Page{})
		expect.NoError(t, err)
		if len(whole) < 7 || !slices.IsSortedFunc(whole, func(a, b warmboot.Place) int { return b.CreatedAt.Compare(a.CreatedAt) }) {
			t.Fatalf("%s are not newest first: %v", name, whole)
		}
		for _, size := range []int{1, 2, 3, 7, 8} {
			var got []warmboot.Place
			for p := (warmboot.Page{Limit: size}); ; p.After = got[len(got)-1] {
				part, err := l.page(p)
				expect.NoError(t, err)
				if len(part) > size {
					t.Fatalf("%s: a page of %d has %d", name, size, len(part))
				}
				if got = append(got, part...); len(part) == 0 {
					break
				}
			}
			if diff := cmp.Diff(whole, got); diff != "" {
				t.Errorf("%s in pages of %d:\n%s", name, size, diff)
			}
		}
		first, err := l.page(warmboot.Page{Limit: 3})
		expect.NoError(t, err)
		expect.NoError(t, l.remove(first[2].ID))
		expect.NoError(t, l.add(100)) // of a later moment than all
		rest, err := l.page(warmboot.Page{After: first[2]})
		expect.NoError(t, err)
		wantEqual(t, rest, whole[3:])
	}

	for _, h := range []string{"b", "d", "a", "c"} {
		newHost(t, s, h)
	}
	for _, c := range []struct {
		after string
		limit int
		want  []string
	}{{"", 0, []string{"a", "b", "c", "d"}}, {"", 2, []string{"a", "b"}}, {"b", 2, []string{"c", "d"}}, {"bb", 1, []string{"c"}}, {"d", 2, nil}, {"'; --", 0, []string{"a", "b", "c", "d"}}} {
		all, err := s.Hosts(ctx, c.after, c.limit)
		expect.NoError(t, err)
		var names []string
		for _, h := range all {
			names = append(names, h.Name)
		}
		wantEqual(t, names, c.want)
	}
}

func placesOf[T any](all []T, place func(T) warmboot.Place) []warmboot.Place {
	var places []warmboot.Place
	for _, one := range all {
		places = append(places, place(one))
	}
	return places
}

func testCounts(t *testing.T, s warmboot.Store) {
	ctx := t.Context()
	counts := func(want *warmboot.Counts) {
		t.Helper()
		got, err := s.Counts(ctx)
		expect.NoError(t, err)
		wantEqual(t, got, want)
	}
	counts(&warmboot.Counts{})
	img := newImage(t, s, "runtime")
	for i, c := range []*warmboot.Container{{State: warmboot.ContainerRunning, VMID: "vm-1"}, {State: warmboot.ContainerRunning, VMID: "vm-2"}, {State: warmboot.ContainerCreating}, {State: warmboot.ContainerStopped}} {
		c.ID, c.Name, c.RuntimeImageID, c.CreatedAt = warmboot.NewID(), fmt.Sprint("c", i), img.ID, now()
		expect.NoError(t, s.CreateContainer(ctx, c))
	}
	finish(t, s, newSnapshot(t, s, img))
	newSnapshot(t, s, img)
	newManager(t, s, "m")
	counts(&warmboot.Counts{
		Containers: map[warmboot.ContainerState]int{warmboot.ContainerRunning: 2, warmboot.ContainerCreating: 1, warmboot.ContainerStopped: 1}, VMs: 2,
		Snapshots: map[warmboot.SnapshotState]int{warmboot.SnapshotReady: 1, warmboot.SnapshotCreating: 1}, Managers: 1,
	})
}
