package disk

import (
	"errors"
	"fmt"

	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// OffsetForTime returns the offset of the first record kept whose timestamp is
// ms or later, and the durable end when there is none. Milliseconds count from
// 1970.
func (l *Log) OffsetForTime(topic string, partition int32, ms int64) (int64, error) {
	p, err := l.partition(topic, partition)
	if err != nil {
		return 0, err
	}
	if err := p.stopped(); err != nil {
		return 0, fmt.Errorf("read %s: %w", p, err)
	}
	r := &reader{log: l, part: p, closed: make(chan struct{})}
	if err := r.seekTime(ms); err != nil {
		return 0, fmt.Errorf("read %s: %w", p, err)
	}
	it := recordbatch.Iter(nil)
	for {
		got, _, err := r.read(windowBytes)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", p, err)
		}
		if got.Data == nil {
			return r.offset, nil
		}
		offset, found, err := firstSince(&it, got.Data, got.From, ms)
		if err != nil || found {
			return offset, err
		}
	}
}

// seekTime puts the reader before the first batch that may hold a record of that
// time.
func (r *reader) seekTime(ms int64) error {
	p := r.part
	p.mu.Lock()
	r.offset = p.end
	var seg *segment
	for _, s := range p.segments {
		if s.maxTime >= ms {
			seg = s
			break
		}
	}
	var size int64
	if seg != nil {
		r.offset = max(seg.base, p.start)
		size = seg.size
	}
	p.mu.Unlock()
	if seg == nil || r.offset != seg.base {
		return nil
	}
	if err := r.log.completeIndex(seg, size); err != nil {
		return err
	}
	r.offset = seg.base + seg.index.seekTime(ms)
	return nil
}

// firstSince finds the first record of that time in a run of batches.
func firstSince(it *recordbatch.Iterator, data []byte, from, ms int64) (int64, bool, error) {
	for len(data) > 0 {
		batch, rest, err := recordbatch.Split(data)
		if err != nil {
			return 0, false, err
		}
		data = rest
		info, err := recordbatch.Parse(batch)
		if err != nil {
			return 0, false, err
		}
		if info.MaxTimestamp < ms {
			continue
		}
		it.Reset(batch)
		var rec recordbatch.Record
		for it.Next(&rec) {
			if rec.Timestamp >= ms && rec.Offset >= from {
				return rec.Offset, true, nil
			}
		}
		if it.Err() != nil {
			return 0, false, errors.Join(fmt.Errorf("batch at offset %d", info.BaseOffset), it.Err())
		}
	}
	return 0, false, nil
}
