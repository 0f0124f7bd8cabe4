package controlplane

import (
	"context"
	"time"

	"warmboot"
)

// Queue keeps work that must be done although the manager that wants it may die before. It calls the Service back: RunBuild, RunRebuild
// and RunRestart, and CollectGarbage and Scrub once a day in one of the managers. What is asked for again while it waits or runs is
// done once.
type Queue interface {
	Build(ctx context.Context, snapshot warmboot.ID) error
	Rebuild(ctx context.Context, r Rebuild, after time.Duration) error
	Restart(ctx context.Context, r Restart, after time.Duration) error
	// Rescue lets what managers were working at that are not alive any more be done by others.
	Rescue(ctx context.Context, alive []warmboot.ID) error
}

// Rebuild is an automatic build of a snapshot.
type Rebuild struct {
	Image    warmboot.ID `json:"image"`
	Platform string      `json:"platform"` // that the snapshot is to be for; "": whichever
	// Old is the snapshot to replace; "" for an image that has none. Nothing is built once it is gone.
	Old     warmboot.ID `json:"old,omitempty"`
	Attempt int         `json:"attempt"` // RuntimeSnapshot.Attempt of what will be built
	// Snapshot is the id that the new snapshot will have: one that the store knows was built by a job whose end the queue was not told of.
	Snapshot warmboot.ID `json:"snapshot"`
}

// Restart starts a stopped container again, if its restart policy still wants that.
type Restart struct {
	Container warmboot.ID `json:"container"`
	Rebooted  bool        `json:"rebooted"` // its host was booted since it ran
	Count     int         `json:"count"`    // how many restarts there were before this one
}
