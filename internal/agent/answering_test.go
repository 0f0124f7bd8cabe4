package agent

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"
)

func TestAGuestThatAnswersNoMoreIsGivenUp(t *testing.T) {
	t.Parallel()
	const limit = 20 * time.Millisecond
	pid := os.Getpid()
	for name, answers := range map[string]int{"never": 0, "a few times": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked := 0
			ctx, stop := whileAnswering(t.Context(), pid, limit, func(ctx context.Context) error {
				if asked++; asked <= answers {
					return errors.New("the connection was lost") // that is something to go by, too
				}
				<-ctx.Done()
				return ctx.Err()
			})
			defer stop()
			<-ctx.Done()
			if asked != answers+1 || !errors.Is(context.Cause(ctx), errSilent) {
				t.Errorf("it was asked %d times, and ended with %v", asked, context.Cause(ctx))
			}
		})
	}
	t.Run("until it is done", func(t *testing.T) {
		t.Parallel()
		asked, enough := 0, make(chan struct{})
		ctx, stop := whileAnswering(t.Context(), pid, limit, func(context.Context) error {
			if asked++; asked == 5 {
				close(enough)
			}
			return nil
		})
		<-enough
		if ctx.Err() != nil {
			t.Errorf("it was given up: %v", context.Cause(ctx))
		}
		stop()
		if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("at the end: %v", err)
		}
	})
}
