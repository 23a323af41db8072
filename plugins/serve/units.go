package serve

import (
	"context"
	"sync"
	"time"

	"github.com/millrace-io/millrace/logstore/recordbatch"
	"github.com/millrace-io/millrace/plugins/internal/wire"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// How records become batches, batches frames, and frames units.
const (
	// batchBytes is where a batch is closed: below 64 KiB the cost per byte
	// rises, above 1 MiB the caches lose.
	batchBytes = 256 << 10
	// frameBytes is how much is gathered before it is sent even though its unit
	// is not complete.
	frameBytes = 1 << 20
	// unitBytesMax bounds what one position may close: the worker holds a whole
	// unit in memory, since it goes into the log at once.
	unitBytesMax = 64 << 20
	// linger is how long records wait for company while others are in flight.
	linger = 5 * time.Millisecond
	// keptBuilder is the largest batch whose memory is kept for the next one.
	keptBuilder = 2 * batchBytes
)

// chunk is one batch of one partition.
type chunk struct {
	recordbatch.Builder
	place *place
}

// place is where the records of one partition go.
type place struct {
	topic     string
	partition int32
	open      *chunk // takes the next record; guarded by units.mu
}

// topicPlaces is what the task knows about a topic it writes to.
type topicPlaces struct {
	name       string
	partitions []place
	turn       int // the partition of records without a key; guarded by units.mu
}

// keyless asks for the partition whose turn it is.
const keyless = -1

// place returns where a record goes: one without a key joins the open batch, and
// the next batch begins elsewhere. The caller holds units.mu.
func (t *topicPlaces) place(partition int32) *place {
	if partition != keyless {
		return &t.partitions[partition]
	}
	if p := &t.partitions[t.turn]; p.open != nil {
		return p
	}
	t.turn = (t.turn + 1) % len(t.partitions)
	return &t.partitions[t.turn]
}

// sentUnit is a unit that the worker has not called durable yet.
type sentUnit struct {
	seq       uint64
	positions []sdk.Position
}

// units gathers records up to positions and sends them. Append and Position are
// called by the goroutine that reads; the link's answers and a timer call the
// others.
type units struct {
	link   *wire.Link
	credit int
	acked  func([]sdk.Position) // told what is durable

	mu        sync.Mutex // guards the fields below, and the order of frames
	err       error      // sticky: nothing is sent any more
	pending   []*chunk   // not sent, in the order they were begun
	bytes     int        // of pending, about
	unitBytes int        // of the unit that is not complete, sent frames included
	sentBytes int        // of the unit's frames that were sent
	positions positions
	closed    bool // everything pending is before a position
	since     time.Time
	seq       uint64 // of the unit that is not complete
	out       int    // bytes that the worker has not given back
	unacked   []sentUnit
	timer     *time.Timer
	armed     bool
	wake      chan struct{} // something came back
	free      sync.Pool     // of *chunk
	frame     wire.Frame
}

func newUnits(link *wire.Link, credit int, acked func([]sdk.Position)) *units {
	u := &units{link: link, credit: credit, acked: acked, seq: 1, wake: make(chan struct{}, 1)}
	u.timer = time.AfterFunc(time.Hour, u.lingered)
	u.timer.Stop()
	return u
}

// add appends a record for a partition of a topic, or keyless, and blocks while
// too much is on its way.
func (u *units) add(ctx context.Context, t *topicPlaces, partition int32, r *recordbatch.Record) error {
	n := size(r)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	if u.bytes > 0 && u.bytes+n > frameBytes {
		if err := u.flushWaiting(ctx); err != nil {
			return err
		}
	}
	if u.unitBytes > 0 && u.unitBytes+n > unitBytesMax {
		return sdk.Errorf(sdk.Internal, "source.unit_too_large",
			"%d MiB were read without a position, the limit is %d MiB: the source must call Position more often", u.unitBytes>>20, unitBytesMax>>20)
	}
	p := t.place(partition)
	c := p.open
	if c == nil {
		c = u.begin(p)
	}
	before := c.Size()
	if err := c.Append(r); err != nil {
		return sdk.Errorf(sdk.Internal, "record.batch", "append a record for topic %q: %w", t.name, err)
	}
	n = c.Size() - before
	if u.bytes == 0 {
		u.since = time.Now()
	}
	u.bytes += n
	u.unitBytes += n
	u.closed = false
	if c.Size() >= batchBytes {
		p.open = nil
	}
	return nil
}

// begin starts a batch. The caller holds u.mu.
func (u *units) begin(p *place) *chunk {
	c, ok := u.free.Get().(*chunk)
	if !ok {
		c = new(chunk)
	}
	c.Reset()
	c.place, p.open = p, c
	u.pending = append(u.pending, c)
	return c
}

// position closes what was added: it may be sent.
func (u *units) position(ctx context.Context, p sdk.Position) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	if u.positions.len() == 0 && u.bytes == 0 {
		u.since = time.Now()
	}
	if err := u.positions.put(p); err != nil {
		return sdk.Errorf(sdk.Internal, "source.position", "%w", err)
	}
	u.closed = true
	if u.bytes >= batchBytes {
		return u.flushWaiting(ctx)
	}
	return u.flushReady()
}

// flushReady sends a complete unit when nothing is in flight or it has waited
// long enough, and otherwise sees to it that it is sent later. The caller holds
// u.mu.
func (u *units) flushReady() error {
	if !u.closed || u.err != nil {
		return u.err
	}
	wait := linger - time.Since(u.since)
	if len(u.unacked) == 0 || wait <= 0 || u.bytes >= batchBytes {
		if u.mayGo() {
			return u.send()
		}
		return nil // what comes back sends it
	}
	if !u.armed {
		u.armed = true
		u.timer.Reset(wait)
	}
	return nil
}

func (u *units) lingered() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.armed = false
	_ = u.flushReady() // kept in u.err for the reader
}

// mayGo reports whether the pending bytes are within the credit. The unit that
// has begun always may go on: what it waits for may be its own end.
func (u *units) mayGo() bool {
	return u.out == u.sentBytes || u.out+u.bytes <= u.credit
}

// flushWaiting sends what is pending, waiting for credit. The caller holds u.mu.
func (u *units) flushWaiting(ctx context.Context) error {
	for !u.mayGo() {
		u.mu.Unlock()
		var err error
		select {
		case <-u.wake:
		case <-ctx.Done():
			err = ctx.Err()
		}
		u.mu.Lock()
		if u.err != nil || err != nil {
			return firstError(u.err, err)
		}
	}
	if u.bytes == 0 && u.positions.len() == 0 {
		return nil // sent meanwhile
	}
	return u.send()
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// send sends everything pending as one frame, the last one of its unit when all
// of it lies before a position. The caller holds u.mu, so that frames keep their
// order.
func (u *units) send() error {
	f := &u.frame
	f.Seq, f.Last = u.seq, u.closed
	f.Parts, f.Payload, f.Positions = f.Parts[:0], f.Payload[:0], nil
	chunks := u.pending
	bytes := 0
	for _, c := range chunks {
		if c.place.open == c {
			c.place.open = nil
		}
		b := c.Bytes()
		bytes += len(b)
		f.Parts = append(f.Parts, wire.Part{Topic: c.place.topic, Partition: c.place.partition, Length: len(b), Records: c.Count()})
		f.Payload = append(f.Payload, b)
	}
	f.Sent = func() { u.recycle(chunks) }
	if f.Last {
		var err error
		if f.Positions, err = wire.PositionsToPB(u.positions.list); err != nil {
			u.err = sdk.Errorf(sdk.Internal, "source.position", "%w", err)
			return u.err
		}
		u.unacked = append(u.unacked, sentUnit{seq: u.seq, positions: u.positions.take()})
	}
	u.pending, u.bytes = nil, 0
	u.out += bytes
	u.sentBytes += bytes
	if f.Last {
		u.seq++
		u.unitBytes, u.sentBytes, u.closed = 0, 0, false
	}
	if err := u.link.Send(f); err != nil {
		u.err = err
	}
	return u.err
}

// recycle keeps the memory of batches that gRPC has written.
func (u *units) recycle(chunks []*chunk) {
	for _, c := range chunks {
		if c.Size() <= keptBuilder {
			u.free.Put(c)
		}
	}
}

// returned takes credit that came back.
func (u *units) returned(bytes int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.out = max(0, u.out-bytes)
	_ = u.flushReady() // kept in u.err for the reader
	u.signal()
}

// durable takes the news that all units up to seq are durable.
func (u *units) durable(seq uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for n < len(u.unacked) && u.unacked[n].seq <= seq {
		u.acked(u.unacked[n].positions)
		n++
	}
	u.unacked = u.unacked[:copy(u.unacked, u.unacked[n:])]
	_ = u.flushReady() // kept in u.err for the reader
	u.signal()
}

func (u *units) signal() {
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// finish sends the last complete unit; what was added since the last position is
// dropped, and read again after the next start.
func (u *units) finish(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	defer u.timer.Stop()
	if u.err != nil || !u.closed {
		return u.err
	}
	return u.flushWaiting(ctx)
}

// settled waits until the worker has called everything durable.
func (u *units) settled(ctx context.Context) error {
	for {
		u.mu.Lock()
		n := len(u.unacked)
		u.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-u.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// failed returns what has stopped the sending.
func (u *units) failed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.err
}

// positions is a list of positions, the newest per source partition.
type positions struct {
	list  []sdk.Position
	index map[string]int // by the partition's JSON, once the list is long
}

// scanned is how long the list may be without an index.
const scanned = 8

func (p *positions) len() int { return len(p.list) }

func (p *positions) put(n sdk.Position) error {
	if i := len(p.list) - 1; i >= 0 && p.list[i].SamePartition(n) {
		p.list[i] = n
		return nil
	}
	if len(p.list) < scanned {
		for i := range p.list {
			if p.list[i].SamePartition(n) {
				p.list[i] = n
				return nil
			}
		}
		p.list = append(p.list, n)
		return nil
	}
	if p.index == nil {
		p.index = make(map[string]int)
		for i := range p.list {
			key, err := partitionKey(p.list[i])
			if err != nil {
				return err
			}
			p.index[key] = i
		}
	}
	key, err := partitionKey(n)
	if err != nil {
		return err
	}
	if i, ok := p.index[key]; ok {
		p.list[i] = n
		return nil
	}
	p.index[key] = len(p.list)
	p.list = append(p.list, n)
	return nil
}

func partitionKey(p sdk.Position) (string, error) {
	b, err := sdk.Position{Partition: p.Partition}.MarshalJSON()
	return string(b), err
}

func (p *positions) take() []sdk.Position {
	l := p.list
	p.list, p.index = nil, nil
	return l
}
