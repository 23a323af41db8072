package serve

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/millrace-io/millrace/plugins/internal/pb"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// The pauses between attempts are Connect's: the first one short enough not to
// be noticed, the last one long enough not to bother a system that is down.
const (
	firstPause = 300 * time.Millisecond
	lastPause  = 60 * time.Second
	// A system that is away is asked again at least this often: records should
	// move within 15 s of its return.
	longestAway = 10 * time.Second
)

// backoff repeats what can pass, by errors.retry.timeout and
// errors.retry.delay.max.ms.
type backoff struct {
	timeout  time.Duration // 0: one attempt; negative: no end
	delayMax time.Duration
}

func newBackoff(open *pb.OpenTask) backoff {
	b := backoff{timeout: time.Duration(open.GetRetryTimeoutNs()), delayMax: time.Duration(open.GetRetryDelayMaxNs())}
	if b.delayMax <= 0 {
		b.delayMax = lastPause
	}
	return b
}

// pause returns how long to wait after attempt number n, from 0.
func (b backoff) pause(n int) time.Duration {
	d := firstPause << min(n, 20)
	if d > b.delayMax {
		return rand.N(b.delayMax) //nolint:gosec // spreads load, no secret
	}
	return d
}

// do calls f until it succeeds, fails for good, or the time is up.
func (b backoff) do(ctx context.Context, d *door, f func() error) error {
	start := time.Now()
	for n := 0; ; n++ {
		err := f()
		if err == nil || !retriable(err) || b.timeout == 0 {
			return err
		}
		wait := b.pause(n)
		if b.timeout > 0 {
			left := b.timeout - time.Since(start)
			if left <= 0 {
				return err
			}
			wait = min(wait, left)
		}
		d.count(counters{retries: 1})
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// retriable reports whether an error asks for another attempt.
func retriable(err error) bool {
	e, ok := errors.AsType[*sdk.Error](err)
	return ok && e.Code == sdk.Unavailable
}

// pauseAfter is how long to wait after a Retry: as long as it says, or longer
// and longer.
func pauseAfter(err error, n int) time.Duration {
	if e, ok := errors.AsType[*sdk.Error](err); ok && e.After > 0 {
		return e.After
	}
	return min(firstPause<<min(n, 20), longestAway)
}

// sleep waits; it returns early with ctx's error.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
