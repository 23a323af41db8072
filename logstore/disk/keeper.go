package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/millrace-io/millrace/logstore"
)

// keeper is the one goroutine that writes checkpoints, and between them removes
// what retention, compaction and deletion leave over. It is the only one that
// removes files of segments that were committed.
type keeper struct {
	log      *Log
	captures chan *capture // closed by the committer at its end
	jobs     chan func()
	ended    chan struct{}

	retention retention
	garbage   garbage
	undone    []*partition // of checkpoints that had no space; guarded by the log's mutex
	unsealed  []*segment   // likewise
}

// capture is the state of the log between two groups: what a checkpoint makes
// durable.
type capture struct {
	at      journalPos
	clean   bool // the last one: nothing will be appended
	dirty   []*partition
	sealed  []*segment
	state   checkpoint
	garbage []string

	unsynced []*segment // what the keeper has taken over from the partitions
}

// garbage is the files that the next checkpoint makes superfluous.
type garbage struct {
	mu    sync.Mutex
	files []string
}

func (g *garbage) add(files ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.files = append(g.files, files...)
}

func (g *garbage) take() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	files := g.files
	g.files = nil
	return files
}

func (k *keeper) init(l *Log) {
	k.log = l
	k.captures = make(chan *capture, 1)
	k.jobs = make(chan func())
	k.ended = make(chan struct{})
}

// maybeCapture hands the state to the keeper when half a lap is used, or when
// somebody asked.
func (c *committer) maybeCapture() {
	l := c.log
	half := l.journal.used() > l.journal.size/2
	l.mu.Lock()
	want := (half && l.ckptFull == nil || l.ckptWant) && !l.ckptRuns && l.failed == nil
	l.mu.Unlock()
	if want {
		c.capture(false)
	}
}

// capture takes the state between two groups and hands it to the keeper, unless
// that still works on the one before.
func (c *committer) capture(clean bool) {
	l := c.log
	l.mu.Lock()
	if l.ckptRuns {
		l.mu.Unlock()
		return
	}
	l.ckptRuns, l.ckptWant = true, false
	topics := l.allTopics()
	c.dirty = append(l.keeper.undone, c.dirty...) // one may be in it twice: it does not matter
	c.sealed = append(l.keeper.unsealed, c.sealed...)
	l.keeper.undone, l.keeper.unsealed = nil, nil
	l.mu.Unlock()
	taken := &capture{at: l.journal.here(), clean: clean, dirty: c.dirty, sealed: c.sealed, garbage: l.keeper.garbage.take()}
	c.dirty, c.sealed = nil, nil
	for _, p := range taken.dirty {
		p.mu.Lock()
		p.listed = false
		p.mu.Unlock()
	}
	taken.state = checkpoint{
		clean: clean, journalBytes: l.journal.size,
		logID: l.journal.logID, position: taken.at.pos, lap: taken.at.lap, sequence: taken.at.sequence,
	}
	for _, t := range topics {
		for _, p := range t.parts {
			if part, ok := p.describe(); ok {
				taken.state.partitions = append(taken.state.partitions, part)
			}
		}
	}
	l.keeper.captures <- taken
}

// allTopics lists the topics, the engine's own included. The log's mutex is held.
func (l *Log) allTopics() []*topic {
	all := make([]*topic, 0, len(l.topics))
	for _, t := range l.topics {
		all = append(all, t)
	}
	return all
}

// describe is the partition in a checkpoint. One that was never written is not
// in it.
func (p *partition) describe() (checkpointPart, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.end == 0 && len(p.segments) == 0 && !p.lost {
		return checkpointPart{}, false
	}
	part := checkpointPart{topic: p.topic.id, partition: p.id, start: p.start, end: p.end, lost: p.lost}
	for i, s := range p.segments {
		size := s.size
		if i == len(p.segments)-1 {
			size += int64(len(p.flushing) + len(p.tail))
		}
		saved := checkpointSegment{base: s.base, size: size, next: s.next, maxTime: s.maxTime}
		if s.cleaned {
			saved.flags = flagCompacted
		}
		part.segments = append(part.segments, saved)
	}
	return part, true
}

// lastCapture ends the keeper, with a clean checkpoint when the log works.
func (c *committer) lastCapture() {
	l := c.log
	l.mu.Lock()
	for l.ckptRuns && l.failed == nil {
		l.work.Wait()
	}
	failed := l.failed
	l.mu.Unlock()
	if failed == nil {
		c.capture(true)
	}
	close(l.keeper.captures)
}

func (k *keeper) run() {
	defer close(k.ended)
	every := k.log.o.MaintainEvery
	byHand := every < 0
	if byHand {
		every = farFuture
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case c, ok := <-k.captures:
			if !ok {
				return
			}
			k.checkpoint(c)
		case job := <-k.jobs:
			job()
		case <-tick.C:
			if !byHand {
				k.maintain()
			}
		}
	}
}

// do runs job in the keeper's goroutine; false says that the keeper has ended.
func (k *keeper) do(job func()) bool {
	select {
	case k.jobs <- job:
		return true
	case <-k.ended:
		return false
	}
}

// checkpoint makes a capture durable and frees the journal before it.
func (k *keeper) checkpoint(c *capture) {
	l := k.log
	began := l.clock.Now()
	err := k.syncSegments(c)
	if err == nil {
		err = writeCheckpoint(l.fs, &c.state, l.clock.Now())
	}
	if isFull(err) && l.reserve.release() {
		err = writeCheckpoint(l.fs, &c.state, l.clock.Now())
	}
	full := isFull(err)
	if err != nil && !full {
		l.fail(err)
	}
	if err == nil {
		l.journal.tail.Store(c.at.head)
		l.metrics.checkpointed(l.clock.Now().Sub(began))
	}
	l.mu.Lock()
	l.ckptRuns, l.ckptFull = false, nil
	if full {
		l.ckptFull = err
		k.giveBack(c)
	}
	l.work.Signal()
	l.mu.Unlock()
	if full {
		l.log.Warn("checkpoint has no space", "err", err)
		return
	}
	if err == nil {
		k.sweep(c.garbage)
	}
}

// giveBack leaves the work of a checkpoint that had no space to the next one.
// The log's mutex is held.
func (k *keeper) giveBack(c *capture) {
	for _, s := range c.unsynced {
		s.part.mu.Lock()
		s.part.note(s)
		s.part.mu.Unlock()
	}
	k.undone = append(k.undone, c.dirty...)
	k.unsealed = append(k.unsealed, c.sealed...)
	k.garbage.add(c.garbage...)
}

// syncSegments writes the tails of a capture and syncs what they and the large
// batches wrote.
func (k *keeper) syncSegments(c *capture) error {
	l := k.log
	var segments []*segment
	for _, s := range c.sealed {
		if err := k.seal(s); err != nil {
			return err
		}
		if !s.part.isDeleted() {
			segments = append(segments, s) // recovery goes by the size of its file
		}
	}
	for _, p := range c.dirty {
		if err := l.flushTail(p); err != nil {
			return err
		}
		p.mu.Lock()
		if !p.deleted {
			segments = append(segments, p.unsynced...)
		}
		p.unsynced = nil
		p.mu.Unlock()
		c.unsynced = segments
	}
	if c.clean {
		if err := k.trim(c); err != nil {
			return err
		}
	}
	if err := inParallel(segments, l.syncUnlessGone); err != nil {
		return err
	}
	return l.syncDirs(segments)
}

// syncUnlessGone syncs a segment. One that was deleted meanwhile does not matter.
func (l *Log) syncUnlessGone(s *segment) error {
	err := l.files.sync(s)
	if err != nil && s.part.isDeleted() {
		return nil
	}
	return err
}

// syncDirs makes the names of segments durable that are not yet.
func (l *Log) syncDirs(segments []*segment) error {
	var dirs []string
	add := func(dir string) {
		if !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	seen := make(map[string]bool)
	for _, s := range segments {
		if s.dirSynced.Load() || seen[s.part.dir()] {
			continue
		}
		seen[s.part.dir()] = true
		dirs = append(dirs, s.part.dir())
	}
	if len(dirs) == 0 {
		return nil
	}
	for dir := range seen {
		add(parent(dir))
	}
	add(topicsDir)
	add(".")
	err := inParallel(dirs, func(dir string) error {
		if err := l.fs.SyncDir(dir); err != nil && !errors.Is(err, os.ErrNotExist) { // deleted meanwhile
			return fmt.Errorf("sync folder %q: %w: %w", dir, errSync, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range segments {
		s.dirSynced.Store(true)
	}
	return nil
}

func parent(dir string) string {
	for i := len(dir) - 1; i > 0; i-- {
		if dir[i] == '/' {
			return dir[:i]
		}
	}
	return "."
}

// inParallel calls f for all items, some at a time, and returns the errors.
func inParallel[T any](items []T, f func(T) error) error {
	if len(items) == 1 {
		return f(items[0])
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		next int
		errs []error
	)
	for range min(syncers, len(items)) {
		wg.Go(func() {
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= len(items) {
					return
				}
				if err := f(items[i]); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// seal cuts the unused space of a segment that does not grow any more and writes
// its index, which is made again when it is missing.
func (k *keeper) seal(s *segment) error {
	s.part.mu.Lock()
	size, gone := s.size, s.part.gone != nil || s.replaced
	s.part.mu.Unlock()
	if gone {
		return nil
	}
	if err := k.log.files.truncate(s, size); err != nil {
		if s.part.isDeleted() {
			return nil
		}
		return err
	}
	if err := k.log.writeIndex(s); err != nil {
		k.log.log.Warn("segment could not be indexed", "file", s.path(), "err", err)
		return nil
	}
	s.index.drop()
	return nil
}

// trim does to the last segments at a clean end what seal does to the others.
func (k *keeper) trim(c *capture) error {
	for i := range c.state.partitions {
		k.log.mu.Lock()
		var p *partition
		for _, t := range k.log.topics {
			if t.id == c.state.partitions[i].topic {
				p = t.parts[c.state.partitions[i].partition]
			}
		}
		k.log.mu.Unlock()
		if p == nil {
			continue
		}
		p.mu.Lock()
		last := p.last()
		p.mu.Unlock()
		if last == nil || last.allocated == 0 {
			continue
		}
		if err := k.seal(last); err != nil {
			return err
		}
	}
	return nil
}

// sweep removes files that no checkpoint and no frame refers to any more.
func (k *keeper) sweep(files []string) {
	for _, name := range files {
		if err := k.log.fs.RemoveAll(name); err != nil {
			k.log.log.Warn("file is left behind", "file", name, "err", err)
		}
	}
}

// remove takes the folder of a deleted topic away and reports on done. The
// committer calls it; the work is the keeper's.
func (k *keeper) remove(t *topic, done chan<- error) {
	k.log.running.Go(func() {
		ok := k.do(func() {
			err := k.log.removeFolder(t)
			k.log.mu.Lock()
			delete(k.log.names, t.name)
			k.log.mu.Unlock()
			done <- err
			if err == nil {
				k.log.forgetDeleted(t)
			}
		})
		if !ok { // the next opening does it
			done <- nil
		}
	})
}

// removeFolder renames a topic's folder out of the way, so that the name is free
// at once, and removes it then.
func (l *Log) removeFolder(t *topic) error {
	for _, p := range t.parts {
		p.mu.Lock()
		l.tailBytes.Add(-int64(len(p.tail) + len(p.flushing)))
		p.tail, p.flushing = nil, nil
		segments := p.segments
		p.mu.Unlock()
		for _, s := range segments {
			l.files.drop(s)
		}
	}
	from, to := topicsDir+"/"+t.name, trashDir+"/"+t.id.String()
	if err := l.fs.MkdirAll(trashDir); err != nil {
		return err
	}
	if err := l.fs.Rename(from, to); errors.Is(err, os.ErrNotExist) {
		return nil // nothing was ever written
	} else if err != nil {
		return fmt.Errorf("remove folder of topic %q: %w", t.name, err)
	}
	if err := errors.Join(l.fs.SyncDir(topicsDir), l.fs.SyncDir(trashDir)); err != nil {
		return fmt.Errorf("remove folder of topic %q: %w", t.name, err)
	}
	if err := l.fs.RemoveAll(to); err != nil {
		l.log.Warn("folder of a deleted topic is left behind", "folder", to, "err", err)
	}
	return nil
}

// forgetDeleted drops the record that a topic's folder is to be removed. When it
// is lost the next opening looks again.
func (l *Log) forgetDeleted(t *topic) {
	err := l.ask(&request{
		table: []tableRecord{{table: tableTopics, key: t.id[:]}},
		done:  func(logstore.Result, error) {},
	})
	if err != nil {
		l.log.Debug("record of a deleted topic stays", "topic", t.name, "err", err)
	}
}

// Maintain runs retention and compaction now, and a checkpoint when they left
// something to remove. It returns when all is done.
func (l *Log) Maintain(ctx context.Context) error {
	done := make(chan struct{})
	ok := l.keeper.do(func() {
		defer close(done)
		l.keeper.maintain()
	})
	if !ok {
		return logstore.ErrClosed
	}
	select {
	case <-done:
		return l.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Checkpoint writes the tails to their segments and a checkpoint now.
func (l *Log) Checkpoint(ctx context.Context) error {
	done := make(chan struct{})
	ok := l.keeper.do(func() {
		defer close(done)
		l.keeper.checkpointNow()
	})
	if !ok {
		return logstore.ErrClosed
	}
	select {
	case <-done:
		return l.Err()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checkpointNow asks the committer for its state and makes it durable.
func (k *keeper) checkpointNow() {
	l := k.log
	for {
		l.mu.Lock()
		running := l.ckptRuns
		if !running {
			l.ckptWant = true
			l.work.Signal()
		}
		stop := l.failed != nil || l.closed
		l.mu.Unlock()
		if stop {
			return
		}
		select {
		case c, ok := <-k.captures:
			if !ok {
				return
			}
			k.checkpoint(c)
			if !running {
				return
			}
		case <-l.stopped:
			return
		case <-l.closing:
			return // the last capture makes everything durable, in run
		}
	}
}

// maintain is what the keeper does now and then.
func (k *keeper) maintain() {
	l := k.log
	if l.Err() != nil {
		return
	}
	k.retain()
	k.compactTopics()
	l.reserve.refill()
	k.garbage.mu.Lock()
	some := len(k.garbage.files) > 0
	k.garbage.mu.Unlock()
	l.mu.Lock()
	some = some || l.ckptFull != nil
	l.mu.Unlock()
	if some {
		k.checkpointNow()
	}
}
