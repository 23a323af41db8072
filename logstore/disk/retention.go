package disk

import (
	"time"

	"github.com/millrace-io/millrace/logstore"
)

// retention is what the keeper remembers about the clock. A clock that jumped is
// not a reason to delete: after a jump of more than an hour records are kept
// until the process starts again.
type retention struct {
	wall    time.Time // last reading of the log's clock
	mono    time.Time // reading of the monotonic clock at the same moment
	jumped  bool
	started bool
}

const clockJumpMax = time.Hour

// now returns the time of day, and whether retention by time may go by it.
func (r *retention) now(clock Clock) (time.Time, bool) {
	wall, mono := clock.Now(), time.Now()
	if r.started {
		drift := wall.Round(0).Sub(r.wall.Round(0)) - mono.Sub(r.mono)
		r.jumped = r.jumped || drift > clockJumpMax || drift < -clockJumpMax
	}
	r.wall, r.mono, r.started = wall, mono, true
	return wall, !r.jumped
}

// retain drops the segments that a topic's retention no longer covers. Their
// files go away with the next checkpoint, which records the new start.
func (k *keeper) retain() {
	l := k.log
	was := k.retention.jumped
	now, trusted := k.retention.now(l.clock)
	if !trusted && !was {
		l.log.Error("clock jumped by more than an hour, retention by time is off until the next start")
	}
	l.mu.Lock()
	topics := l.allTopics()
	l.mu.Unlock()
	for _, t := range topics {
		config := t.config
		if config.Cleanup != logstore.CleanupDelete || config.RetentionTime == 0 && config.RetentionBytes == 0 {
			continue
		}
		oldest := int64(-1) << 62
		if config.RetentionTime > 0 && trusted {
			oldest = now.Add(-config.RetentionTime).UnixMilli()
		}
		for _, p := range t.parts {
			k.retainPartition(p, oldest)
		}
	}
}

func (k *keeper) retainPartition(p *partition, oldest int64) {
	p.mu.Lock()
	if p.gone != nil || len(p.segments) == 0 {
		p.mu.Unlock()
		return
	}
	total := int64(0)
	for _, s := range p.segments {
		total += s.size
	}
	n := 0
	for _, s := range p.segments[:len(p.segments)-1] {
		tooMuch := p.topic.config.RetentionBytes > 0 && total-s.size >= p.topic.config.RetentionBytes
		if !tooMuch && s.maxTime >= oldest {
			break
		}
		total -= s.size
		n++
	}
	dropped := p.segments[:n]
	last := p.last()
	expired := n == len(p.segments)-1 && last.maxTime < oldest && last.next > last.base
	if n > 0 {
		p.segments = p.segments[n:]
		p.start = p.segments[0].base
		p.wakeLocked()
	}
	p.mu.Unlock()
	for _, s := range dropped {
		k.discard(s)
	}
	if expired {
		k.expire(p, last, oldest)
	}
}

// discard lets the next checkpoint remove a segment's files.
func (k *keeper) discard(s *segment) {
	k.log.log.Info("segment is removed by retention", "file", s.path())
	k.log.files.drop(s)
	k.garbage.add(s.path(), s.file(indexSuffix), s.file(timeIndexSuffix))
}

// expire drops the last segment of a partition that nobody writes to any more.
// The committer does it, when nothing is on its way.
func (k *keeper) expire(p *partition, seg *segment, oldest int64) {
	l := k.log
	done := make(chan struct{})
	err := l.ask(&request{
		barrier: true,
		before: func() {
			if err := l.flushTail(p); err != nil {
				return // a later run sees it again
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			if p.gone != nil || p.last() != seg || seg.maxTime >= oldest || len(p.segments) != 1 {
				return
			}
			p.segments, p.start = nil, p.end
			p.next = cursor{offset: p.end}
			p.wakeLocked()
			k.discard(seg)
		},
		done: func(logstore.Result, error) { close(done) },
	})
	if err == nil {
		k.await(done)
	}
}

// await waits in the keeper for the committer, which may wait for a checkpoint.
func (k *keeper) await(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case c, ok := <-k.captures:
			if !ok {
				return
			}
			k.checkpoint(c)
		}
	}
}
