package disk

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/millrace-io/millrace/logstore"
)

// request is a unit on its way.
type request struct {
	from    *identity
	epoch   int64 // of the writer, 0 for the engine's own
	unit    *logstore.Unit
	parts   []*partition // of unit.Batches
	bytes   int64
	bounded bool // counts in the queue's budget
	done    func(logstore.Result, error)

	// Of the engine's own requests.
	table   []tableRecord // records for the internal topics
	barrier bool          // commits when nothing else is on its way
	before  func()        // the committer calls it when the barrier is reached
	apply   func()        // the committer calls it when the unit is durable, before done

	// The committer's.
	entries []entry
	weight  int  // bytes of its frame, at most
	chosen  bool // in the group that is being committed
	failure error

	waiting atomic.Int32 // bypass jobs not ended
	ioErr   error        // why one of them failed; set under the log's mutex, read when waiting is 0
}

// queueBudget bounds the bytes that were accepted and are not durable yet. Who
// does not fit waits in line. It is guarded by the log's mutex.
type queueBudget struct {
	limit, used int64
	ended       error
	line        []*queueWaiter
}

type queueWaiter struct {
	bytes   int64
	granted bool
	ready   chan struct{}
}

// take asks for n bytes and returns nil when it got them, or the place in line.
// More than the limit is granted to one that is alone.
func (q *queueBudget) take(n int64) *queueWaiter {
	if len(q.line) == 0 && q.fits(n) {
		q.used += n
		return nil
	}
	w := &queueWaiter{bytes: n, ready: make(chan struct{})}
	q.line = append(q.line, w)
	return w
}

func (q *queueBudget) fits(n int64) bool { return q.used == 0 || q.used+n <= q.limit }

func (q *queueBudget) give(n int64) {
	q.used -= n
	for len(q.line) > 0 && q.fits(q.line[0].bytes) {
		w := q.line[0]
		q.line = q.line[1:]
		q.used += w.bytes
		w.granted = true
		close(w.ready)
	}
}

// end lets everybody in line go.
func (q *queueBudget) end(err error) {
	if q.ended == nil {
		q.ended = err
	}
	for _, w := range q.line {
		close(w.ready)
	}
	q.line = nil
}

// leave gives up a place in line, or what was granted meanwhile.
func (q *queueBudget) leave(w *queueWaiter) {
	if w.granted {
		q.give(w.bytes)
		return
	}
	for i, other := range q.line {
		if other == w {
			q.line = append(q.line[:i], q.line[i+1:]...)
			return
		}
	}
}

// admit waits until n bytes fit into the queue. The log's mutex is held, and
// given up while waiting.
func (l *Log) admit(ctx context.Context, n int64) error {
	if err := l.unusable(); err != nil {
		return err
	}
	w := l.queued.take(n)
	if w == nil {
		return nil
	}
	l.metrics.blocked.Inc()
	l.mu.Unlock()
	var err error
	select {
	case <-w.ready:
	case <-ctx.Done():
		err = fmt.Errorf("wait for room in the log's queue: %w", ctx.Err())
	}
	l.mu.Lock()
	switch {
	case err != nil:
		l.queued.leave(w)
		return err
	case !w.granted:
		return l.unusable()
	}
	if err := l.unusable(); err != nil {
		l.queued.give(n)
		return err
	}
	return nil
}

// unusable says why nothing is accepted any more. The log's mutex is held.
func (l *Log) unusable() error {
	if l.failed != nil {
		return l.failed
	}
	if l.closed {
		return logstore.ErrClosed
	}
	return nil
}

// enqueue hands an accepted request to the committer. The log's mutex is held.
func (l *Log) enqueue(r *request) {
	r.from.pending++
	l.queue = append(l.queue, r)
	l.work.Signal()
}
