package snapshot

import (
	"context"
	"time"

	"warmboot"
)

// Scrub reads every file of the artifact, at most rate bytes a second, and compares it with what was written. Unlike Verifier it trusts
// nothing that was found out earlier. A difference is a Corrupt error that names the file.
func (a *Artifact) Scrub(ctx context.Context, rate int64) error {
	const op = "scrub snapshot"
	p := &pace{ctx: ctx, rate: rate, start: time.Now()}
	for _, name := range []string{StateFile, DataFile, MemoryFile} {
		got, err := digestAt(a.File(name), p.wait)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return &warmboot.Error{Code: warmboot.Corrupt, Op: op, Msg: "a file of the snapshot is missing or unreadable", Err: err}
		}
		if want := a.Metadata.Files[name]; got != want {
			return warmboot.Errorf(warmboot.Corrupt, op, "%s is not what was written: it has %d bytes and digest %s, it must have %d and %s", a.File(name), got.Size, got.Digest, want.Size, want.Digest)
		}
	}
	return nil
}

// pace holds reading to a rate.
type pace struct {
	ctx   context.Context
	rate  int64 // bytes a second
	start time.Time
	read  int64
}

// wait returns once n more bytes may have been read.
func (p *pace) wait(n int) error {
	p.read += int64(n)
	ahead := time.Duration(float64(p.read)/float64(p.rate)*float64(time.Second)) - time.Since(p.start)
	if ahead < 10*time.Millisecond { // shorter waits cost more than they spread
		return p.ctx.Err()
	}
	timer := time.NewTimer(ahead)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}
