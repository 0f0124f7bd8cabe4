package jobs

import (
	"context"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"
)

// dueAtOnce makes a job that is due now due by every clock. Were it due at the time of its insertion, a clock that is set back before a worker
// comes to it would have it wait for the difference. (InsertOpts.ScheduledAt is no way to say that: a job that has it waits for the scheduler, which
// comes round every five seconds.)
type dueAtOnce struct{ river.HookDefaults }

var _ rivertype.HookInsertBegin = &dueAtOnce{}

// InsertBegin implements rivertype.HookInsertBegin.
func (*dueAtOnce) InsertBegin(_ context.Context, params *rivertype.JobInsertParams) error {
	if params.State == rivertype.JobStateAvailable {
		long := time.Unix(1, 0).UTC()
		params.ScheduledAt = &long
	}
	return nil
}
