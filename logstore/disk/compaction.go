package disk

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// Limits of compaction.
const (
	// compactKeysMax and compactKeyBytes bound the table of keys of one run. What
	// lies beyond waits for the next.
	compactKeysMax  = 1 << 20
	compactKeyBytes = 64 << 20
	compactSuffix   = ".log.compact"
)

// compactTopics compacts the partitions of compacted topics that have changed
// enough.
func (k *keeper) compactTopics() {
	l := k.log
	l.mu.Lock()
	topics := l.allTopics()
	l.mu.Unlock()
	for _, t := range topics {
		if t.config.Cleanup != logstore.CleanupCompact {
			continue
		}
		for _, p := range t.parts {
			err := k.compact(p)
			if errors.Is(err, errSync) {
				l.fail(err)
			}
			if err != nil && p.stopped() == nil {
				l.log.Error("partition is not compacted", "topic", t.name, "partition", p.id, "err", err)
			}
		}
	}
}

// compact rewrites the sealed segments of a partition without the records that a
// later one of the same key replaces. Only what a checkpoint covers is touched:
// the journal must not refer to it. Offsets stay.
func (k *keeper) compact(p *partition) error {
	p.mu.Lock()
	var sealed []*segment
	if len(p.segments) > 1 && p.gone == nil {
		sealed = slices.Clone(p.segments[:len(p.segments)-1])
	}
	p.mu.Unlock()
	dirty, total := int64(0), int64(0)
	for _, s := range sealed {
		total += s.size
		if !s.cleaned {
			dirty += s.size
		}
	}
	if dirty == 0 || !p.topic.own && dirty*2 < total {
		return nil // as Kafka does: not before half of it is new
	}
	k.checkpointNow()
	if k.log.Err() != nil {
		return k.log.Err()
	}
	keys := newKeyTable()
	upTo, err := k.readKeys(sealed, keys)
	if err != nil {
		return err
	}
	limit := k.log.segmentBytes(p.topic)
	for len(sealed) > 0 && sealed[0].next <= upTo {
		n := mergeable(sealed, limit, upTo)
		if err := k.rewrite(p, sealed[:n], keys); err != nil {
			return err
		}
		sealed = sealed[n:]
	}
	return nil
}

// mergeable is how many of the first segments go into one file.
func mergeable(sealed []*segment, limit, upTo int64) int {
	n, size := 0, int64(0)
	for _, s := range sealed {
		size += s.size
		if n > 0 && (size > limit || s.next > upTo || s.next-sealed[0].base > math.MaxUint32) {
			break
		}
		n++
	}
	return n
}

// keyTable holds the offset of the last record of each key.
type keyTable struct {
	last  map[string]int64
	bytes int
}

func newKeyTable() *keyTable { return &keyTable{last: make(map[string]int64)} }

func (t *keyTable) full() bool { return len(t.last) >= compactKeysMax || t.bytes >= compactKeyBytes }

func (t *keyTable) add(key []byte, offset int64) {
	if _, ok := t.last[string(key)]; !ok {
		t.bytes += len(key)
	}
	t.last[string(key)] = offset
}

// readKeys fills the table from the segments that were not compacted yet, and
// returns the offset up to which it knows them: at the end of a segment.
func (k *keeper) readKeys(sealed []*segment, keys *keyTable) (int64, error) {
	upTo := int64(0)
	it := recordbatch.Iter(nil)
	for _, s := range sealed {
		if s.cleaned {
			upTo = s.next
			continue
		}
		if keys.full() {
			break
		}
		err := k.log.eachBatch(s, func(batch []byte) error {
			it.Reset(batch)
			var r recordbatch.Record
			for it.Next(&r) {
				if r.Key != nil {
					keys.add(r.Key, r.Offset)
				}
			}
			return it.Err()
		})
		if err != nil {
			return 0, err
		}
		upTo = s.next
	}
	return upTo, nil
}

// eachBatch reads a sealed segment, checks every batch, and hands it out.
func (l *Log) eachBatch(s *segment, f func(batch []byte) error) error {
	r := &reader{log: l, part: s.part, offset: s.base}
	for pos := int64(0); pos < s.size; {
		r.pos = pos
		data, err := r.readFile(s, s.size, windowBytes)
		if err != nil {
			return err
		}
		for len(data) > 0 {
			batch, rest, err := recordbatch.Split(data)
			if errors.Is(err, recordbatch.ErrShort) {
				break // the rest comes with the next read
			}
			if err == nil {
				err = recordbatch.VerifyChecksum(batch)
			}
			if err == nil {
				err = f(batch)
			}
			if err != nil {
				return r.corrupt(s, pos, int64(len(data)), err.Error())
			}
			pos += int64(len(batch))
			data = rest
		}
	}
	return nil
}

// rewrite puts one file in the place of some segments.
func (k *keeper) rewrite(p *partition, old []*segment, keys *keyTable) error {
	l := k.log
	temporary := old[0].file(compactSuffix)
	if err := l.fs.RemoveAll(temporary); err != nil {
		return err
	}
	out, _, err := l.fs.OpenFile(temporary, true)
	if err != nil {
		return err
	}
	c := &compactor{keys: keys, out: out, oldest: l.clock.Now().Add(-l.o.TombstoneRetention).UnixMilli()}
	for _, s := range old {
		if err = l.eachBatch(s, c.batch); err != nil {
			break
		}
	}
	if err == nil {
		err = c.flush()
	}
	if err == nil && c.size > 0 {
		if err = out.Sync(); err != nil {
			err = fmt.Errorf("%w: %w", errSync, err)
		}
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(fmt.Errorf("compact %q: %w", old[0].path(), err), l.fs.RemoveAll(temporary))
	}
	return k.swap(p, old, c, temporary)
}

// swap makes the rewritten file a segment. The files of the other segments stay
// until a checkpoint no longer lists them. The index goes first: it must never
// meet the new file.
func (k *keeper) swap(p *partition, old []*segment, c *compactor, temporary string) error {
	l := k.log
	first, last := old[0], old[len(old)-1]
	for _, suffix := range []string{indexSuffix, timeIndexSuffix} {
		if err := l.fs.RemoveAll(first.file(suffix)); err != nil {
			return err
		}
	}
	if err := l.fs.SyncDir(p.dir()); err != nil {
		return err
	}
	merged := &segment{part: p, base: first.base, size: c.size, next: last.next, maxTime: c.maxTime, cleaned: true}
	merged.dirSynced.Store(true)
	merged.index.reset(c.size, c.maxTime)
	p.mu.Lock()
	at := slices.Index(p.segments, first)
	if p.gone != nil || at < 0 {
		p.mu.Unlock()
		return l.fs.RemoveAll(temporary)
	}
	after := slices.Clone(p.segments[:at])
	if c.size > 0 {
		if err := l.fs.Rename(temporary, first.path()); err != nil {
			p.mu.Unlock()
			return err
		}
		after = append(after, merged)
	}
	p.segments = append(after, p.segments[at+len(old):]...)
	for _, s := range old {
		s.replaced = true
	}
	p.mu.Unlock()
	for i, s := range old {
		l.files.drop(s)
		if i > 0 || c.size == 0 {
			k.garbage.add(s.path(), s.file(indexSuffix), s.file(timeIndexSuffix))
		}
	}
	if c.size == 0 {
		k.garbage.add(temporary)
	}
	if err := l.fs.SyncDir(p.dir()); err != nil {
		return fmt.Errorf("sync folder %q: %w: %w", p.dir(), errSync, err)
	}
	return nil
}

// compactor writes the records that stay.
type compactor struct {
	keys    *keyTable
	oldest  int64 // deletions before this time go
	out     File
	buf     []byte
	size    int64
	maxTime int64
	any     bool

	it      recordbatch.Iterator
	builder recordbatch.Builder
}

// batch copies a batch, or what stays of it.
func (c *compactor) batch(batch []byte) error {
	c.it.Reset(batch)
	info := c.it.Info()
	c.builder.Reset()
	kept := int32(0)
	var r recordbatch.Record
	for c.it.Next(&r) {
		if !c.keep(&r) {
			continue
		}
		kept++
		if err := c.builder.AppendAt(info.BaseOffset, &r); err != nil {
			return err
		}
	}
	switch {
	case c.it.Err() != nil:
		return c.it.Err()
	case kept == 0:
		return nil
	case kept < info.Count:
		batch = c.builder.BytesUpTo(info.LastOffset())
		var err error
		if info, err = recordbatch.Parse(batch); err != nil {
			return err
		}
	}
	if !c.any || info.MaxTimestamp > c.maxTime {
		c.maxTime = info.MaxTimestamp
	}
	c.any = true
	c.buf = append(c.buf, batch...)
	if len(c.buf) >= windowBytes {
		return c.flush()
	}
	return nil
}

// keep decides about one record: it stays unless a later one has its key, or it
// is an old deletion. A record without a key stays.
func (c *compactor) keep(r *recordbatch.Record) bool {
	if r.Key == nil {
		return true
	}
	if last, ok := c.keys.last[string(r.Key)]; ok && last > r.Offset {
		return false
	}
	return r.Value != nil || r.Timestamp >= c.oldest
}

func (c *compactor) flush() error {
	if _, err := c.out.WriteAt(c.buf, c.size); err != nil {
		return err
	}
	c.size += int64(len(c.buf))
	c.buf = c.buf[:0]
	return nil
}
