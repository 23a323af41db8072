package disk

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace-io/millrace/logstore"
	"github.com/millrace-io/millrace/logstore/recordbatch"
)

// identity is what writers of one name share: their order and their epoch.
type identity struct {
	name  string
	epoch int64 // of the newest writer; guarded by the log's mutex

	pending int           // units accepted and not finished; guarded by the log's mutex
	idle    chan struct{} // closed when pending falls to 0, made by who waits
	refused int64         // newest epoch of which a unit failed: its writer takes no more
	failing error         // set while the callbacks of a failed unit and those behind it run

	mark uint64 // the committer's: the round in which a waiting unit blocked it
}

// writer is one opening of an identity.
type writer struct {
	log   *Log
	of    *identity
	epoch int64

	closeOnce sync.Once
	closed    chan struct{}
}

// OpenWriter returns the newest writer of identity and fences the older ones. It
// waits for the units they handed over.
func (l *Log) OpenWriter(ctx context.Context, name string) (logstore.Writer, error) {
	if name == "" || len(name) > maxIdentity {
		return nil, fmt.Errorf("writer identity %q must have 1 to %d bytes: %w", name, maxIdentity, logstore.ErrInvalid)
	}
	l.mu.Lock()
	if err := l.unusable(); err != nil {
		l.mu.Unlock()
		return nil, err
	}
	of := l.identity(name)
	of.epoch++
	epoch := of.epoch
	done := make(chan error, 1)
	l.enqueue(&request{
		from:  of,
		unit:  &logstore.Unit{},
		table: []tableRecord{epochRecord(name, epoch)},
		done:  func(_ logstore.Result, err error) { done <- err },
	})
	l.mu.Unlock()
	select {
	case err := <-done:
		if err != nil {
			return nil, fmt.Errorf("open writer %q: %w", name, err)
		}
	case <-ctx.Done():
		return nil, fmt.Errorf("open writer %q: %w", name, ctx.Err())
	}
	return &writer{log: l, of: of, epoch: epoch, closed: make(chan struct{})}, nil
}

// identity returns the identity of that name. The log's mutex is held.
func (l *Log) identity(name string) *identity {
	of := l.writers[name]
	if of == nil {
		of = &identity{name: name}
		l.writers[name] = of
	}
	return of
}

// Epoch returns the writer's epoch.
func (w *writer) Epoch() int64 { return w.epoch }

// Append checks a unit and hands it to the committer. See logstore.Writer.
//
// When a unit fails, so do all later ones of its writer: a unit is never in the
// log without those before it.
func (w *writer) Append(ctx context.Context, unit *logstore.Unit, done func(logstore.Result, error)) error {
	bytes, err := w.log.checkUnit(unit)
	if err != nil {
		return err
	}
	r := &request{from: w.of, epoch: w.epoch, unit: unit, bytes: bytes, bounded: true, done: done}
	if len(unit.Batches) > 0 {
		r.parts = make([]*partition, len(unit.Batches))
	}
	l := w.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := w.check(r); err != nil {
		return err
	}
	if err := l.admit(ctx, bytes); err != nil {
		return err
	}
	if err := w.check(r); err != nil { // again: a long time may have passed
		l.queued.give(bytes)
		return err
	}
	l.enqueue(r)
	return nil
}

// check finds the partitions of a unit and says why the writer may not append to
// them. The log's mutex is held.
func (w *writer) check(r *request) error {
	select {
	case <-w.closed:
		return logstore.ErrClosed
	default:
	}
	l := w.log
	if err := l.unusable(); err != nil {
		return err
	}
	if w.epoch != w.of.epoch {
		return fmt.Errorf("writer %q of epoch %d, the newest is %d: %w", w.of.name, w.epoch, w.of.epoch, logstore.ErrFenced)
	}
	if w.of.failing != nil {
		return fmt.Errorf("%w: %w", logstore.ErrBehind, w.of.failing)
	}
	if w.epoch <= w.of.refused {
		return logstore.ErrBehind
	}
	for i := range r.unit.Batches {
		b := &r.unit.Batches[i]
		p, err := l.partitionLocked(b.Topic, b.Partition)
		if err != nil {
			return err
		}
		if p.topic.own {
			return fmt.Errorf("topic %q is the log's own: %w", b.Topic, logstore.ErrInvalid)
		}
		r.parts[i] = p
	}
	for i := range r.unit.Offsets {
		o := &r.unit.Offsets[i]
		if o.Offset < 0 {
			continue // forgetting is allowed for what is gone
		}
		if _, err := l.partitionLocked(o.Topic, o.Partition); err != nil {
			return err
		}
	}
	return nil
}

// checkUnit checks the bytes of a unit and returns how much of the queue it
// takes. Every batch is checked to the last byte: one that does not match its
// checksum would look like a torn journal after a crash.
func (l *Log) checkUnit(unit *logstore.Unit) (int64, error) {
	if len(unit.Batches)+len(unit.Offsets) == 0 {
		return 0, fmt.Errorf("unit is empty: %w", logstore.ErrInvalid)
	}
	if len(unit.Batches) > maxEntries || len(unit.Offsets) > maxEntries {
		return 0, fmt.Errorf("unit has %d batches and %d offsets, at most %d are allowed: %w",
			len(unit.Batches), len(unit.Offsets), maxEntries, logstore.ErrInvalid)
	}
	total := int64(frameHeaderSize)
	for i := range unit.Batches {
		b := &unit.Batches[i]
		if err := l.checkData(b.Data); err != nil {
			return 0, fmt.Errorf("batch %d of the unit, for %q partition %d: %w: %w", i, b.Topic, b.Partition, logstore.ErrInvalid, err)
		}
		total += int64(len(b.Data)) + frameEntrySize
	}
	if total > recordbatch.MaxBytes {
		return 0, fmt.Errorf("unit has %d bytes, at most %d are allowed: %w", total, recordbatch.MaxBytes, logstore.ErrInvalid)
	}
	for i := range unit.Offsets {
		o := &unit.Offsets[i]
		if o.Group == "" || len(o.Group) > maxIdentity {
			return 0, fmt.Errorf("group name %q must have 1 to %d bytes: %w", o.Group, maxIdentity, logstore.ErrInvalid)
		}
		total += int64(offsetRecordSize(o))
	}
	return total, nil
}

func (l *Log) checkData(data []byte) error {
	if len(data) == 0 {
		return recordbatch.ErrShort
	}
	for len(data) > 0 {
		batch, rest, err := recordbatch.Split(data)
		if err != nil {
			return err
		}
		if err := recordbatch.Check(batch, l.o.MaxBatchBytes); err != nil {
			return err
		}
		data = rest
	}
	return nil
}

// Close waits for the units of the identity that were accepted so far.
func (w *writer) Close() error {
	w.closeOnce.Do(func() { close(w.closed) })
	l := w.log
	l.mu.Lock()
	if w.of.pending == 0 {
		l.mu.Unlock()
		return nil
	}
	var idle chan struct{}
	if l.unusable() == nil {
		idle = make(chan struct{})
		l.enqueue(&request{from: w.of, unit: &logstore.Unit{}, done: func(logstore.Result, error) { close(idle) }})
	} else { // nothing can come any more, so all there is ends
		if w.of.idle == nil {
			w.of.idle = make(chan struct{})
		}
		idle = w.of.idle
	}
	l.mu.Unlock()
	<-idle
	return nil
}
