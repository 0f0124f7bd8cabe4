// Package jobs is the control plane's Queue (controlplane.Queue) on River: work that must be done although the manager that
// wants it may die before lies in the same database as everything else. Its workers are thin; they call the Service back.
//
// River looks for work every second, and at once for what its own process has queued. It is not told of jobs by the database
// (LISTEN, or the polling of a table twenty times a second on SQLite): a snapshot's build that begins a second later on another manager
// costs less than that.
package jobs

import (
	"cmp"
	"context"
	"database/sql"
	"log/slog"
	"sync"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"

	"warmboot"
	"warmboot/internal/controlplane"
	"warmboot/internal/telemetry"
)

// Config is what a Queue needs.
type Config struct {
	DB       *sql.DB // where writing is allowed; on SQLite one connection
	Postgres bool    // else SQLite
	Log      *slog.Logger
	Tracing  *telemetry.Tracing // nil: nothing is traced
	// DailyLook is how often it is looked whether the daily work is still to be done today. A machine that is off every night does it too. 10 minutes.
	DailyLook time.Duration
	// RoomLook is how often it is looked whether there is room by now for an automatic build that there was none for. 10 minutes.
	RoomLook time.Duration
}

// Queue is a controlplane.Queue. It takes work from New on, and does it between Start and Close.
type Queue struct {
	Config
	driver riverdriver.Driver[*sql.Tx]

	mu      sync.Mutex
	client  *river.Client[*sql.Tx] // inserts only, until Start
	started bool
}

var _ controlplane.Queue = (*Queue)(nil)

// Service is what the workers call.
type Service interface {
	ID() warmboot.ID
	RunBuild(ctx context.Context, snapshot warmboot.ID) error
	RunRebuild(ctx context.Context, r controlplane.Rebuild) error
	RunRestart(ctx context.Context, r controlplane.Restart) error
	CollectGarbage(ctx context.Context, dryRun bool) ([]controlplane.Collected, error)
	Scrub(ctx context.Context) error
}

// New makes the queue's tables, or brings them up to date.
func New(ctx context.Context, c Config) (*Queue, error) {
	c.DailyLook, c.RoomLook = cmp.Or(c.DailyLook, 10*time.Minute), cmp.Or(c.RoomLook, 10*time.Minute)
	q := &Queue{Config: c, driver: polled{riversqlite.New(c.DB)}}
	if c.Postgres {
		q.driver = riverdatabasesql.New(c.DB)
	}
	if err := q.migrate(ctx); err != nil {
		return nil, queueError("open job queue", err)
	}
	client, err := river.NewClient(q.driver, &river.Config{Logger: q.riverLog(), Hooks: []rivertype.Hook{&dueAtOnce{}}})
	if err != nil {
		return nil, queueError("open job queue", err)
	}
	q.client = client
	return q, nil
}

// polled is River's SQLite driver without its listener, so that River wakes its workers itself for what its own process has queued.
type polled struct{ *riversqlite.Driver }

// SupportsListener is what River asks.
func (polled) SupportsListener() bool { return false }

// migrateLock is the key of the lock under which one manager after the other brings the tables up to date: "wbjobs" in ASCII.
const migrateLock = 0x77626a6f6273

func (q *Queue) migrate(ctx context.Context) error {
	m, err := rivermigrate.New(q.driver, &rivermigrate.Config{Logger: q.riverLog()})
	if err != nil {
		return err
	}
	if q.Postgres {
		conn, err := q.DB.Conn(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close() }()
		if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, int64(migrateLock)); err != nil {
			return err
		}
		defer func() {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, int64(migrateLock)) // a connection that broke has given it back
		}()
	}
	_, err = m.Migrate(ctx, rivermigrate.DirectionUp, nil)
	return err
}

// riverLog keeps River's routine out of the log.
func (q *Queue) riverLog() *slog.Logger {
	return slog.New(quiet{q.Log.Handler()}).With("component", "jobs")
}

// quiet passes on warnings and errors only.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && q.Handler.Enabled(ctx, l)
}
func (q quiet) WithAttrs(a []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(a)} }
func (q quiet) WithGroup(name string) slog.Handler   { return quiet{q.Handler.WithGroup(name)} }

// The queues, so that a long build keeps nothing else waiting, and how much of each is done at once by one manager.
const (
	buildQueue  = "builds"
	dailyQueue  = "daily"
	buildsMax   = 4
	dailyMax    = 1
	othersMax   = 16
	dailyPeriod = 24 * time.Hour
)

// Start begins to work for a Service.
func (q *Queue) Start(ctx context.Context, s Service) error {
	const op = "start job queue"
	workers := river.NewWorkers()
	river.AddWorker(workers, &buildWorker{s: s})
	river.AddWorker(workers, &rebuildWorker{s: s, roomLook: q.RoomLook})
	river.AddWorker(workers, &restartWorker{s: s})
	river.AddWorker(workers, &collectWorker{s: s})
	river.AddWorker(workers, &scrubWorker{s: s})
	daily := func(args river.JobArgs) *river.PeriodicJob {
		return river.NewPeriodicJob(river.PeriodicInterval(q.DailyLook), func() (river.JobArgs, *river.InsertOpts) { return args, nil }, nil)
	}
	client, err := river.NewClient(q.driver, &river.Config{
		ID: string(s.ID()), Logger: q.riverLog(), Workers: workers, PollOnly: true, JobTimeout: -1,
		Queues: map[string]river.QueueConfig{
			river.QueueDefault: {MaxWorkers: othersMax}, buildQueue: {MaxWorkers: buildsMax}, dailyQueue: {MaxWorkers: dailyMax},
		},
		PeriodicJobs:                []*river.PeriodicJob{daily(collectArgs{}), daily(scrubArgs{})},
		CompletedJobRetentionPeriod: 2 * dailyPeriod, // what was done today is known all day
		RetryPolicy:                 retrySoon{},
		Middleware:                  []rivertype.Middleware{&traced{tracing: q.Tracing}},
		Hooks:                       []rivertype.Hook{&dueAtOnce{}},
	})
	if err != nil {
		return queueError(op, err)
	}
	if err := client.Start(context.WithoutCancel(ctx)); err != nil {
		return queueError(op, err)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.client, q.started = client, true
	return nil
}

// Close ends what is being worked at. What was not finished is worked at by another manager, or after the next start.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	client, started := q.client, q.started
	q.mu.Unlock()
	if !started {
		return nil
	}
	return queueError("end job queue", client.StopAndCancel(ctx))
}

func (q *Queue) get() *river.Client[*sql.Tx] {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.client
}

// retrySoon tries a job that failed again after 1 s, 2 s, 4 s, … up to a minute: it failed because the store or a host was away.
type retrySoon struct{}

func (retrySoon) NextRetry(job *rivertype.JobRow) time.Time {
	return time.Now().Add(min(time.Second<<min(len(job.Errors), 10), time.Minute))
}

// Build implements controlplane.Queue.
func (q *Queue) Build(ctx context.Context, snapshot warmboot.ID) error {
	return q.insert(ctx, buildArgs{Snapshot: snapshot}, nil)
}

// Rebuild implements controlplane.Queue.
func (q *Queue) Rebuild(ctx context.Context, r controlplane.Rebuild, after time.Duration) error {
	args := rebuildArgs{Image: r.Image, Platform: r.Platform, Old: r.Old, Attempt: r.Attempt, Snapshot: r.Snapshot}
	opts := args.in(after)
	return q.insert(ctx, args, opts)
}

// Restart implements controlplane.Queue.
func (q *Queue) Restart(ctx context.Context, r controlplane.Restart, after time.Duration) error {
	args := restartArgs{Container: r.Container, Rebooted: r.Rebooted, Count: r.Count}
	opts := args.in(after)
	return q.insert(ctx, args, opts)
}

func (q *Queue) insert(ctx context.Context, args river.JobArgs, opts *river.InsertOpts) error {
	if _, err := q.get().Insert(ctx, args, withTrace(ctx, opts)); err != nil {
		return queueError("queue job", err)
	}
	return nil
}

// Rescue implements controlplane.Queue. River itself waits an hour before it takes a job for stuck, because it knows nothing of who
// lives; the managers do.
func (q *Queue) Rescue(ctx context.Context, alive []warmboot.ID) error {
	const op = "rescue jobs"
	lives := map[string]bool{}
	for _, id := range alive {
		lives[string(id)] = true
	}
	client := q.get()
	params := river.NewJobListParams().States(rivertype.JobStateRunning).First(1000)
	for {
		res, err := client.JobList(ctx, params)
		if err != nil {
			return queueError(op, err)
		}
		now := time.Now().UTC()
		rescue := &riverdriver.JobRescueManyParams{StuckHorizon: now}
		for _, job := range res.Jobs {
			if n := len(job.AttemptedBy); n > 0 && !lives[job.AttemptedBy[n-1]] {
				rescue.ID = append(rescue.ID, job.ID)
				rescue.Error = append(rescue.Error, []byte(`{"at":"`+now.Format(time.RFC3339)+`","attempt":1,"error":"its manager has died","trace":""}`))
				rescue.FinalizedAt = append(rescue.FinalizedAt, nil)
				rescue.ScheduledAt = append(rescue.ScheduledAt, now)
				rescue.State = append(rescue.State, string(rivertype.JobStateAvailable))
			}
		}
		if len(rescue.ID) > 0 {
			q.Log.Warn("Jobs of managers that have died are done again", "jobs", len(rescue.ID))
			if _, err := q.driver.GetExecutor().JobRescueMany(ctx, rescue); err != nil {
				return queueError(op, err)
			}
		}
		if len(res.Jobs) < 1000 || res.LastCursor == nil {
			return nil
		}
		params = params.After(res.LastCursor)
	}
}

// Depth counts the jobs that wait or run, by state: "available", "running", "scheduled" for later, "retryable" after a failure.
func (q *Queue) Depth(ctx context.Context) (map[string]int, error) {
	all, err := q.driver.GetExecutor().JobCountByAllStates(ctx, &riverdriver.JobCountByAllStatesParams{})
	if err != nil {
		return nil, queueError("count jobs", err)
	}
	depth := map[string]int{}
	for _, state := range []rivertype.JobState{rivertype.JobStateAvailable, rivertype.JobStateRunning, rivertype.JobStateScheduled, rivertype.JobStateRetryable} {
		depth[string(state)] = all[state]
	}
	return depth, nil
}

// queueError says that the queue's database did not do what it should. It answers again when the database does.
func queueError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &warmboot.Error{Code: warmboot.Unavailable, Op: op, Msg: "the database of the job queue did not answer", Err: err}
}
