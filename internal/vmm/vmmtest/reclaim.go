package vmmtest

import (
	"fmt"
	"os"
	"testing"

	"warmboot"
	"warmboot/internal/expect"
	"warmboot/internal/vmm"
)

// reclaim takes memory back from guests that have used and freed it: one that has booted, and one that was restored.
func (e *env) reclaim(t *testing.T) {
	if e.BalloonMiB == 0 {
		r, ok := e.restore(t).(vmm.MemoryReclaimer)
		if !ok {
			t.Logf("%s takes no memory back from its machines", e.driver.Name())
			return
		}
		_, err := r.Reclaim(e.context(t), 0)
		expect.Code(t, err, warmboot.Conflict)
		return
	}
	spec := e.spec
	spec.MemoryMiB = e.BalloonMiB
	spec.ID, spec.Dir = e.place(t)
	spec.MemoryFile = spec.Dir + ".memory"
	m, err := e.driver.Create(e.context(t), spec)
	if err != nil {
		t.Fatal(err)
	}
	e.stopAtEnd(t, m)
	e.reclaimFrom(t, m)
	if err := m.Pause(e.context(t)); err != nil {
		t.Fatal(err)
	}
	snap, err := m.Snapshot(e.context(t), vmm.SnapshotOptions{StateFile: spec.Dir + ".state"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Stop(e.context(t), 0); err != nil {
		t.Fatal(err)
	}
	e.reclaimFrom(t, e.restoreFrom(t, snap))
}

// reclaimFrom takes so much from a guest that it must be memory which it has used: then the guest has less, the VMM's process has become smaller,
// and what is given back can be used again.
func (e *env) reclaimFrom(t *testing.T, m vmm.Machine) {
	t.Helper()
	r, ok := m.(vmm.MemoryReclaimer)
	if !ok {
		t.Fatalf("%s takes no memory back from its machines", e.driver.Name())
	}
	ctx := e.context(t)
	mib := e.BalloonMiB - 96 // a guest needs some to go on
	e.mustAsk(t, m, fmt.Sprintf("fill %d 5", e.BalloonMiB/2), "ok")
	used := resident(t, m.Handle().PID)
	e.mustAsk(t, m, "release", "ok")
	free := e.number(t, m, "free")
	got, err := r.Reclaim(ctx, mib)
	if err != nil || got != mib {
		t.Errorf("reclaimed %d MiB of %d: %v", got, mib, err)
	}
	left, size := e.number(t, m, "free"), resident(t, m.Handle().PID)
	t.Logf("reclaimed %d MiB: the guest has %d MiB free and had %d, the process has %d MiB and had %d", got, left, free, size, used)
	if left > free-mib*3/4 {
		t.Errorf("the guest has %d MiB free and had %d, though it does without %d", left, free, mib)
	}
	if size > used-e.BalloonMiB/8 {
		t.Errorf("the process has %d MiB and had %d, though its guest does without %d", size, used, mib)
	}
	if got, err := r.Reclaim(ctx, 0); err != nil || got != 0 {
		t.Errorf("gave back all but %d MiB: %v", got, err)
	}
	if again := e.number(t, m, "free"); again < free-mib/4 {
		t.Errorf("the guest has %d MiB free and had %d, though all was given back", again, free)
	}
	e.mustAsk(t, m, fmt.Sprintf("fill %d 6", e.BalloonMiB/2), "ok")
	e.mustAsk(t, m, "read", "6")
}

// resident is how much of a process is in the host's memory, in MiB.
func resident(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all, pages int
	if _, err := fmt.Sscan(string(text), &all, &pages); err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize() >> 20
}
