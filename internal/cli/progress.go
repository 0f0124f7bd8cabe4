package cli

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// display shows on standard error what is being done: on a terminal as one line that changes, with the time since it began, and
// otherwise as one plain line for each step. It is safe for concurrent use.
type display struct {
	w     io.Writer
	start time.Time

	mu   sync.Mutex
	text string

	bars *mpb.Progress // nil if not on a terminal
	bar  *mpb.Bar
}

// newDisplay begins with a first step. quiet shows nothing at all. The display must be closed.
func (a *app) newDisplay(first string, quiet bool) *display {
	d := &display{w: a.Err, start: time.Now()}
	if quiet {
		d.w = io.Discard
	}
	if isTerminal(d.w) {
		d.bars = mpb.New(mpb.WithOutput(d.w), mpb.WithWidth(2), mpb.WithRefreshRate(100*time.Millisecond), mpb.WithAutoRefresh())
		d.bar = d.bars.New(0, mpb.SpinnerStyle().PositionLeft(), mpb.BarRemoveOnComplete(),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string {
				d.mu.Lock()
				defer d.mu.Unlock()
				return fmt.Sprintf("%5.1fs  %s", time.Since(d.start).Seconds(), d.text)
			})))
	}
	d.step(first)
	return d
}

// live reports whether the display is a line that changes.
func (d *display) live() bool { return d.bars != nil }

// step tells what is being done now.
func (d *display) step(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if text == d.text {
		return
	}
	d.text = text
	if !d.live() && text != "" {
		fmt.Fprintln(d.w, text)
	}
}

// progress is a Progress. On a terminal the fraction is shown too.
func (d *display) progress(step string, fraction float64) {
	if d.live() && fraction >= 0 {
		step = fmt.Sprintf("%3.0f %%  %s", min(fraction, 1)*100, step)
	}
	d.step(step)
}

// close takes the changing line away.
func (d *display) close() {
	if d.bars == nil {
		return
	}
	d.bar.Abort(true)
	d.bars.Wait()
	d.bars = nil
}

// isTerminal reports whether a stream of ours is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
