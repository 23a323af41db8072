package serve

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// acker tells a source what is durable, on a goroutine of its own. Positions
// that come while the source is busy are merged.
type acker struct {
	mu     sync.Mutex // guards the fields below
	merged positions
	ending bool
	wake   chan struct{}
	done   chan struct{}
	source sdk.Acknowledger
}

func newAcker() *acker { return &acker{wake: make(chan struct{}, 1)} }

// start begins to call the source, first with the stored positions.
func (a *acker) start(ctx context.Context, log *slog.Logger, source sdk.Source, stored []sdk.Position, abort context.CancelCauseFunc) {
	ack, ok := source.(sdk.Acknowledger)
	if !ok {
		return
	}
	a.source, a.done = ack, make(chan struct{})
	if len(stored) > 0 {
		a.add(stored)
	}
	go func() {
		defer close(a.done)
		if err := a.run(ctx, log); err != nil && ctx.Err() == nil {
			abort(err)
		}
	}()
}

// add takes positions that have become durable.
func (a *acker) add(ps []sdk.Position) {
	if a.source == nil {
		return
	}
	a.mu.Lock()
	for _, p := range ps {
		_ = a.merged.put(p) // was encoded before
	}
	a.mu.Unlock()
	a.kick()
}

func (a *acker) kick() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *acker) run(ctx context.Context, log *slog.Logger) error {
	for {
		select {
		case <-a.wake:
		case <-ctx.Done():
			return nil
		}
		a.mu.Lock()
		ps, ending := a.merged.take(), a.ending
		a.mu.Unlock()
		if len(ps) > 0 {
			if err := a.tell(ctx, log, ps); err != nil {
				return err
			}
		}
		if ending {
			return nil
		}
	}
}

// tell calls Acknowledged until it succeeds or fails for good.
func (a *acker) tell(ctx context.Context, log *slog.Logger, ps []sdk.Position) error {
	for n := 0; ; n++ {
		err := guard(log, "Acknowledged", func() error { return a.source.Acknowledged(ctx, ps) })
		if err == nil || ctx.Err() != nil {
			return nil //nolint:nilerr // the task has ended, which says enough
		}
		if !retriable(err) {
			return fmt.Errorf("acknowledge: %w", err)
		}
		log.WarnContext(ctx, "acknowledging is tried again", slog.Any(wire.LogErr, err))
		if err := sleep(ctx, pauseAfter(err, n)); err != nil {
			return nil //nolint:nilerr // the task has ended
		}
	}
}

// finish waits until the source was told everything.
func (a *acker) finish(ctx context.Context) error {
	if a.source == nil {
		return nil
	}
	a.mu.Lock()
	a.ending = true
	a.mu.Unlock()
	a.kick()
	select {
	case <-a.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
