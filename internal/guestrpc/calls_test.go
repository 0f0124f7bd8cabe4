package guestrpc

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"warmboot"
	guestv1 "warmboot/gen/guest/v1"
)

// telling is a guest that says what its clock shows, and how often it was asked. late is how long its n-th answer takes, and behind what its
// clock lags by that was just set.
func telling(t *testing.T, late func(n int64) time.Duration, behind time.Duration) (*Client, *atomic.Int64) {
	t.Helper()
	var asked atomic.Int64
	return connect(t, answering(func(req *guestv1.Request) *guestv1.Response {
		clock := time.Unix(0, req.GetReidentify().GetUnixNanos()).Add(-behind)
		select { // as a guest that has no processor
		case <-time.After(late(asked.Add(1))):
		case <-t.Context().Done():
		}
		return &guestv1.Response{Result: &guestv1.Response_Reidentify{Reidentify: &guestv1.ReidentifyResponse{UnixNanos: clock.UnixNano()}}}
	})), &asked
}

func reidentify(ctx context.Context, c *Client) error {
	_, err := c.Reidentify(ctx, &guestv1.ReidentifyRequest{})
	return err
}

func atOnce(int64) time.Duration { return 0 }

func TestClockThatIsNotSet(t *testing.T) {
	t.Parallel()
	for _, behind := range []time.Duration{time.Hour, -time.Hour} {
		c, asked := telling(t, atOnce, behind)
		wantCode(t, reidentify(t.Context(), c), warmboot.Internal)
		if n := asked.Load(); n != clockAttempts {
			t.Errorf("the guest was asked %d times, want %d", n, clockAttempts)
		}
	}
}

// A host that is too busy to set a clock in time tries for as long as it is given.
func TestClockOfASlowGuest(t *testing.T) {
	t.Parallel()
	const slow = MaxClockError + 20*time.Millisecond
	c, asked := telling(t, func(n int64) time.Duration {
		if n <= clockAttempts+1 {
			return slow
		}
		return 0
	}, 0)
	if err := reidentify(t.Context(), c); err != nil {
		t.Error(err)
	}
	if n := asked.Load(); n != clockAttempts+2 {
		t.Errorf("the guest was asked %d times, want %d", n, clockAttempts+2)
	}
	never, _ := telling(t, func(int64) time.Duration { return slow }, 0)
	ctx, cancel := context.WithTimeout(t.Context(), 2*slow)
	defer cancel()
	wantCode(t, reidentify(ctx, never), warmboot.Timeout)
}
