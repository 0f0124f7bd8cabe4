package jobs

import (
	"context"
	"encoding/json"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"warmboot/internal/telemetry"
	"warmboot/internal/telemetry/span"
)

// metadata is what a job has beside its arguments, which say whether two jobs are the same.
type metadata struct {
	Traceparent string `json:"traceparent,omitempty"` // of whoever has queued it
}

// withTrace notes in a job what it is a part of.
func withTrace(ctx context.Context, opts *river.InsertOpts) *river.InsertOpts {
	parent := span.Header(ctx)
	if parent == "" {
		return opts
	}
	if opts == nil {
		opts = &river.InsertOpts{}
	}
	text, err := json.Marshal(metadata{parent})
	if err != nil {
		panic(err) // a string
	}
	opts.Metadata = text
	return opts
}

// traced makes each job a span below that of whoever has queued it, in whichever process that was.
type traced struct {
	river.WorkerMiddlewareDefaults
	tracing *telemetry.Tracing
}

// Work implements rivertype.WorkerMiddleware.
func (t *traced) Work(ctx context.Context, job *rivertype.JobRow, do func(context.Context) error) (err error) {
	var m metadata
	_ = json.Unmarshal(job.Metadata, &m) // a job without it begins a trace
	ctx, s := t.tracing.Start(span.Remote(ctx, m.Traceparent), "job: "+job.Kind, "job_id", job.ID, "job_attempt", job.Attempt)
	defer func() { s.End(err) }()
	return do(ctx)
}
