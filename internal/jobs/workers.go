package jobs

import (
	"context"
	"errors"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"warmboot"
	"warmboot/internal/controlplane"
)

// once makes a job unique among those that wait or run. One that is done does not count: the same may be wanted again. River records
// the end of a job a moment after it, so what a job asks for itself must differ from it in something that is unique.
func once(queue string) river.InsertOpts {
	return river.InsertOpts{Queue: queue, UniqueOpts: river.UniqueOpts{ByArgs: true, ByState: []rivertype.JobState{
		rivertype.JobStateAvailable, rivertype.JobStatePending, rivertype.JobStateRunning, rivertype.JobStateScheduled, rivertype.JobStateRetryable,
	}}}
}

// due is when a job is to be done.
type due struct {
	NotBefore time.Time `json:"not_before,omitzero"`
}

// shortWait is how long a worker waits itself for what is due soon: River looks for what was scheduled only every five seconds.
const shortWait = 10 * time.Second

// in makes a job due after a while.
func (d *due) in(after time.Duration) *river.InsertOpts {
	if after <= 0 {
		return nil
	}
	d.NotBefore = time.Now().Add(after)
	if after <= shortWait {
		return nil
	}
	return &river.InsertOpts{ScheduledAt: d.NotBefore}
}

// wait returns when the job is due.
func (d due) wait(ctx context.Context) error {
	// A clock that was set back must not keep a job waiting for the difference.
	timer := time.NewTimer(min(time.Until(d.NotBefore), shortWait))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

type buildArgs struct {
	Snapshot warmboot.ID `json:"snapshot"`
}

func (buildArgs) Kind() string                 { return "build_snapshot" }
func (buildArgs) InsertOpts() river.InsertOpts { return once(buildQueue) }

type buildWorker struct {
	river.WorkerDefaults[buildArgs]
	s Service
}

func (w *buildWorker) Work(ctx context.Context, job *river.Job[buildArgs]) error {
	return w.s.RunBuild(ctx, job.Args.Snapshot)
}

type rebuildArgs struct {
	due
	Image    warmboot.ID `json:"image" river:"unique"`
	Platform string      `json:"platform" river:"unique"`
	Old      warmboot.ID `json:"old,omitempty" river:"unique"`
	Attempt  int         `json:"attempt" river:"unique"`
	Snapshot warmboot.ID `json:"snapshot"`
}

func (rebuildArgs) Kind() string                 { return "rebuild_snapshot" }
func (rebuildArgs) InsertOpts() river.InsertOpts { return once(river.QueueDefault) }

type rebuildWorker struct {
	river.WorkerDefaults[rebuildArgs]
	s        Service
	roomLook time.Duration
}

func (w *rebuildWorker) Work(ctx context.Context, job *river.Job[rebuildArgs]) error {
	if err := job.Args.wait(ctx); err != nil {
		return err
	}
	err := w.s.RunRebuild(ctx, controlplane.Rebuild{Image: job.Args.Image, Platform: job.Args.Platform, Old: job.Args.Old, Attempt: job.Args.Attempt, Snapshot: job.Args.Snapshot})
	if errors.Is(err, controlplane.ErrNoRoom) {
		return river.JobSnooze(w.roomLook)
	}
	return err
}

type restartArgs struct {
	due
	Container warmboot.ID `json:"container" river:"unique"`
	Rebooted  bool        `json:"rebooted"`
	Count     int         `json:"count" river:"unique"`
}

func (restartArgs) Kind() string                 { return "restart_container" }
func (restartArgs) InsertOpts() river.InsertOpts { return once(river.QueueDefault) }

type restartWorker struct {
	river.WorkerDefaults[restartArgs]
	s Service
}

func (w *restartWorker) Work(ctx context.Context, job *river.Job[restartArgs]) error {
	if err := job.Args.wait(ctx); err != nil {
		return err
	}
	return w.s.RunRestart(ctx, controlplane.Restart{Container: job.Args.Container, Rebooted: job.Args.Rebooted, Count: job.Args.Count})
}

// daily makes a job one of a day, by UTC, whichever manager asks for it and however often.
func daily() river.InsertOpts {
	return river.InsertOpts{Queue: dailyQueue, MaxAttempts: 3, UniqueOpts: river.UniqueOpts{ByPeriod: dailyPeriod}}
}

type collectArgs struct{}

func (collectArgs) Kind() string                 { return "collect_garbage" }
func (collectArgs) InsertOpts() river.InsertOpts { return daily() }

type collectWorker struct {
	river.WorkerDefaults[collectArgs]
	s Service
}

func (w *collectWorker) Work(ctx context.Context, _ *river.Job[collectArgs]) error {
	_, err := w.s.CollectGarbage(ctx, false)
	return err
}

type scrubArgs struct{}

func (scrubArgs) Kind() string                 { return "scrub_snapshots" }
func (scrubArgs) InsertOpts() river.InsertOpts { return daily() }

type scrubWorker struct {
	river.WorkerDefaults[scrubArgs]
	s Service
}

func (w *scrubWorker) Work(ctx context.Context, _ *river.Job[scrubArgs]) error { return w.s.Scrub(ctx) }
