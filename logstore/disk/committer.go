package disk

import (
	"errors"
	"fmt"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// committer is the one goroutine that places units and commits them. It takes
// whatever is queued: one write and one sync of the journal commit it, then
// everybody in it is told. There is no timer: while a sync runs, the next group
// gathers.
//
// A unit is placed when it leaves the queue: from then on its batches have their
// offsets and positions. It waits while its large batches are on their way to
// their segments, and so does every unit behind it of the same writer or on one
// of its partitions; others pass.
type committer struct {
	log     *Log
	held    []*request // taken from the queue, behind a barrier
	pending []*request // placed and not committed, in the order of acceptance
	group   []*request // the ones to commit now
	more    bool       // the group was full, others could go too
	round   uint64

	dirty  []*partition // published since the last capture
	sealed []*segment   // no longer the last of their partition

	frames  []byte
	entries []entry
	builder recordbatch.Builder
	arena   []byte // bytes of the group's table records
}

func (c *committer) run() {
	for c.step() {
	}
	if c.log.Err() != nil {
		c.giveUp()
	}
	c.lastCapture()
}

// step does one round and reports whether there will be another.
func (c *committer) step() bool {
	l := c.log
	l.mu.Lock()
	for l.failed == nil && !c.due() {
		l.work.Wait()
	}
	if l.failed != nil {
		l.mu.Unlock()
		return false
	}
	l.ioDone = false
	c.held = append(c.held, l.queue...)
	clear(l.queue)
	l.queue = l.queue[:0]
	last := l.closed
	l.mu.Unlock()

	c.placeHeld()
	c.commitReady()
	if c.anyFailed() {
		c.abort()
	}
	c.maybeCapture()
	return !last || len(c.held)+len(c.pending) > 0
}

// due reports whether there is something to do. The log's mutex is held.
func (c *committer) due() bool {
	l := c.log
	return len(l.queue) > 0 || l.ioDone || c.more || l.ckptWant && !l.ckptRuns ||
		len(c.held) > 0 && len(c.pending) == 0 || l.closed && len(c.held)+len(c.pending) == 0
}

// placeHeld places what was taken from the queue, up to a barrier that is not
// reached.
func (c *committer) placeHeld() {
	n := 0
	for _, r := range c.held {
		if r.barrier {
			if len(c.pending) > 0 {
				break
			}
			if r.before != nil {
				r.before()
			}
		}
		r.failure = c.place(r)
		c.pending = append(c.pending, r)
		n++
		if r.barrier {
			break
		}
	}
	rest := copy(c.held, c.held[n:])
	clear(c.held[rest:])
	c.held = c.held[:rest]
}

// commitReady commits what waits for nothing.
func (c *committer) commitReady() {
	c.choose()
	if len(c.group) == 0 {
		return
	}
	if err := c.commit(); err != nil {
		c.log.fail(err)
	}
}

// choose picks the group: the pending units that wait for nothing, up to a limit
// of bytes.
func (c *committer) choose() {
	c.round++
	c.group, c.more = c.group[:0], false
	weight, limit := 0, c.groupLimit()
	for _, r := range c.pending {
		full := len(c.group) > 0 && weight+r.weight > limit
		if full || c.blocked(r) {
			c.more = c.more || full
			r.from.mark = c.round
			for _, p := range r.parts {
				p.mark = c.round
			}
			continue
		}
		weight += r.weight
		r.chosen = true
		c.group = append(c.group, r)
	}
}

func (c *committer) groupLimit() int {
	return int(min(maxGroupBytes, c.log.journal.size/4))
}

// blocked reports whether r waits: for its own bytes, or for a unit before it.
func (c *committer) blocked(r *request) bool {
	if r.failure != nil || r.waiting.Load() > 0 || r.ioErr != nil || r.from.mark == c.round {
		return true
	}
	for _, p := range r.parts {
		if p.mark == c.round {
			return true
		}
	}
	return false
}

// commit makes the group durable and tells everybody. An error stops the log; a
// unit that does not get its space only has its failure set.
func (c *committer) commit() error {
	l := c.log
	c.arena = c.arena[:0]
	for _, r := range c.group {
		if err := c.placeTables(r); err != nil {
			r.failure, r.chosen = err, false
			c.unchooseBehind(r)
			break
		}
	}
	size := c.choiceSize()
	if size == 0 {
		return c.publishChosen()
	}
	if err := c.makeRoom(size); err != nil {
		return c.refuseGroup(err)
	}
	j := l.journal
	j.wrap(size)
	c.frames = c.frames[:0]
	for _, r := range c.group {
		if r.chosen && len(r.entries) > 0 {
			head := frame{lap: j.lap, sequence: j.sequence, durable: j.durable, logID: j.logID}
			c.frames = appendFrame(c.frames, head, r.entries)
			j.sequence++
		}
	}
	began := l.clock.Now()
	if err := j.write(c.frames); err != nil {
		return err
	}
	l.metrics.committed(len(c.group), len(c.frames), l.clock.Now().Sub(began))
	return c.publishChosen()
}

// unchooseBehind takes the units behind r out of the group: they have no records
// in the tables yet, and may be on its partitions.
func (c *committer) unchooseBehind(r *request) {
	behind := false
	for _, other := range c.group {
		if behind {
			other.chosen = false
			c.more = true
		}
		behind = behind || other == r
	}
}

// choiceSize is the size of the group's frames.
func (c *committer) choiceSize() int64 {
	size := 0
	for _, r := range c.group {
		if !r.chosen || len(r.entries) == 0 {
			continue
		}
		inline := 0
		for i := range r.entries {
			if !r.entries[i].bypass {
				inline += r.entries[i].size()
			}
		}
		size += frameSize(len(r.entries), inline)
	}
	return int64(size)
}

// refuseGroup fails the chosen units when there is no space for their frames,
// and returns every other error.
func (c *committer) refuseGroup(err error) error {
	if !errors.Is(err, logstore.ErrFull) {
		return err
	}
	for _, r := range c.group {
		if r.chosen {
			r.chosen, r.failure = false, err
		}
	}
	return nil
}

// makeRoom waits for a checkpoint when the journal's circle is full.
func (c *committer) makeRoom(size int64) error {
	l := c.log
	for !l.journal.fits(size) {
		c.capture(false)
		l.mu.Lock()
		for l.ckptRuns && l.failed == nil {
			l.work.Wait()
		}
		failed, full := l.failed, l.ckptFull
		l.mu.Unlock()
		if failed != nil {
			return failed
		}
		if full != nil && !l.journal.fits(size) {
			return fmt.Errorf("journal is full and its checkpoint has no space: %w: %w", logstore.ErrFull, full)
		}
	}
	return nil
}

// publishChosen makes the durable group visible and calls back.
func (c *committer) publishChosen() error {
	l := c.log
	var done []*request
	for _, r := range c.group {
		if !r.chosen {
			continue
		}
		for i := range r.entries {
			if err := l.publish(&r.entries[i]); err != nil {
				return err
			}
		}
		l.moveOffsets(r.unit.Offsets)
		if r.apply != nil {
			r.apply()
		}
		done = append(done, r)
	}
	rest := c.pending[:0]
	for _, r := range c.pending {
		if !r.chosen {
			rest = append(rest, r)
		}
	}
	clear(c.pending[len(rest):])
	c.pending = rest
	l.finish(done)
	return c.flushLargeTails(done)
}

// flushLargeTails writes the tails that have become large enough, and the oldest
// when all together are too many.
func (c *committer) flushLargeTails(done []*request) error {
	l := c.log
	for _, r := range done {
		for i := range r.entries {
			p := r.entries[i].part
			p.mu.Lock()
			large := len(p.tail) >= l.o.TailBytes
			p.mu.Unlock()
			if large {
				if err := l.flushTail(p); err != nil && !isFull(err) {
					return err
				}
			}
		}
	}
	for i := 0; l.tailBytes.Load() > l.o.TailsBytes && i < len(c.dirty); i++ {
		if err := l.flushTail(c.dirty[i]); err != nil && !isFull(err) {
			return err
		}
	}
	return nil
}

// anyFailed reports whether a pending unit has failed.
func (c *committer) anyFailed() bool {
	for _, r := range c.pending {
		if r.failure != nil || r.waiting.Load() == 0 && r.ioErr != nil {
			return true
		}
	}
	return false
}

// abort ends the units that failed and those behind them, and takes their
// placements back. Those before them commit first.
func (c *committer) abort() {
	l := c.log
	l.mu.Lock()
	for c.onTheirWay() && l.failed == nil {
		l.work.Wait()
	}
	failed := l.failed
	l.mu.Unlock()
	for failed == nil {
		c.commitReady()
		failed = l.Err()
		if len(c.group) == 0 {
			break
		}
	}
	if failed != nil {
		return // giveUp ends them all
	}
	ended := c.pending
	for i := len(ended) - 1; i >= 0; i-- {
		c.unplace(ended[i].entries)
	}
	c.pending = nil
	l.mu.Lock()
	for _, r := range ended {
		if r.failure == nil {
			r.failure = r.ioErr
		}
		if r.failure == nil {
			r.failure = fmt.Errorf("%w: %w", logstore.ErrBehind, ended[0].failure)
		}
		if r.from.failing == nil {
			r.from.failing = r.failure
		}
	}
	c.held, ended = cutFailing(c.held, ended)
	l.queue, ended = cutFailing(l.queue, ended)
	l.mu.Unlock()
	l.finish(ended)
	l.mu.Lock()
	for _, r := range ended {
		r.from.failing = nil
		r.from.refused = max(r.from.refused, r.epoch)
	}
	l.mu.Unlock()
}

// cutFailing moves the requests of failing writers from list to ended.
func cutFailing(list, ended []*request) (rest, _ []*request) {
	rest = list[:0]
	for _, r := range list {
		if r.from.failing == nil {
			rest = append(rest, r)
			continue
		}
		r.failure = fmt.Errorf("%w: %w", logstore.ErrBehind, r.from.failing)
		ended = append(ended, r)
	}
	clear(list[len(rest):])
	return rest, ended
}

// onTheirWay reports whether bypass jobs run.
func (c *committer) onTheirWay() bool {
	for _, r := range c.pending {
		if r.waiting.Load() > 0 {
			return true
		}
	}
	return false
}

// giveUp ends everything after the log has stopped.
func (c *committer) giveUp() {
	l := c.log
	l.mu.Lock()
	for c.onTheirWay() {
		l.work.Wait()
	}
	ended := append(c.pending, c.held...)
	ended = append(ended, l.queue...)
	c.pending, c.held, l.queue = nil, nil, nil
	for _, r := range ended {
		r.failure = l.failed
	}
	l.mu.Unlock()
	l.finish(ended)
}

// finish calls back, in order, and then gives the units' share of the queue
// back.
func (l *Log) finish(requests []*request) {
	for _, r := range requests {
		if r.failure != nil {
			l.metrics.refused.Inc()
			r.done(logstore.Result{}, r.failure)
			continue
		}
		var result logstore.Result
		if n := len(r.unit.Batches); n > 0 {
			result.BaseOffsets = make([]int64, n)
			for i := range n {
				result.BaseOffsets[i] = r.entries[i].base
			}
		}
		r.done(result, nil)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range requests {
		if r.bounded {
			l.queued.give(r.bytes)
		}
		if r.from.pending--; r.from.pending == 0 && r.from.idle != nil {
			close(r.from.idle)
			r.from.idle = nil
		}
	}
}
