package store_test

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"warmboot"
	"warmboot/internal/expect"
	"warmboot/internal/store"
	"warmboot/internal/store/pgtest"
	"warmboot/internal/store/storetest"
)

func TestPostgresKeepsTheContract(t *testing.T) {
	t.Parallel()
	postgres.Need(t)
	storetest.Run(t, func(t *testing.T) warmboot.Store { return open(t, postgres.Database(t)) })
}

func newContainer(img *warmboot.Image, name string) *warmboot.Container {
	return &warmboot.Container{ID: warmboot.NewID(), Name: name, RuntimeImageID: img.ID, State: warmboot.ContainerCreating, CreatedAt: time.Now()}
}

// TestDatabaseGoneInTheMiddleOfCreates is a restart of PostgreSQL under load: whoever asks meanwhile is told so at once, and when
// it is back every create has happened exactly once, without anything of ours being started again.
func TestDatabaseGoneInTheMiddleOfCreates(t *testing.T) {
	t.Parallel()
	postgres.Need(t)
	for name, end := range map[string]func(*pgtest.Server) error{"stopped": (*pgtest.Server).Stop, "crashed": (*pgtest.Server).Crash} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			own, err := pgtest.Start()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := own.Close(); err != nil {
					t.Error(err)
				}
			})
			createThroughOutage(t, own, end)
		})
	}
}

func createThroughOutage(t *testing.T, own *pgtest.Server, end func(*pgtest.Server) error) {
	const creates, before = 50, 15
	ctx := t.Context()
	url := own.Database(t)
	s := open(t, url)
	img := image()
	if err := s.CreateImage(ctx, img); err != nil {
		t.Fatal(err)
	}
	work, stored, refused, back := make(chan *warmboot.Container, creates), make(chan struct{}, creates), make(chan error, creates), make(chan struct{})
	want := map[warmboot.ID]bool{}
	for i := range creates {
		c := newContainer(img, fmt.Sprintf("c%d", i))
		want[c.ID] = true
		work <- c
	}
	close(work)
	var workers sync.WaitGroup
	for range 8 {
		workers.Go(func() {
			for c := range work {
				for err := s.CreateContainer(ctx, c); err != nil; err = s.CreateContainer(ctx, c) {
					if warmboot.CodeOf(err) != warmboot.Unavailable {
						t.Errorf("create %s: %v, code %q", c.Name, err, warmboot.CodeOf(err))
						break
					}
					select {
					case refused <- err:
					default:
					}
					<-back
				}
				stored <- struct{}{}
			}
		})
	}
	for range before {
		<-stored
	}
	endErr := end(own)
	_, readErr := s.Images(ctx, warmboot.Page{})
	_, openErr := store.Open(ctx, store.Config{URL: url, Log: slog.New(slog.DiscardHandler)})
	resumeErr := own.Resume()
	close(back)
	if endErr != nil || resumeErr != nil {
		t.Fatal(endErr, resumeErr)
	}
	workers.Wait()
	for _, err := range []error{readErr, openErr} {
		if warmboot.CodeOf(err) != warmboot.Unavailable || !strings.Contains(err.Error(), "try again") {
			t.Errorf("without PostgreSQL: %v, code %q", err, warmboot.CodeOf(err))
		}
	}
	if len(refused) == 0 {
		t.Error("every create had ended before PostgreSQL did")
	}
	all, err := s.Containers(ctx, warmboot.ContainerFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range all {
		if !want[c.ID] {
			t.Errorf("container %s was stored twice, or nobody asked for it", c.Name)
		}
		delete(want, c.ID)
	}
	if len(want) != 0 {
		t.Errorf("%d of %d containers were lost", len(want), creates)
	}
}

// TestTwoManagersShareOneDatabase has both start on an empty database at once, and then count in the same container.
func TestTwoManagersShareOneDatabase(t *testing.T) {
	t.Parallel()
	url := postgres.Database(t)
	var managers [2]*store.Store
	var wg sync.WaitGroup
	for i := range managers {
		wg.Go(func() {
			var err error
			if managers[i], err = store.Open(t.Context(), store.Config{URL: url, Log: slog.New(slog.DiscardHandler)}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	t.Cleanup(func() {
		for _, m := range managers {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	img := image()
	if err := managers[0].CreateImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	c := newContainer(img, "web")
	if err := managers[1].CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	const writers, each = 4, 10
	for _, m := range managers {
		for range writers {
			wg.Go(func() {
				for range each {
					if _, err := m.UpdateContainer(t.Context(), c.ID, func(c *warmboot.Container) error { c.Error += "x"; return nil }); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	got, err := managers[0].Container(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(got.Error); n != len(managers)*writers*each {
		t.Errorf("%d of %d updates were kept", n, len(managers)*writers*each)
	}
}

// TestTwoManagersFinishTwoBuilds has both make another snapshot of one image ready.
func TestTwoManagersFinishTwoBuilds(t *testing.T) {
	t.Parallel()
	url := postgres.Database(t)
	managers := []*store.Store{open(t, url), open(t, url)}
	for range 20 {
		img := image()
		img.Name = string(img.ID)
		if err := managers[0].CreateImage(t.Context(), img); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i, m := range managers {
			snap := &warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: img.ID, Platform: strconv.Itoa(i), State: warmboot.SnapshotCreating, CreatedAt: time.Now()}
			if err := m.CreateSnapshot(t.Context(), snap); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				if _, err := m.FinishSnapshot(t.Context(), snap, []string{"0", "1"}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	all, err := managers[0].Snapshots(t.Context(), warmboot.SnapshotFilter{})
	if err != nil {
		t.Fatal(err)
	}
	ready := map[warmboot.ID]int{}
	for _, snap := range all {
		if snap.State == warmboot.SnapshotReady {
			ready[snap.RuntimeImageID]++
		}
	}
	for id, n := range ready {
		if n != 1 {
			t.Errorf("%d snapshots of image %s are ready", n, id)
		}
	}
	if len(ready) != 20 {
		t.Errorf("%d of 20 images have a ready snapshot", len(ready))
	}
}

// TestTwoManagersAtTheLimit has both create the last snapshot that there is room for, at once.
func TestTwoManagersAtTheLimit(t *testing.T) {
	t.Parallel()
	url := postgres.Database(t)
	managers := []*store.Store{open(t, url), open(t, url)}
	full := errors.New("full")
	for round := range 20 {
		var images []*warmboot.Image
		for range managers {
			img := image()
			img.Name = string(img.ID)
			expect.NoError(t, managers[0].CreateImage(t.Context(), img))
			images = append(images, img)
		}
		var wg sync.WaitGroup
		for i, m := range managers {
			snap := &warmboot.RuntimeSnapshot{ID: warmboot.NewID(), RuntimeImageID: images[i].ID, State: warmboot.SnapshotReady, CreatedAt: time.Now()}
			wg.Go(func() {
				if err := m.CreateSnapshot(t.Context(), snap, func(others []*warmboot.RuntimeSnapshot) error {
					if len(others) > round {
						return full
					}
					return nil
				}); err != nil && !errors.Is(err, full) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		all, err := managers[0].Snapshots(t.Context(), warmboot.SnapshotFilter{})
		expect.NoError(t, err)
		if len(all) != round+1 {
			t.Fatalf("there are %d snapshots where there was room for %d", len(all), round+1)
		}
	}
}

// TestTwoManagersWantTheSame has both create containers of one name, or with one port, at once. One gets it, and the other is told
// who has it.
func TestTwoManagersWantTheSame(t *testing.T) {
	t.Parallel()
	url := postgres.Database(t)
	managers := []*store.Store{open(t, url), open(t, url)}
	img := image()
	if err := managers[0].CreateImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		says string
		make func(round, manager int) *warmboot.Container
	}{
		"name": {"is taken by container", func(round, _ int) *warmboot.Container { return newContainer(img, fmt.Sprintf("c%d", round)) }},
		"port": {"is published by container", func(round, manager int) *warmboot.Container {
			c := newContainer(img, fmt.Sprintf("p%d-%d", round, manager))
			ip := []string{"127.0.0.1", "0.0.0.0"}[manager]
			c.Spec.PortMappings = []warmboot.PortMapping{{HostIP: netip.MustParseAddr(ip), HostPort: uint16(round + 1), ContainerPort: 80, Protocol: warmboot.TCP}}
			return c
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for round := range 100 {
				var errs [2]error
				var wg sync.WaitGroup
				for j, m := range managers {
					wg.Go(func() { errs[j] = m.CreateContainer(t.Context(), c.make(round, j)) })
				}
				wg.Wait()
				lost := cmp.Or(errs[0], errs[1])
				if (errs[0] == nil) == (errs[1] == nil) || warmboot.CodeOf(lost) != warmboot.Conflict || !strings.Contains(lost.Error(), c.says) {
					t.Fatalf("round %d: the managers were told %v and %v", round, errs[0], errs[1])
				}
			}
		})
	}
}

func TestMessagesOfAnyBytesAreStored(t *testing.T) {
	t.Parallel()
	s := open(t, postgres.Database(t))
	img := image()
	if err := s.CreateImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	c := newContainer(img, "web")
	if err := s.CreateContainer(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	got, err := s.UpdateContainer(t.Context(), c.ID, func(c *warmboot.Container) error { c.Error = "the guest said \x00\xff"; return nil })
	if err != nil || got.Error != "the guest said \uFFFD\uFFFD" {
		t.Errorf("stored %q, %v", got.Error, err)
	}
}

func TestOpenTellsWhatIsWrongWithAnAddress(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		code warmboot.Code
		says string
	}{
		"":                                     {warmboot.Invalid, "no database is named"},
		"mysql://localhost/x":                  {warmboot.Invalid, "mysql"},
		"postgres://u:secret@h:port/x":         {warmboot.Invalid, "cannot be understood"},
		"postgres://u:secret@" + nobody + "/x": {warmboot.Unavailable, "check that PostgreSQL runs"},
	}
	if url := postgres.URL("absent"); url != "" {
		cases[url] = struct {
			code warmboot.Code
			says string
		}{warmboot.Unavailable, "createdb"}
	}
	for url, want := range cases {
		_, err := store.Open(t.Context(), store.Config{URL: url, Log: slog.New(slog.DiscardHandler)})
		if warmboot.CodeOf(err) != want.code || !strings.Contains(err.Error(), want.says) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, code %q", url, err, warmboot.CodeOf(err))
		}
	}
}
