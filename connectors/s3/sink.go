package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/millrace-io/millrace/plugins/convert"
	"github.com/millrace-io/millrace/plugins/sdk"
)

// sink is one task. All its methods run on one goroutine.
//
// A partition has at most one unfinished object. When it is finished it is
// uploaded; only then the partition's offset moves. A task that dies in between
// leaves an object that its successor finds by name: the successor begins at the
// same offset, so its first object has the same name. What that object holds is
// not written again.
type sink struct {
	c           config
	task        *sdk.SinkTask
	store       *store
	conditional bool
	location    *time.Location
	rows        *rows
	parts       map[sdk.TopicPartition]*part
	buffered    int64
}

// part is one assigned partition.
type part struct {
	sdk.TopicPartition
	topicID   string
	next      int64 // the offset that comes next; below it everything was taken
	committed int64 // everything below is on S3, or was left out on purpose
	known     bool  // committed has moved since the partition was opened
	skipUntil int64 // up to and including this offset, records are on S3 already
	rewound   bool  // waits for a record at or below skipUntil; later ones are from before the rewind
	open      *file
	finished  *upload // an object on its way
	slot      time.Time
}

// upload is a finished object that must be on S3 before anything else of its
// partition.
type upload struct {
	*object
	f     *file
	after int64 // the offset to commit once it is there
}

// Define declares the keys.
func (s *sink) Define(d *sdk.Def) { s.c.define(d) }

// Validate reaches for the bucket with the credentials given.
func (s *sink) Validate(ctx context.Context) error {
	if lastPart(s.c.format) == formatParquet && s.c.compression != "none" {
		return sdk.FieldErrors{sdk.FieldError("s3.compression.type", "config.invalid", "Parquet compresses inside; use parquet.codec and leave s3.compression.type at none")}
	}
	store, err := openStore(ctx, &s.c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	err = store.check(ctx)
	if e, ok := errors.AsType[*sdk.Error](err); ok {
		return sdk.FieldErrors{e}
	}
	return err
}

// Open connects and learns what the server can do.
func (s *sink) Open(ctx context.Context, t *sdk.SinkTask) (err error) {
	s.task, s.parts = t, make(map[sdk.TopicPartition]*part)
	if s.location, err = time.LoadLocation(s.c.timezone); err != nil {
		return sdk.FieldError("timezone", "config.invalid", "%w", err)
	}
	if s.rows, err = newRows(s.c.decimals); err != nil {
		return err
	}
	if s.store, err = openStore(ctx, &s.c); err != nil {
		return err
	}
	switch {
	case s.c.guarantee == "deterministic_overwrite":
		return s.store.check(ctx)
	case !s.c.probe:
		s.conditional = true
		return s.store.check(ctx)
	}
	if s.conditional, err = s.store.provesConditional(ctx, t.Connector); err != nil {
		return err
	}
	if !s.conditional && s.c.guarantee == "conditional" {
		return sdk.FieldError("delivery.guarantee", "sink.s3.not_conditional", "the server replaces an object although it was asked to write it only if absent; use deterministic_overwrite")
	}
	if !s.conditional && s.c.rotateSchedule > 0 {
		t.Log.Warn("the server has no conditional writes: with rotate.schedule.interval.ms a crash may repeat records in S3")
	}
	return nil
}

// OpenPartitions begins with partitions afresh.
func (s *sink) OpenPartitions(_ context.Context, partitions []sdk.AssignedPartition) error {
	for _, a := range partitions {
		s.parts[a.TopicPartition] = &part{TopicPartition: a.TopicPartition, topicID: a.TopicID, next: a.Offset, skipUntil: -1}
	}
	return nil
}

// ClosePartitions drops what is unfinished: its next owner reads it again.
func (s *sink) ClosePartitions(_ context.Context, partitions []sdk.TopicPartition) error {
	for _, tp := range partitions {
		if p := s.parts[tp]; p != nil {
			s.discard(p)
			delete(s.parts, tp)
		}
	}
	return nil
}

// Close drops what is unfinished.
func (s *sink) Close(context.Context) error { return nil }

// Committable tells what is on S3.
func (s *sink) Committable(context.Context) (map[sdk.TopicPartition]int64, error) {
	out := make(map[sdk.TopicPartition]int64)
	for tp, p := range s.parts {
		if p.known {
			out[tp] = p.committed
			p.known = false
		}
	}
	return out, nil
}

// Write takes records, finishes objects that are full, and uploads them. A
// record given a second time after a Retry is known by its offset.
func (s *sink) Write(ctx context.Context, records []sdk.Record) error {
	for i := range records {
		r := &records[i]
		p := s.parts[sdk.TopicPartition{Topic: r.Topic, Partition: r.Partition}]
		if p == nil || r.Offset < p.next || p.rewound && r.Offset > p.skipUntil {
			continue
		}
		p.rewound = false
		if err := s.take(ctx, p, r); err != nil {
			return err
		}
	}
	for _, tp := range s.order() {
		p := s.parts[tp]
		if err := s.settle(ctx, p); err != nil {
			return err
		}
		if s.scheduled(p) {
			if err := s.rotate(ctx, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// order returns the partitions in a fixed order.
func (s *sink) order() []sdk.TopicPartition {
	tps := slices.Collect(maps.Keys(s.parts))
	slices.SortFunc(tps, func(a, b sdk.TopicPartition) int {
		if a.Topic != b.Topic {
			if a.Topic < b.Topic {
				return -1
			}
			return 1
		}
		return int(a.Partition - b.Partition)
	})
	return tps
}

// take puts one record into its partition's object.
func (s *sink) take(ctx context.Context, p *part, r *sdk.Record) error {
	if err := s.settle(ctx, p); err != nil {
		return err
	}
	switch {
	case p.rewound: // settle has gone back
		return nil
	case r.Offset <= p.skipUntil:
		p.pass(r.Offset)
		return nil
	case r.Value.Value.IsNull():
		return s.null(p, r)
	}
	if s.due(p, r) {
		if err := s.rotate(ctx, p); err != nil {
			return err
		}
		if p.rewound {
			return nil
		}
		if r.Offset <= p.skipUntil {
			p.pass(r.Offset)
			return nil
		}
	}
	if err := s.append(p, r); err != nil {
		return err
	}
	p.next = r.Offset + 1
	if p.open != nil && (p.open.count >= s.c.flushSize || s.buffered > s.c.memoryMax) {
		return s.full(ctx, p)
	}
	return nil
}

// pass moves over a record that needs nothing. An offset inside a range that is
// on S3 already is never committed: a successor that began there would look for
// an object that does not exist, and write the rest of the range again.
func (p *part) pass(offset int64) {
	p.next = offset + 1
	if p.open == nil && p.finished == nil && offset >= p.skipUntil {
		p.committed, p.known = p.next, true
	}
}

func (s *sink) null(p *part, r *sdk.Record) error {
	if s.c.nullValues == "fail" {
		return s.report(p, r, sdk.Errorf(sdk.Invalid, "sink.null_value",
			"topic %q partition %d offset %d has no value (a tombstone); set behavior.on.null.values=ignore to leave such records out", r.Topic, r.Partition, r.Offset))
	}
	p.pass(r.Offset)
	return nil
}

func (s *sink) report(p *part, r *sdk.Record, err error) error {
	if _, err := s.task.Report(r, err); err != nil {
		return err
	}
	p.pass(r.Offset)
	return nil
}

// due reports whether the open object must be finished before the record.
func (s *sink) due(p *part, r *sdk.Record) bool {
	f := p.open
	if f == nil {
		return false
	}
	return s.c.rotateInterval > 0 && time.Duration(r.Timestamp-f.base)*time.Millisecond >= s.c.rotateInterval ||
		s.scheduled(p) || !f.enc.fits(r)
}

// scheduled reports whether the wall clock has come to the end of the slot in
// which the open object was begun.
func (s *sink) scheduled(p *part) bool {
	return p.open != nil && s.c.rotateSchedule > 0 && !time.Now().Before(p.slot)
}

// slotEnd is the next multiple of the schedule since midnight.
func (s *sink) slotEnd(now time.Time) time.Time {
	now = now.In(s.location)
	midnight := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, s.location)
	return midnight.Add((now.Sub(midnight)/s.c.rotateSchedule + 1) * s.c.rotateSchedule)
}

func (s *sink) append(p *part, r *sdk.Record) error {
	f := p.open
	if f == nil {
		row, err := s.rows.json(r)
		if err != nil {
			return s.bad(p, r, err)
		}
		f = &file{start: r.Offset, base: r.Timestamp, first: fingerprint(r, row)}
		if f.enc, err = s.encoder(r); err != nil {
			return s.bad(p, r, err)
		}
	}
	before := f.enc.size()
	if err := f.enc.append(r); err != nil {
		return s.bad(p, r, err)
	}
	if p.open == nil {
		p.open = f
		if s.c.rotateSchedule > 0 {
			p.slot = s.slotEnd(time.Now())
		}
	}
	f.end = r.Offset
	f.count++
	s.buffered += int64(f.enc.size() - before)
	return nil
}

func (s *sink) encoder(r *sdk.Record) (encoder, error) {
	if lastPart(s.c.format) == formatParquet {
		return newTable(&s.c, r)
	}
	return &lines{rows: s.rows, c: &s.c}, nil
}

// bad gives up on a record that can never be stored.
func (s *sink) bad(p *part, r *sdk.Record, err error) error {
	if !errors.Is(err, errNotStored) {
		return err
	}
	return s.report(p, r, fmt.Errorf("topic %q partition %d offset %d: %w", r.Topic, r.Partition, r.Offset, err))
}

// full finishes the partition's object, or the largest one when memory is short.
func (s *sink) full(ctx context.Context, p *part) error {
	if p.open.count >= s.c.flushSize {
		return s.rotate(ctx, p)
	}
	if !s.conditional {
		return sdk.FieldError("buffer.memory.max.bytes", "sink.s3.memory",
			"unfinished objects take %d bytes, more than buffer.memory.max.bytes; raise it, or lower flush.size: finishing one early could repeat records without conditional writes", s.buffered)
	}
	largest := p
	for _, q := range s.parts {
		if q.open != nil && q.open.enc.size() > largest.open.enc.size() {
			largest = q
		}
	}
	return s.rotate(ctx, largest)
}

// rotate finishes the open object and uploads it.
func (s *sink) rotate(ctx context.Context, p *part) error {
	f := p.open
	body, err := f.enc.finish()
	if err != nil {
		return fmt.Errorf("finish the object of topic %q partition %d from offset %d: %w", p.Topic, p.Partition, f.start, err)
	}
	p.finished = &upload{f: f, after: p.next, object: &object{
		key: key(&s.c, p.TopicPartition, f.start), body: body, contentType: contentType(&s.c),
		meta: map[string]string{
			metaTopic: p.Topic, metaTopicID: p.topicID, metaPartition: strconv.Itoa(int(p.Partition)),
			metaStart: strconv.FormatInt(f.start, 10), metaEnd: strconv.FormatInt(f.end, 10), metaCount: strconv.Itoa(f.count),
			metaFirst: f.first, metaConnector: s.task.Connector,
		},
	}}
	s.buffered -= int64(f.enc.size())
	p.open = nil
	return s.settle(ctx, p)
}

// settle uploads the finished object. When it returns nil there is none left.
func (s *sink) settle(ctx context.Context, p *part) error {
	u := p.finished
	if u == nil {
		return nil
	}
	err := s.store.put(ctx, u.object, s.conditional)
	if errors.Is(err, errExists) {
		return s.meet(ctx, p, u)
	}
	if err != nil {
		return err
	}
	p.done(u.after)
	return nil
}

// done notes that everything below offset is stored.
func (p *part) done(offset int64) {
	p.finished = nil
	p.committed, p.known = offset, true
}

// meet decides what an object of the same name means: ours from before a crash,
// or somebody else's.
func (s *sink) meet(ctx context.Context, p *part, u *upload) error {
	meta, err := s.store.meta(ctx, u.key)
	if err != nil || meta == nil {
		return err // removed meanwhile: the next Write uploads again
	}
	end, err := strconv.ParseInt(meta[metaEnd], 10, 64)
	if err != nil || meta[metaTopicID] != p.topicID || meta[metaFirst] != u.f.first {
		if s.c.onForeign == "overwrite" {
			if err := s.store.put(ctx, u.object, false); err != nil {
				return err
			}
			p.done(u.after)
			return nil
		}
		return sdk.FieldError("on.foreign.object", "sink.s3.foreign_object",
			"s3://%s/%s exists and was not written from this topic (its topic id or first record differs): remove it, change topics.dir, or set on.foreign.object=overwrite", s.c.bucket, u.key)
	}
	switch {
	case end == u.f.end:
		p.done(u.after)
	case end > u.f.end:
		// Ours is part of theirs. The offset waits until the records that theirs
		// has beyond ours have been passed over.
		p.finished, p.skipUntil = nil, end
	default:
		// Theirs is the beginning of ours: build again what comes after it.
		p.finished, p.skipUntil, p.next, p.rewound = nil, end, u.f.start, true
		s.discard(p)
		s.task.Rewind(p.TopicPartition, u.f.start)
	}
	return nil
}

// discard drops the open object.
func (s *sink) discard(p *part) {
	if p.open != nil {
		s.buffered -= int64(p.open.enc.size())
		p.open = nil
	}
	p.finished = nil
}

// rows renders values as JSON, one after the other in one buffer.
type rows struct {
	converter convert.Converter
	buf       []byte
}

func newRows(decimals string) (*rows, error) {
	c, err := convert.New("org.apache.kafka.connect.json.JsonConverter", convert.Value, map[string]string{"schemas.enable": "false", "decimal.format": decimals})
	return &rows{converter: c}, err
}

// json returns the value as JSON on one line, valid until the next call.
func (w *rows) json(r *sdk.Record) ([]byte, error) {
	if r.Value.Raw {
		return singleLine(r.Value.Value.Bytes())
	}
	b, err := w.converter.Encode(w.buf[:0], r.Value)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNotStored, err)
	}
	w.buf = b
	return b, nil
}
