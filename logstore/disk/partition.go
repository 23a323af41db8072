package disk

import (
	"fmt"
	"sync"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// topic is one topic of an open log.
type topic struct {
	name   string
	id     logstore.TopicID
	config logstore.TopicConfig
	own    bool // one of the engine's three tables, closed to writers
	parts  []*partition

	deleting bool // nobody may use it any more; guarded by the log's mutex
}

// partition is one partition of an open log. Its batches lie in segments; the
// newest are in the tail, in memory, until there are enough of them for a write.
// The tail is safe: the journal holds its bytes.
//
//	file of the last segment            memory
//	[0 ............... segment.size) [flushing][tail) end
type partition struct {
	topic *topic
	id    int32

	// next is where the next batch is placed: the committer's alone, ahead of
	// what is committed.
	next cursor
	mark uint64 // the committer's: the round in which a waiting unit blocked it

	flushMu sync.Mutex // held over a write of the tail to the file

	mu       sync.Mutex
	segments []*segment // ascending; replaced, never changed
	start    int64      // offset of the first record kept
	end      int64      // offset after the last durable record
	tail     []byte
	flushing []byte
	unsynced []*segment    // segments with bytes that wait for a checkpoint
	listed   bool          // in the committer's list of partitions that wait for one
	changed  chan struct{} // closed when the partition changes, made by who waits
	gone     error         // set when nobody may use it any more: deleted or corrupt
	deleted  bool          // its files are going away
	lost     bool          // committed batches are missing at the end: stopped for good
}

// cursor is a place for the next batch.
type cursor struct {
	seg    *segment // nil before the first
	pos    int64
	offset int64
}

func (p *partition) dir() string { return fmt.Sprintf("%s/%s/%d", topicsDir, p.topic.name, p.id) }

func (p *partition) String() string { return fmt.Sprintf("%s-%d", p.topic.name, p.id) }

// last returns the segment that grows, nil when there is none yet. p.mu is held.
func (p *partition) last() *segment {
	if len(p.segments) == 0 {
		return nil
	}
	return p.segments[len(p.segments)-1]
}

// wakeLocked lets the readers look again. p.mu is held.
func (p *partition) wakeLocked() {
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// stop ends the use of the partition: every later call gets err.
func (p *partition) stop(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gone == nil {
		p.gone = err
	}
	p.wakeLocked()
}

// remove ends a deleted partition.
func (p *partition) remove(err error) {
	p.stop(err)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deleted = true
}

// isDeleted reports whether the partition's files are going away.
func (p *partition) isDeleted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deleted
}

// stopped returns why the partition may not be used, or nil.
func (p *partition) stopped() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

// bounds returns the start and the durable end.
func (p *partition) bounds() (start, end int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.start, p.end
}

// entry is a run of batches of one partition with its place.
type entry struct {
	part    *partition
	seg     *segment
	pos     int64
	base    int64
	next    int64
	maxTime int64
	data    []byte
	length  int // of a bypassed run whose bytes are not in memory: recovery
	bypass  bool
	before  cursor // what the partition's cursor was, to take the placement back
}

func (e *entry) size() int {
	if e.data == nil {
		return e.length
	}
	return len(e.data)
}

// publish makes a committed entry visible. Entries of a partition come in the
// order of their positions, from the committer or from recovery.
func (l *Log) publish(e *entry) error {
	p := e.part
	p.mu.Lock()
	old := p.last()
	roll := e.seg != old
	mustFlush := (roll || e.bypass) && len(p.tail)+len(p.flushing) > 0
	p.mu.Unlock()
	if mustFlush {
		if err := l.flushTail(p); err != nil {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if roll {
		p.segments = append(p.segments[:len(p.segments):len(p.segments)], e.seg)
		e.seg.next = e.seg.base
		if old != nil {
			l.committer.sealed = append(l.committer.sealed, old)
		}
	}
	at := e.seg.size + int64(len(p.flushing)+len(p.tail))
	if at != e.pos || e.base != p.end {
		return fmt.Errorf("%w: batch of %s at byte %d, offset %d, but the partition ends at byte %d, offset %d",
			logstore.ErrCorrupt, p, e.pos, e.base, at, p.end)
	}
	if e.bypass {
		e.seg.size += int64(e.size())
		p.note(e.seg)
	} else {
		if p.tail == nil {
			p.tail = l.tailBuffers.get()
		}
		p.tail = append(p.tail, e.data...)
		l.tailBytes.Add(int64(len(e.data)))
	}
	e.index()
	if e.seg.next == e.seg.base {
		e.seg.maxTime = e.maxTime
	}
	e.seg.next = e.next
	e.seg.maxTime = max(e.seg.maxTime, e.maxTime)
	p.end = e.next
	if !p.listed {
		p.listed = true
		l.committer.dirty = append(l.committer.dirty, p)
	}
	p.wakeLocked()
	return nil
}

// index adds the batches of the entry to its segment's index. A run whose bytes
// are not here is indexed as one: recovery knows no more, and a lookup reads on
// from there.
func (e *entry) index() {
	for rest := e.data; len(rest) > 0; {
		info, err := recordbatch.Parse(rest)
		if err != nil {
			return // Append has checked it
		}
		e.seg.index.add(e.seg.base, &info)
		rest = rest[info.Size:]
	}
	if e.data == nil {
		e.seg.index.add(e.seg.base, &recordbatch.Info{BaseOffset: e.base, Size: e.length, MaxTimestamp: e.maxTime})
	}
}

// note remembers that a segment has bytes that a checkpoint must sync. p.mu is
// held.
func (p *partition) note(s *segment) {
	for _, u := range p.unsynced {
		if u == s {
			return
		}
	}
	p.unsynced = append(p.unsynced, s)
}

// flushTail writes the tail to its segment. Readers see it all the while.
func (l *Log) flushTail(p *partition) error {
	p.flushMu.Lock()
	defer p.flushMu.Unlock()
	p.mu.Lock()
	seg, data := p.last(), p.tail
	if len(data) == 0 || p.deleted {
		p.mu.Unlock()
		return nil
	}
	pos := seg.size
	p.flushing, p.tail = data, nil
	p.mu.Unlock()

	err := l.files.write(seg, data, pos)

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.deleted && err != nil {
		err = nil // deleted meanwhile
	}
	if err != nil {
		p.tail, p.flushing = append(data, p.tail...), nil
		return err
	}
	seg.size += int64(len(data))
	p.note(seg)
	p.flushing = nil
	l.tailBytes.Add(-int64(len(data)))
	l.tailBuffers.put(data)
	return nil
}

// buffers recycles tail buffers.
type buffers struct {
	mu   sync.Mutex
	free [][]byte
	keep int
}

func (b *buffers) get() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.free)
	if n == 0 {
		return nil
	}
	buf := b.free[n-1]
	b.free = b.free[:n-1]
	return buf
}

func (b *buffers) put(buf []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.free) < b.keep && cap(buf) > 0 {
		b.free = append(b.free, buf[:0])
	}
}
