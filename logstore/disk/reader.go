package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// reader yields the batches of one partition. The newest come from the tail in
// memory, the others from the segments; every batch is checked against its
// checksum on the way.
type reader struct {
	log    *Log
	part   *partition
	offset int64 // of the record asked for next

	seg *segment // where the batch with that offset is, nil when not looked up
	pos int64    // of that batch, or of one before it

	buf       []byte
	closeOnce sync.Once
	closed    chan struct{}
}

// OpenReader returns a reader that starts at offset.
func (l *Log) OpenReader(topic string, partition int32, offset int64) (logstore.Reader, error) {
	p, err := l.partition(topic, partition)
	if err != nil {
		return nil, err
	}
	if err := p.stopped(); err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	start, end := p.bounds()
	switch {
	case offset == logstore.OffsetEarliest:
		offset = start
	case offset == logstore.OffsetLatest:
		offset = end
	case offset < start || offset > end:
		return nil, outOfRange(p, offset, start, end)
	}
	return &reader{log: l, part: p, offset: offset, closed: make(chan struct{})}, nil
}

func outOfRange(p *partition, offset, start, end int64) error {
	return fmt.Errorf("offset %d of %s, which holds %d up to %d: %w", offset, p, start, end, logstore.ErrOutOfRange)
}

// Position is the offset of the record that Next will begin with.
func (r *reader) Position() int64 { return r.offset }

// Close ends the reader, and a Next that blocks.
func (r *reader) Close() error {
	r.closeOnce.Do(func() { close(r.closed) })
	return nil
}

// Next returns the next batches. See logstore.Reader.
func (r *reader) Next(ctx context.Context, maxBytes int) (logstore.Fetched, error) {
	for {
		select {
		case <-r.closed:
			return logstore.Fetched{}, logstore.ErrClosed
		case <-r.log.closing:
			return logstore.Fetched{}, logstore.ErrClosed
		default:
		}
		got, changed, err := r.read(maxBytes)
		if err != nil {
			return logstore.Fetched{}, fmt.Errorf("read %s: %w", r.part, err)
		}
		if got.Data != nil {
			return got, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return logstore.Fetched{}, ctx.Err()
		case <-r.closed:
		case <-r.log.closing:
		}
	}
}

// read returns the next batches. At the durable end it returns none, and a
// channel that is closed when that may have moved.
func (r *reader) read(maxBytes int) (logstore.Fetched, <-chan struct{}, error) {
	for {
		got, changed, err := r.try(max(maxBytes, recordbatch.HeaderSize))
		if err != nil || got.Data != nil || changed != nil {
			return got, changed, err
		}
	}
}

// place is what a reader sees of its partition at one moment.
type place struct {
	fromTail bool
	inFile   int64 // committed bytes of the segment that are in its file
	sealed   bool
	changed  chan struct{} // set at the end
}

// try does one step: look up, move to the next segment, or read. It returns
// nothing when there is another step to do.
func (r *reader) try(maxBytes int) (logstore.Fetched, <-chan struct{}, error) {
	p := r.part
	p.mu.Lock()
	at, err := r.look()
	if err != nil || at.changed != nil {
		p.mu.Unlock()
		return logstore.Fetched{}, at.changed, err
	}
	if at.fromTail {
		data := r.copyTail(maxBytes)
		p.mu.Unlock()
		got, err := r.accept(data, r.seg, false)
		return got, nil, err
	}
	p.mu.Unlock()
	seg := r.seg
	if seg == nil {
		return logstore.Fetched{}, nil, r.seek()
	}
	data, err := r.readFile(seg, at.inFile, maxBytes)
	if moved, gone := r.superseded(seg); gone != nil || moved {
		r.seg = nil
		return logstore.Fetched{}, nil, gone
	}
	if err != nil {
		return logstore.Fetched{}, nil, err
	}
	got, err := r.accept(data, seg, true)
	return got, nil, err
}

// look finds out where the reader stands. The partition's mutex is held.
func (r *reader) look() (place, error) {
	p := r.part
	switch {
	case p.gone != nil:
		return place{}, p.gone
	case r.offset < p.start:
		return place{}, outOfRange(p, r.offset, p.start, p.end)
	case r.offset >= p.end:
		if p.changed == nil {
			p.changed = make(chan struct{})
		}
		return place{changed: p.changed}, nil
	}
	if r.seg != nil && r.seg.replaced {
		r.seg = nil
	}
	if r.seg == nil {
		return place{}, nil
	}
	last := p.last() == r.seg
	if r.pos < r.seg.size {
		return place{inFile: r.seg.size, sealed: !last}, nil
	}
	if last {
		return place{fromTail: true}, nil
	}
	return place{}, r.advance()
}

// advance moves to the segment after the one that was read to its end. The
// partition's mutex is held.
func (r *reader) advance() error {
	p, next := r.part, r.seg.next
	if r.offset < next {
		if !p.compacted() {
			return r.corrupt(r.seg, r.pos, 0, fmt.Sprintf("the segment ends at offset %d, it should hold up to %d", r.offset, next))
		}
		r.offset = next // compaction has removed what was there
	}
	r.seg = nil
	return nil
}

// seek looks up the segment and the position of the reader's offset.
func (r *reader) seek() error {
	p := r.part
	p.mu.Lock()
	var seg *segment
	for _, s := range p.segments {
		if s.next > r.offset {
			seg = s
			break
		}
	}
	var size int64
	if seg != nil {
		size = seg.size
		r.offset = max(r.offset, seg.base)
	}
	p.mu.Unlock()
	if seg == nil {
		return nil // the end has moved, or the start: look again
	}
	if r.offset == seg.base {
		r.seg, r.pos = seg, 0
		return nil
	}
	if err := r.log.completeIndex(seg, size); err != nil {
		if moved, gone := r.superseded(seg); gone != nil || moved {
			return gone
		}
		return err
	}
	r.seg, r.pos = seg, seg.index.seek(r.offset-seg.base)
	if seg.sealed() {
		seg.index.drop()
	}
	return nil
}

// superseded reports whether what was read of seg does not count: another file
// has its place, or its topic is gone.
func (r *reader) superseded(seg *segment) (moved bool, gone error) {
	p := r.part
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone != nil {
		return false, p.gone
	}
	if r.offset < p.start {
		return false, outOfRange(p, r.offset, p.start, p.end)
	}
	return seg.replaced, nil
}

// copyTail copies whole batches out of memory. The partition's mutex is held.
func (r *reader) copyTail(maxBytes int) []byte {
	p := r.part
	from := r.pos - r.seg.size
	src := p.flushing
	if from >= int64(len(src)) {
		from -= int64(len(src))
		src = p.tail
	}
	src = src[from:]
	n := 0
	for n < len(src) {
		size, err := recordbatch.Size(src[n:])
		if err != nil || n > 0 && n+size > maxBytes {
			break
		}
		n += min(size, len(src)-n)
	}
	r.buf = append(r.buf[:0], src[:n]...)
	return r.buf
}

// readFile reads batches at the reader's position: as many as fit into maxBytes,
// or the one that does not.
func (r *reader) readFile(seg *segment, inFile int64, maxBytes int) ([]byte, error) {
	f, err := r.log.files.use(seg, false)
	if errors.Is(err, os.ErrNotExist) {
		return nil, r.corrupt(seg, 0, inFile, "the segment is missing")
	}
	if err != nil {
		return nil, err
	}
	defer r.log.files.release(f)
	left := inFile - r.pos
	want := min(int64(maxBytes), left)
	for {
		if int64(cap(r.buf)) < want {
			r.buf = make([]byte, want)
		}
		r.buf = r.buf[:want]
		n, err := f.ReadAt(r.buf, r.pos)
		if err != nil && !(errors.Is(err, io.EOF) && n > 0) {
			return nil, r.corrupt(seg, r.pos+int64(n), left-int64(n), err.Error())
		}
		r.buf = r.buf[:n]
		size, err := recordbatch.Size(r.buf)
		switch {
		case err != nil:
			return nil, r.corrupt(seg, r.pos, left, err.Error())
		case int64(size) > left:
			return nil, r.corrupt(seg, r.pos, left, fmt.Sprintf("batch of %d bytes, only %d are left", size, left))
		case size <= n:
			return r.buf, nil
		case int64(n) < want:
			return nil, r.corrupt(seg, r.pos, left, fmt.Sprintf("the file ends after %d bytes of a batch of %d", n, size))
		}
		want = int64(size)
	}
}

// accept checks the batches in data, which begin at the reader's position, and
// moves on. It drops batches below the offset asked for and one that is cut at
// the end.
func (r *reader) accept(data []byte, seg *segment, inFile bool) (logstore.Fetched, error) {
	skip, used := 0, 0
	from := r.offset
	at := from
	for used < len(data) {
		info, err := recordbatch.Parse(data[used:])
		if err == nil && used+info.Size > len(data) {
			break
		}
		if errors.Is(err, recordbatch.ErrShort) && used > 0 {
			break
		}
		batch := data[used:]
		if err == nil {
			batch = batch[:info.Size]
			err = r.verify(batch, &info, at)
		}
		if err != nil {
			if used > skip {
				break // hand out what is good; the next call meets the damage
			}
			return logstore.Fetched{}, r.corrupt(seg, r.pos+int64(used), int64(len(batch)), err.Error())
		}
		used += info.Size
		if info.NextOffset() <= from {
			skip = used
			continue
		}
		at = info.NextOffset()
	}
	r.pos += int64(used)
	if used == skip {
		if !inFile && used == 0 {
			return logstore.Fetched{}, r.corrupt(seg, r.pos, 0, "the tail in memory holds no batch")
		}
		return logstore.Fetched{}, nil
	}
	r.offset = at
	return logstore.Fetched{Data: data[skip:used], From: from, Next: at}, nil
}

// verify checks one batch: its checksum, and that its offsets follow.
func (r *reader) verify(batch []byte, info *recordbatch.Info, at int64) error {
	if err := recordbatch.VerifyChecksum(batch); err != nil {
		return err
	}
	if info.NextOffset() <= at || info.BaseOffset == at {
		return nil
	}
	if info.BaseOffset > at && r.part.compacted() || info.BaseOffset < at && at == r.offset {
		return nil
	}
	return fmt.Errorf("batch begins at offset %d, offset %d is expected", info.BaseOffset, at)
}

// corrupt names damage in committed data.
func (r *reader) corrupt(seg *segment, pos, bytes int64, reason string) error {
	r.log.metrics.corrupt.Inc()
	return &logstore.CorruptError{File: seg.path(), Offset: pos, Bytes: bytes, Reason: reason}
}

// compacted reports whether offsets may be missing.
func (p *partition) compacted() bool { return p.topic.config.Cleanup == logstore.CleanupCompact }
