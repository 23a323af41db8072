package disk

import (
	"errors"
	"fmt"
	"os"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// place gives the batches of a unit their offsets and positions, reserves their
// space, and sends large ones to their segments. On an error nothing is placed.
func (c *committer) place(r *request) error {
	l := c.log
	inline := 0
	for i := range r.unit.Batches {
		if n := len(r.unit.Batches[i].Data); n < l.o.BypassBytes {
			inline += n
		}
	}
	bypassFrom := l.o.BypassBytes
	if inline > c.groupLimit()/2 {
		bypassFrom, inline = 0, 0 // many small batches make one large unit
	}
	for i := range r.unit.Batches {
		data := r.unit.Batches[i].Data
		e, err := c.placeRun(r.parts[i], data, critical(r))
		if err != nil {
			c.unplace(r.entries)
			r.entries = nil
			return err
		}
		e.bypass = len(data) >= bypassFrom
		r.entries = append(r.entries, e)
	}
	r.weight = frameSize(len(r.entries)+tableCount, inline) + tablesWeight(r)
	for i := range r.entries {
		if r.entries[i].bypass {
			r.waiting.Add(1)
		}
	}
	for i := range r.entries {
		if r.entries[i].bypass {
			l.bypasses.submit(&bypassJob{request: r, entry: &r.entries[i]})
		}
	}
	return nil
}

// critical reports whether a unit may use the space reserve: it holds nothing
// but offsets and records of internal topics.
func critical(r *request) bool {
	for _, p := range r.parts {
		if !p.topic.config.Internal {
			return false
		}
	}
	return true
}

// placeRun places a run of batches of one partition and stamps them.
func (c *committer) placeRun(p *partition, data []byte, critical bool) (entry, error) {
	l := c.log
	if err := p.stopped(); err != nil {
		return entry{}, fmt.Errorf("append to %s: %w", p, err)
	}
	before := p.next
	at := before
	if at.seg == nil || at.pos > 0 && at.pos+int64(len(data)) > l.segmentBytes(p.topic) {
		at.seg = &segment{part: p, base: at.offset}
		at.pos = 0
	}
	if err := l.reserveSpace(at.seg, at.pos+int64(len(data)), critical); err != nil {
		if at.seg != before.seg {
			l.abandon(at.seg)
		}
		return entry{}, err
	}
	e := entry{part: p, seg: at.seg, pos: at.pos, base: at.offset, data: data, before: before}
	offset, maxTime, err := stamp(data, at.offset)
	if err != nil {
		return entry{}, err
	}
	e.next, e.maxTime = offset, maxTime
	p.next = cursor{seg: at.seg, pos: at.pos + int64(len(data)), offset: offset}
	return e, nil
}

// stamp writes the offsets from base on into a run of checked batches.
func stamp(data []byte, base int64) (next, maxTime int64, err error) {
	for first := true; len(data) > 0; first = false {
		info, err := recordbatch.Parse(data)
		if err != nil {
			return 0, 0, err
		}
		recordbatch.SetBaseOffset(data, base)
		if first || info.MaxTimestamp > maxTime {
			maxTime = info.MaxTimestamp
		}
		base += int64(info.LastOffsetDelta) + 1
		data = data[info.Size:]
	}
	return base, maxTime, nil
}

// unplace takes placements back, the newest first.
func (c *committer) unplace(entries []entry) {
	for i := len(entries) - 1; i >= 0; i-- {
		e := &entries[i]
		e.part.next = e.before
		if e.seg != e.before.seg {
			c.log.abandon(e.seg)
		}
	}
}

// abandon removes the file of a segment that never held anything committed.
func (l *Log) abandon(s *segment) {
	l.files.drop(s)
	if err := l.fs.RemoveAll(s.path()); err != nil {
		l.log.Warn("unused segment is left behind", "file", s.path(), "err", err)
	}
}

func (l *Log) segmentBytes(t *topic) int64 {
	if t.config.SegmentBytes > 0 {
		return t.config.SegmentBytes
	}
	return l.o.SegmentBytes
}

// reserveSpace makes sure that the first size bytes of a segment have space, in
// doubling steps.
func (l *Log) reserveSpace(s *segment, size int64, critical bool) error {
	if size <= s.allocated {
		return nil
	}
	err := l.grow(s, size)
	if isFull(err) && critical && l.reserve.release() {
		l.log.Warn("disk is full, the reserve for offsets is used", "bytes", l.o.ReserveBytes)
		err = l.grow(s, size)
	}
	if isFull(err) {
		l.metrics.full.Inc()
		return fmt.Errorf("%w: %w", logstore.ErrFull, err)
	}
	if err != nil && !outOfFiles(err) {
		l.fail(err)
		return l.Err()
	}
	return err
}

func (l *Log) grow(s *segment, size int64) error {
	if s.allocated == 0 && s.base == s.part.next.offset {
		if err := l.makeDir(s.part); err != nil {
			return err
		}
	}
	step := max(allocateMin, min(allocateMax, s.allocated))
	want := max(size, min(s.allocated+step, max(size, l.segmentBytes(s.part.topic))))
	err := l.files.allocate(s, want)
	if isFull(err) && want > size {
		want = size // the last few bytes
		err = l.files.allocate(s, want)
	}
	if err == nil {
		s.allocated = want
	}
	return err
}

// topicIDName is the file in a partition's folder that names its topic's id.
const topicIDName = "topic.id"

// makeDir makes the folder of a partition and marks it with its topic's id.
func (l *Log) makeDir(p *partition) error {
	name := p.dir() + "/" + topicIDName
	f, size, err := l.fs.OpenFile(name, false)
	if err == nil {
		if err := f.Close(); err != nil || size > 0 {
			return err
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := l.fs.MkdirAll(p.dir()); err != nil {
		return err
	}
	return writeHint(l.fs, name, []byte(p.topic.id.String()+"\n"))
}
